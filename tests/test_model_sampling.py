"""How requests are sampled that say nothing of it: as the model's generation config does."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from leanthink.engine.engine import Engine
from leanthink.engine.generation import generate, rows_that_fit, stream
from leanthink.engine.sampling import Sampling
from leanthink.entrypoints.openai.protocol import ChatBody
from leanthink.entrypoints.openai.request_parsing import RequestParser
from leanthink.entrypoints.openai.settings import Settings
from leanthink.models.loading import load
from leanthink.models.model_sampling import model_sampling
from leanthink.policies import make_policy
from leanthink.policies.budget import Budget
from leanthink.utils.errors import LeanThinkWarning, UsageError
from models import make_model, make_tokenizer

QWEN3 = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
STATED = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}


def model_with(**settings: Any) -> Any:
    model = make_model()
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


@pytest.mark.parametrize(
    ("settings", "stated"),
    [
        ({}, {}),
        (QWEN3, STATED),
        ({"do_sample": False}, {"temperature": 0.0}),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.0}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": True, "top_k": 64, "top_p": 0.95}, {"temperature": 1.0, "top_k": 64, "top_p": 0.95}),
        ({"temperature": 0.7, "min_p": 0.05}, {"temperature": 0.7, "min_p": 0.05}),
        ({"do_sample": True, "top_k": -1}, {"temperature": 1.0, "top_k": 0}),
    ],
)
def test_the_generation_config_states_temperature_and_cuts(settings: dict[str, Any], stated: dict[str, Any]) -> None:
    model = model_with(**settings)
    assert model_sampling(model) == stated
    assert Sampling.from_model(model) == Sampling(**stated)


def test_what_is_given_wins_over_what_the_model_says() -> None:
    model = model_with(**QWEN3)
    given = Sampling.from_model(model, temperature=0.0, top_k=5, seed=3, max_new_tokens=9)
    assert given == Sampling(temperature=0.0, top_p=0.95, top_k=5, seed=3, max_new_tokens=9)
    with pytest.raises(UsageError, match="top_p=2"):
        Sampling.from_model(model, top_p=2)


@pytest.mark.parametrize(
    ("name", "value", "neutral"),
    [("repetition_penalty", 1.05, 1.0), ("no_repeat_ngram_size", 3, 0), ("suppress_tokens", [7], [])],
)
def test_what_is_not_applied_is_named(name: str, value: Any, neutral: Any) -> None:
    with pytest.warns(LeanThinkWarning, match=rf"asks for {name}=\[?{str(value).strip('[]')}\]?: .* does not apply"):
        assert model_sampling(model_with(**QWEN3, **{name: value})) == STATED
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model_sampling(model_with(**QWEN3, **{name: neutral})) == STATED


def test_generate_stream_and_the_engine_sample_as_the_model_says_unless_told_otherwise() -> None:
    model, tokenizer = model_with(do_sample=True, temperature=2.0), make_tokenizer()
    ids, choices = [1, 2, 3], {"policy": "window", "budget": Budget(slots=8, recent_window=4)}
    as_model = Sampling(temperature=2.0)
    (sampled,) = generate(model, tokenizer, [ids], **choices, sampling=as_model)
    assert generate(model, tokenizer, [ids], **choices) == [sampled]
    *_, last = stream(model, tokenizer, ids, **choices)
    assert last.completion == sampled
    engine = Engine(model, tokenizer, slots=5000)
    engine.add(ids, **choices)
    assert engine.scheduler.waiting[0].sampling == as_model
    (greedy,) = generate(model, tokenizer, [ids], **choices, sampling=Sampling())
    assert greedy.token_ids != sampled.token_ids


@pytest.mark.parametrize(
    ("settings", "config", "body", "expected"),
    [
        (QWEN3, "auto", {}, STATED),
        (QWEN3, "auto", {"temperature": 0.2, "top_k": 0}, {"temperature": 0.2, "top_p": 0.95, "top_k": 0}),
        (QWEN3, "vllm", {}, {"temperature": 1.0}),
        ({}, "auto", {}, {"temperature": 1.0}),
        ({"do_sample": False}, "auto", {}, {"temperature": 0.0}),
        ({"do_sample": False}, "auto", {"temperature": 0.5}, {"temperature": 0.5}),
    ],
)
def test_a_server_fills_in_what_clients_leave_out(
    settings: dict[str, Any], config: str, body: dict[str, Any], expected: dict[str, Any]
) -> None:
    about = Settings(name="m", policy="window", generation_config=config)
    tokenizer = make_tokenizer("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    parser = RequestParser(model_with(**settings), tokenizer, about, largest=10**6)
    asked = ChatBody(model="m", messages=[{"role": "user", "content": "hi"}], seed=1, **body)
    (request,) = parser.parse(asked)
    left = {"max_new_tokens": about.max_new_tokens, "stop_in_thought": False}
    assert request.sampling == Sampling(seed=1, **left, **expected)


def test_a_server_refuses_another_generation_config_by_name() -> None:
    with pytest.raises(UsageError, match="unknown generation config 'folder': choose one of auto, vllm"):
        Settings(name="m", generation_config="folder")


def test_the_command_line_samples_as_the_model_says_and_says_so(folder: Path, inside: Any, tmp_path: Path) -> None:
    model, tokenizer = load(folder, device="cpu")
    model.generation_config.update(do_sample=True, temperature=0.9, top_k=20)
    model.save_pretrained(tmp_path / "warm")
    tokenizer.save_pretrained(tmp_path / "warm")
    asked = ["generate", "hi", "--model", tmp_path / "warm", "--policy", "full", "--max-new-tokens", 30, "--json"]
    warm = inside(*asked)
    assert "generation config says (temperature 0.9, top_p 1, top_k 20, min_p 0); --temperature 0 is greedy" in warm.err
    assert warm.out == inside(*asked, "--temperature", 0.9, "--top-k", 20).out
    cold = inside(*asked, "--temperature", 0)
    assert "generation config" not in cold.err
    assert cold.out == inside(*asked[:3], folder, *asked[4:]).out != warm.out


def test_eval_and_collect_stay_greedy_whatever_the_model_says(folder: Path, inside: Any) -> None:
    for command in ("eval", "collect"):
        page = " ".join(inside(command, "--help").out.split())
        assert "0 is greedy. [0.0]" in page
    assert "0 is greedy. [the model's, else 0.0]" in " ".join(inside("generate", "--help").out.split())


def test_a_thought_may_have_16k_tokens_and_ends_at_the_context() -> None:
    assert Sampling().max_new_tokens == Settings(name="m").max_new_tokens == 16384
    model = make_model(max_position_embeddings=40)
    model.generation_config.eos_token_id = None
    (completion,) = generate(model, make_tokenizer(), [[1, 2, 3]], policy="full")
    assert (completion.prompt_tokens + len(completion.token_ids), completion.finish_reason) == (40, "length")


def test_so_many_rows_as_the_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    per_slot = 2 * 2 * 2 * 16 * 4 + 8  # layers, keys and values, kv heads, head_dim, bytes; a position
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 2 * per_slot, "SC_PAGE_SIZE": 100}.__getitem__)
    assert rows_that_fit(model, [40, 10, 10], [make_policy("full")]) == 2  # 100 slots: on a CPU regions of equal size
    assert rows_that_fit(model, [20] * 7, [make_policy("full")]) == 5
    assert rows_that_fit(model, [20] * 7, [make_policy("random-heads")]) == 4  # a position for each head of each layer
    assert rows_that_fit(model, [1000, 10], [make_policy("full")]) == 1  # the engine says what is too large
