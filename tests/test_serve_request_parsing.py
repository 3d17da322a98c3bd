"""What checked bodies ask of the engine."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from leanthink.engine.request import Request
from leanthink.entrypoints.openai.error_responses import APIError
from leanthink.entrypoints.openai.protocol import ChatBody, TextBody
from leanthink.entrypoints.openai.request_parsing import RequestParser
from leanthink.entrypoints.openai.settings import Settings
from leanthink.models.loading import load
from leanthink.policies.budget import Budget
from leanthink.policies.rkv import RKV
from leanthink.policies.snapkv import SnapKV

TOKENS = {"max_tokens", "max_completion_tokens"}


@pytest.fixture(scope="module")
def model() -> Any:
    return load("tiny")


def read(model: Any, *, most: int = 4096, largest: int = 10**6, prompt: int = 10, **fields: Any) -> Request:
    """The request of a completion with a prompt of so many tokens."""
    settings = Settings(name="tiny", max_new_tokens=most, budget=Budget(slots=64))
    body = TextBody.model_validate({"model": "tiny", "prompt": "x" * prompt, **fields})
    (request,) = RequestParser(*model, settings, largest=largest).parse(body)
    return request


@pytest.mark.parametrize("name", sorted(TOKENS))
@pytest.mark.parametrize("policy", ["full", "horizon"])
def test_too_large_a_number_of_tokens_is_a_maximum(model: Any, name: str, policy: str) -> None:
    context = model[0].config.max_position_embeddings
    for given in (4097, context, 10**12):
        assert read(model, policy=policy, **{name: given}).max_new_tokens == 4096  # of the server
        left = read(model, most=2 * context, prompt=context - 7, policy=policy, **{name: given})
        assert left.max_new_tokens == 7  # of the context
    assert read(model, policy=policy, **{name: 5}).max_new_tokens == 5
    assert read(model, policy=policy, **dict.fromkeys(TOKENS, 5)).max_new_tokens == 5


def test_a_full_cache_ends_with_the_memory(model: Any) -> None:
    for given in ({}, {"max_tokens": 10**12}):
        request = read(model, largest=100, prompt=90, policy="full", **given)
        assert (request.max_new_tokens, request.bound) == (10, 100)
    assert read(model, largest=100, prompt=90, policy="full", max_tokens=3).bound == 93
    for prompt in (100, 200):
        with pytest.raises(APIError, match=f"{prompt} of them prompt, and at most 100 are allowed"):
            read(model, largest=100, prompt=prompt, policy="full", max_tokens=1)


def test_a_prompt_that_does_not_fit_by_itself_stays_an_error(model: Any) -> None:
    context = model[0].config.max_position_embeddings
    with pytest.raises(APIError, match=f"at most {context - 1} are allowed: shorten it"):
        read(model, prompt=context, max_tokens=1)


def test_a_longest_prompt_beyond_the_context_is_the_context(model: Any) -> None:
    settings = Settings(name="tiny", policy="full", budget=None, max_prompt_tokens=100, max_model_len=16)
    parser = RequestParser(*model, settings, largest=10**6)
    assert parser.max_prompt_tokens == 15
    (longest,) = parser.parse(TextBody(model="tiny", prompt="x" * 15))
    assert longest.max_new_tokens == 1
    with pytest.raises(APIError, match="has 16 tokens, and at most 15 are allowed") as refused:
        parser.parse(TextBody(model="tiny", prompt="x" * 16))
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("given", "expected"), [({"stop": ""}, ()), ({"stop": ["", "a"]}, ("a",)), ({"stop": "a"}, ("a",))]
)
def test_an_empty_stop_string_is_none(model: Any, given: Any, expected: Any) -> None:
    assert read(model, **given).sampling.stop == expected


def test_what_is_off_is_off_and_a_seed_of_minus_one_is_drawn(model: Any) -> None:
    sampling = read(model, top_k=-1, seed=-1).sampling
    assert (sampling.top_k, sampling.seed >= 0) == (0, True)
    assert sampling.seed != read(model, seed=-1).sampling.seed


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ({"content": "so"}, {"content": "so"}),
        ({"content": None}, {"content": ""}),
        ({"content": "so", "reasoning": "why"}, {"content": "so", "reasoning_content": "why"}),
        (
            {"content": "so", "reasoning_content": "why", "reasoning": "why"},
            {"content": "so", "reasoning_content": "why"},
        ),
        ({"content": None, "refusal": "no"}, {"content": "no"}),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, {"content": "ab"}),
        ({"content": "so", "name": "Ann", "tool_calls": [], "refusal": None}, {"content": "so", "name": "Ann"}),
    ],
)
def test_an_assistant_s_message_reaches_the_template(
    model: Any, message: dict[str, Any], shown: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = RequestParser(*model, Settings(name="tiny"), largest=10**6)
    seen: list[Any] = []
    monkeypatch.setattr(parser.tokenizer, "apply_chat_template", lambda chat, **_: seen.extend(chat) or "text")
    asked = {"role": "user", "content": "hi", "name": "Bo"}
    parser.parse(ChatBody.model_validate({"model": "tiny", "messages": [asked, {"role": "assistant", **message}]}))
    assert seen == [asked, {"role": "assistant", **shown}]


def test_a_salt_is_of_every_choice_and_an_empty_one_is_refused(model: Any) -> None:
    parser = RequestParser(*model, Settings(name="tiny"), largest=10**6)
    body = TextBody(model="tiny", prompt="hi", n=2, cache_salt="s")
    assert [request.cache_salt for request in parser.parse(body, body.cache_salt)] == ["s", "s"]
    assert [request.cache_salt for request in parser.parse(TextBody(model="tiny", prompt="hi"))] == [None]
    for odd in ("", 5, "\ud800"):
        with pytest.raises(ValidationError):
            TextBody(model="tiny", prompt="hi", cache_salt=odd)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"recent_window": 5, "eviction_interval": 6, "max_answer_slots": 7}, (64, 5, 6, 7)),
        ({"recent_window": 5, "budget": 9}, (9, 5, 64, 1024)),
    ],
)
def test_a_budget_is_put_over_that_of_the_server(model: Any, given: Any, expected: tuple[int, ...]) -> None:
    assert tuple(read(model, **given).budget.record.values()) == expected


def test_policy_full_takes_no_part_of_a_budget(model: Any) -> None:
    with pytest.raises(APIError, match="leave out recent_window, max_answer_slots"):
        read(model, policy="full", recent_window=5, max_answer_slots=6)


def test_a_request_names_a_policy_with_settings_of_its_own(model: Any) -> None:
    assert read(model, policy="snapkv:kernel=5,observation=16").policy == SnapKV(observation=16, kernel=5)
    settings = Settings(name="tiny", policy="r-kv:mix=0.5", budget=Budget(slots=64), max_budget=100)
    parser = RequestParser(*model, settings, largest=10**6)
    assert parser.policy == "r-kv:mix=0.5"

    def policy_of(**fields: Any) -> Any:
        return parser.parse(TextBody.model_validate({"model": "tiny", "prompt": "hi", **fields}))[0].policy

    assert policy_of() == policy_of(policy="r-kv:mix=0.50") == RKV(mix=0.5)
    assert policy_of(policy="r-kv") == RKV()
    horizon = policy_of(policy="horizon:only=16")
    assert horizon.only == 16
    assert horizon.predictor is policy_of(policy="horizon").predictor, "a predictor is loaded once"


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("snapkv:observation=65", "looks at 65 queries, and at most 64 are remembered here"),
        ("snapkv:kernel=8193", "kernel=8193 is above 8192, the most that is allowed here"),
        ("snapkv:kernel=4", "kernel odd"),
        ("snapkv:kernal=5", "Did you mean 'kernel'"),
        ("oracle:rule=ceil", "knows the future"),
        ("snapvk:kernel=5", "Did you mean 'snapkv'"),
        ("full:x=1", "policy 'full' has no settings"),
    ],
)
def test_settings_that_are_not_served_are_refused(model: Any, policy: str, words: str) -> None:
    with pytest.raises(APIError, match=words) as refused:
        read(model, policy=policy)
    assert (refused.value.status, refused.value.param) == (400, "policy")
