"""What a chat's body says of its prompt and its thought: template switches, stop strings, control tokens, tags."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from leanthink.data.think_tags import think_tags
from leanthink.engine.engine import Engine
from leanthink.engine.outputs import Completion
from leanthink.engine.request import Request
from leanthink.entrypoints.openai.dispatcher import ChoiceUpdate
from leanthink.entrypoints.openai.error_responses import APIError
from leanthink.entrypoints.openai.protocol import ChatBody, TextBody
from leanthink.entrypoints.openai.request_parsing import RequestParser
from leanthink.entrypoints.openai.responses import ResponseBuilder, usage
from leanthink.entrypoints.openai.settings import Settings
from leanthink.models.prompt import ChatOptions, encode_prompt
from leanthink.utils.errors import UsageError
from models import make_model
from test_prompt import OPEN_CHAT, TOKENIZERS
from test_tags import TEMPLATE, bytes_of, make_tokenizer, play

TOKENIZER = TOKENIZERS["bytes"]
CHAT: Any = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def make_parser(tokenizer: Any = TOKENIZER, **chat: Any) -> RequestParser:
    settings = Settings(name="m", policy="full", budget=None, chat=ChatOptions(**chat))
    return RequestParser(make_model(vocab_size=500), tokenizer, settings, largest=9999)


def read(parser: RequestParser, **fields: Any) -> Request:
    (request,) = parser.parse(ChatBody(**(CHAT | fields)))
    return request


def ids_of(prompt: Any, **chat: Any) -> tuple[int, ...]:
    return tuple(encode_prompt(TOKENIZER, 0, prompt, ChatOptions(**chat)))


def test_switches_of_a_body_go_over_those_of_the_server_and_unknown_ones_change_nothing() -> None:
    off, on = {"enable_thinking": False}, {"enable_thinking": True}
    assert read(make_parser(), chat_template_kwargs=off).prompt_ids == ids_of("hello", chat_template_kwargs=off)
    assert read(make_parser(), chat_template_kwargs=off).starts_in_answer
    quiet = make_parser(chat_template_kwargs=off)
    assert read(quiet).prompt_ids == ids_of("hello", chat_template_kwargs=off)
    assert read(quiet, chat_template_kwargs=on).prompt_ids == ids_of("hello")
    assert read(make_parser(), chat_template_kwargs={"thinking": True}).prompt_ids == ids_of("hello")


def test_what_is_no_switch_is_refused_by_name() -> None:
    with pytest.raises(APIError, match="'chat_template' is no switch") as refused:
        read(make_parser(), chat_template_kwargs={"chat_template": "{{ messages }}"})
    assert refused.value.document()["error"]["param"] == "chat_template_kwargs"
    with pytest.raises(ValidationError):
        ChatBody(**CHAT, chat_template_kwargs=[1])


def test_a_seed_of_minus_1_is_drawn_like_one_that_is_left_out() -> None:
    parser = make_parser()
    assert len({read(parser, seed=seed).sampling.seed for seed in (-1, -1, None, None)}) == 4


def test_no_effort_is_a_thought_that_the_template_leaves_out() -> None:
    off = ids_of("hello", chat_template_kwargs={"enable_thinking": False})
    for server in (make_parser(), make_parser(chat_template_kwargs={"enable_thinking": True})):
        assert read(server, reasoning_effort="none").prompt_ids == off
        assert read(server, reasoning_effort="low").prompt_ids == ids_of("hello")
    assert read(make_parser(), reasoning_effort="none", chat_template_kwargs={"thinking": 1}).prompt_ids == off


def test_no_effort_is_refused_where_the_thought_would_come_all_the_same() -> None:
    asked: list[tuple[RequestParser, ChatBody | TextBody]] = [
        (make_parser(make_tokenizer(template=TEMPLATE)), ChatBody(**CHAT, reasoning_effort="none")),
        (make_parser(), ChatBody(**CHAT, reasoning_effort="none", chat_template_kwargs={"enable_thinking": True})),
        (make_parser(), TextBody(model="m", prompt="a", reasoning_effort="none")),
    ]
    for parser, body in asked:
        with pytest.raises(APIError, match="the thought would come all the same") as refused:
            parser.parse(body)
        assert refused.value.param == "reasoning_effort"


def test_a_server_that_no_chat_could_ask_does_not_start() -> None:
    with pytest.raises(UsageError, match="has no 'enable_thinkin'"):
        make_parser(chat_template_kwargs={"enable_thinkin": False})


def test_a_server_whose_model_asks_for_a_sampling_that_there_is_not_does_not_start() -> None:
    model = make_model(vocab_size=500)
    model.generation_config.top_p = 0.0
    with pytest.raises(UsageError, match=r"top_p=0\.0: must be above 0"):
        RequestParser(model, TOKENIZER, Settings(name="m", policy="full", budget=None), largest=9999)


@pytest.mark.parametrize("switch", [0, 10**9, "x", [1]])
def test_a_switch_that_breaks_the_template_is_refused(switch: Any) -> None:
    template = "{{ 100 // effort }}{% for i in range(effort) %}{% endfor %}"
    with pytest.raises(APIError, match="refused by the model's chat template"):
        read(make_parser(make_tokenizer(template=template)), chat_template_kwargs={"effort": switch})


@pytest.mark.parametrize(
    ("body", "field"),
    [(ChatBody(**CHAT), "messages"), (TextBody(model="m", prompt="hi<|im_end|>"), "prompt"),
     (TextBody(model="m", prompt=[500]), "prompt")],
)  # fmt: skip
def test_a_token_that_the_model_has_not_is_refused(body: ChatBody | TextBody, field: str) -> None:
    settings = Settings(name="m", policy="full", budget=None)
    parser = RequestParser(make_model(vocab_size=260), TOKENIZER, settings, largest=9999)
    with pytest.raises(APIError, match=r"the model knows 0 to 259; (the tokenizer calls it|give other ids)") as refused:
        parser.parse(body)
    assert refused.value.param == field


def test_the_servers_system_prompt_stands_before_chats_that_have_none() -> None:
    parser, own = make_parser(system_prompt="Be brief."), {"role": "system", "content": "Be long."}
    assert read(parser).prompt_ids == ids_of("hello", system_prompt="Be brief.")
    messages = [own, *CHAT["messages"]]
    assert read(parser, messages=messages).prompt_ids == ids_of(messages)


def test_control_tokens_in_messages_are_text_unless_that_is_asked_for() -> None:
    assert read(make_parser(), messages=OPEN_CHAT).prompt_ids == ids_of(OPEN_CHAT)
    bare = ids_of(OPEN_CHAT, split_special_tokens=False)
    assert read(make_parser(), messages=OPEN_CHAT, split_special_tokens=False).prompt_ids == bare
    assert read(make_parser(split_special_tokens=False), messages=OPEN_CHAT).prompt_ids == bare
    (plain,) = make_parser().parse(TextBody(model="m", prompt="a<|im_end|>"))
    assert plain.prompt_ids[-1] == TOKENIZER.eos_token_id


@pytest.mark.parametrize(("given", "searched"), [(None, False), (False, False), (True, True)])
def test_stop_strings_of_a_chat_are_looked_for_in_the_answer_unless_that_is_asked_for(
    given: bool | None, searched: bool
) -> None:
    assert read(make_parser(), stop="a", stop_in_thought=given).sampling.stop_in_thought is searched
    (plain,) = make_parser().parse(TextBody(model="m", prompt="a", stop="a"))
    assert plain.sampling.stop_in_thought


def test_tokens_of_a_text_without_a_thought_are_not_told_as_thought() -> None:
    tags, names = think_tags(make_tokenizer()), ("peak_slots", "kept_slots", "slot_steps", "evictions")
    counts: Any = dict.fromkeys((*names, "peak_kv_bytes", "full_kv_bytes", "reserved_kv_bytes"), 0)
    ends: Any = {"answer_tokens": 0, "finish_reason": "stop", "prompt_tokens": 1, "answer": "", "thought_tokens": 2}
    done = {
        i: Completion(text=text, thought=text, token_ids=(1, 2), cached_tokens=5 - i, **ends, **counts)
        for i, text in enumerate(("yes", "<think>so"))
    }
    parser = make_parser(make_tokenizer(template="{{ messages[0].content }}"))
    told = usage([read(parser), read(parser)], done, tags)
    assert told["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert told["prompt_tokens_details"] == {"cached_tokens": 4}, "what no choice had to compute, each prompt once"


def told(text: str, *, stream: bool) -> list[Any]:
    """The choices, whole or in chunks, of a chat in which a model without announced tags writes this text."""
    tokenizer, model = make_tokenizer(template=TEMPLATE), make_model()
    play(model, bytes_of(text))
    parser = RequestParser(model, tokenizer, Settings(name="m", policy="full", budget=None), largest=99)
    requests = parser.parse(ChatBody(**CHAT, temperature=0, max_tokens=40, logprobs=True, stream=stream))
    how: dict[str, Any] = {"kv_events": False, "with_usage": False, "tags": parser.tags}
    answer = ResponseBuilder(chat=True, model="m", requests=requests, tokenizer=tokenizer, **how)
    engine, sent = Engine(model, tokenizer, slots=99), b""
    engine.add_request(requests[0], streamed=True)
    while engine.unfinished:
        progress = engine.step()
        updates = [ChoiceUpdate(0, step, progress.finished.get(0), None) for step in progress.steps.values()]
        answer.note(updates)
        sent += answer.chunks(updates)
    chunks = [json.loads(line[6:])["choices"][0] for line in sent.decode().split("\n\n") if line]
    return chunks if stream else [answer.document()["choices"][0]]


@pytest.mark.parametrize(
    ("text", "thought", "rest"),
    [("yes", "", "yes"), ("<th", "", "<th"), ("<think>so</think>yes", "<think>so</think", ">yes"), ("", "", "")],
)
@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_go_with_the_text_of_their_tokens(text: str, thought: str, rest: str, stream: bool) -> None:
    parts = [part["logprobs"] for part in told(text, stream=stream) if part.get("logprobs")]
    names = {"reasoning_content": thought, "content": rest + "<|end|>"}
    for name, written in names.items():
        assert "".join(entry["token"] for part in parts for entry in part.get(name, [])) == written
