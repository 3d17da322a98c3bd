"""The server as a process, driven by the clients that people use."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import openai
import pytest

import leanthink
from leanthink import Budget, Sampling
from leanthink.models.tiny.tokenizer import ASSISTANT, THINK, USER
from server import Server, serving

QUESTION = "What is 12 times 13?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
TIGHT = {"budget": 32, "recent_window": 8, "eviction_interval": 16, "max_answer_slots": 200}
KEY = "sk-test-1"
README = Path(__file__).parent.parent / "README.md"
PAGE = README.parent / "docs" / "serving.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    limits = [
        "--max-slots",
        500,
        "--max-new-tokens",
        400,
        "--max-prompt",
        200,
        "--max-budget",
        300,
        "--max-num-seqs",
        8,
    ]
    with serving(folder / "log", *limits, "--queue", 24, "--max-answer-slots", 200, "--kv-gib", 0.25) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


loaded = cache(lambda: leanthink.load("tiny"))


@cache
def alone(*samplings: Sampling) -> list[leanthink.Completion]:
    """The same question by `generate`, recorded, once for each of these samplings."""
    budget = Budget(slots=32, recent_window=8, eviction_interval=16, max_answer_slots=200)
    questions = [QUESTION] * len(samplings)
    return leanthink.generate(*loaded(), questions, budget=budget, sampling=list(samplings), record=True)


def greedy() -> leanthink.Completion:
    """The same question by `generate`, greedily, with all that can be told."""
    (done,) = alone(Sampling(max_new_tokens=400, logprobs=3))
    return done


def wait_until(condition: Any, seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


# -- answers -----------------------------------------------------------------------------------------------------------


def test_a_chat_is_answered_as_generate_answers_it(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0, extra_body=TIGHT)
    expected, message = greedy(), done.choices[0].message
    assert message.content == expected.answer
    assert message.reasoning_content == message.reasoning == expected.thought  # type: ignore[attr-defined]
    assert done.choices[0].finish_reason == expected.finish_reason
    assert done.usage is not None
    assert done.usage.prompt_tokens == expected.prompt_tokens
    assert done.usage.completion_tokens == len(expected.token_ids)
    assert done.usage.completion_tokens_details is not None
    assert done.usage.completion_tokens_details.reasoning_tokens == expected.thought_tokens
    kv: Any = done.usage.model_extra["kv"]  # type: ignore[index]
    for name in ("peak_slots", "kept_slots", "evictions", "peak_kv_bytes", "full_kv_bytes"):
        assert kv[name] == getattr(expected, name)
    assert kv["evictions"] > 0
    assert kv["peak_kv_bytes"] < kv["full_kv_bytes"]


def test_a_stream_brings_the_same_piece_by_piece(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, stream=True, stream_options={"include_usage": True},
        extra_body=TIGHT,
    )  # fmt: skip
    *chunks, last = list(stream)
    expected, deltas = greedy(), [chunk.choices[0].delta for chunk in chunks]
    thoughts = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
    contents = [delta.content or "" for delta in deltas]
    assert ("".join(thoughts), "".join(contents)) == (expected.thought, expected.answer)
    assert thoughts == [getattr(delta, "reasoning", None) or "" for delta in deltas]
    kinds = ["thought" if thought else "answer" for thought, content in zip(thoughts, contents, strict=True)
             if thought or content]  # fmt: skip
    assert [kind for kind, _ in groupby(kinds)] == ["thought", "answer"]
    assert len(kinds) > 50
    assert deltas[0].role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == len(expected.token_ids)
    assert len({chunk.id for chunk in chunks}) == 1


def test_many_asynchronous_clients_get_what_each_gets_alone(client: openai.OpenAI) -> None:
    samplings = [
        Sampling(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, seed=seed, max_new_tokens=60) for seed in range(10)
    ]

    async def all_at_once() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="unused", max_retries=0) as many:
            asked = [
                many.chat.completions.create(
                    model="tiny", messages=MESSAGES, temperature=0.8, top_p=0.9, seed=sampling.seed,
                    max_completion_tokens=60, extra_body={"top_k": 20, "min_p": 0.01, **TIGHT},
                )
                for sampling in samplings
            ]  # fmt: skip
            return await asyncio.gather(*asked)

    answers = asyncio.run(all_at_once())
    for expected, answer in zip(alone(*samplings), answers, strict=True):
        assert answer.choices[0].message.reasoning_content == expected.thought
        assert answer.choices[0].finish_reason == "length"
    assert len({answer.id for answer in answers}) == 10


def test_an_asynchronous_stream(client: openai.OpenAI) -> None:
    async def streamed() -> str:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="unused", max_retries=0) as many:
            stream = await many.chat.completions.create(
                model="tiny", messages=MESSAGES, temperature=0, stream=True, extra_body=TIGHT
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(streamed()) == greedy().answer


def test_n_choices_have_the_seeds_that_follow(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {
        "model": "tiny",
        "messages": MESSAGES,
        "temperature": 1,
        "max_tokens": 40,
        "extra_body": TIGHT,
    }
    three = client.chat.completions.create(**ask, n=3, seed=5)
    texts = [choice.message.reasoning_content for choice in three.choices]  # type: ignore[attr-defined]
    for i, text in enumerate(texts):
        one = client.chat.completions.create(**ask, seed=5 + i)
        assert one.choices[0].message.reasoning_content == text  # type: ignore[attr-defined]
    stream = client.chat.completions.create(**ask, n=3, seed=5, stream=True)
    found = ["", "", ""]
    for chunk in stream:
        found[chunk.choices[0].index] += getattr(chunk.choices[0].delta, "reasoning_content", None) or ""
    assert found == texts
    assert three.usage is not None
    assert (three.usage.prompt_tokens, three.usage.completion_tokens) == (24, 120)


@pytest.mark.parametrize(
    ("fields", "thought", "answer"), [({"stop_in_thought": True}, "In steps,", ""), ({}, None, "The first")]
)
def test_a_stop_string_ends_the_answer_before_it_or_the_thought_too_where_that_is_asked_for(
    client: openai.OpenAI, fields: dict[str, Any], thought: str | None, answer: str
) -> None:
    ask: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "stop": [" checking", " row", ""],
                           "max_tokens": 10**12}  # fmt: skip
    assert greedy().thought.startswith("In steps, checking all.")
    assert greedy().answer.startswith("The first row is")
    fields = TIGHT | fields
    whole = client.chat.completions.create(**ask, extra_body=fields)
    message: Any = whole.choices[0].message
    expected = (answer, greedy().thought if thought is None else thought)
    assert (message.content, message.reasoning_content) == expected
    assert whole.choices[0].finish_reason == "stop"
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**ask, stream=True, extra_body=fields)]
    streamed = [
        "".join(getattr(delta, name, None) or "" for delta in deltas) for name in ("content", "reasoning_content")
    ]
    assert tuple(streamed) == expected


def test_log_probabilities_of_a_chat(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 30}
    whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
    told: Any = whole.choices[0].logprobs
    assert [entry["logprob"] for entry in told.reasoning_content] == pytest.approx((greedy().logprobs or ())[:30])
    assert all(len(entry["top_logprobs"]) == 3 for entry in told.reasoning_content)
    first = told.reasoning_content[0]
    assert (first["token"], first["bytes"]) == ("I", [73])
    assert first["top_logprobs"][0]["token"] == "I"
    assert told.content == []
    streamed = []
    for chunk in client.chat.completions.create(**ask, logprobs=True, top_logprobs=3, stream=True):
        some: Any = chunk.choices[0].logprobs
        streamed += some.reasoning_content if some else []
    assert streamed == told.reasoning_content


def test_completions_continue_a_text_as_it_is(client: openai.OpenAI) -> None:
    prompt, expected = f"<|user|>{QUESTION}<|assistant|><think>\n", greedy().text
    ask: dict[str, Any] = {"model": "tiny", "temperature": 0, "extra_body": TIGHT}
    stream = client.completions.create(**ask, prompt=prompt, max_tokens=400, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == expected
    assert "</think>" in expected
    ids = [USER, *QUESTION.encode(), ASSISTANT, THINK, 10]
    assert client.completions.create(**ask, prompt=ids, max_tokens=9).choices[0].text == expected[:9]
    two = client.completions.create(**ask, prompt=[prompt, "12 +"], max_tokens=5, logprobs=2)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[0].text == expected[:5]
    told = two.choices[0].logprobs
    assert told is not None
    assert "".join(told.tokens or []) == expected[:5]
    assert told.text_offset == [0, 1, 2, 3, 4]
    assert all(len(entry or {}) == 2 for entry in told.top_logprobs or [])


NOTHING: dict[str, Any] = {
    "stop": "",
    "top_k": -1,
    "seed": -1,
    "top_logprobs": None,
    "stream": None,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "max_tokens": 40,
    "max_completion_tokens": 40,
    "logit_bias": {},
    "repetition_penalty": 1.0,
    "tools": [],
    "tool_choice": "none",
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "user": "me",
    "metadata": {"chat": "1"},
    "store": False,
    "service_tier": "auto",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "echo": False,
    "reasoning_effort": "high",
    "functions": None,
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_fields_that_change_nothing_change_nothing(server: Server, path: str) -> None:
    asked = {"messages": MESSAGES} if "chat" in path else {"prompt": QUESTION}
    body = {"model": "tiny", "temperature": 0, "max_tokens": 40, **asked}
    status, plain = server.request(path, body)
    assert server.request(path, body | NOTHING)[1]["choices"] == plain["choices"]
    assert status == 200


def test_a_completion_keeps_the_bytes_of_its_tokens_and_every_alternative(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "tiny", "prompt": [0xC3], "max_tokens": 12, "temperature": 2, "seed": 7}
    done = client.completions.create(**ask, logprobs=20).choices[0]
    told = done.logprobs
    assert told is not None
    assert all(len(entry or {}) == 20 for entry in told.top_logprobs or [])
    assert any(token.startswith("bytes:\\x") for token in told.tokens or [])
    streamed = [chunk.choices[0].logprobs for chunk in client.completions.create(**ask, logprobs=20, stream=True)]
    assert [token for part in streamed if part for token in part.tokens or []] == told.tokens


def test_models_tell_what_can_be_asked(client: openai.OpenAI) -> None:
    (card,) = client.models.list().data
    assert card == client.models.retrieve("tiny")
    told: Any = card.model_extra["leanthink"]  # type: ignore[index]
    assert set(told["policies"]) == {name for name, kind in leanthink.POLICIES.items() if not kind.labelled}
    assert told["limits"]["max_budget"] == 300
    with pytest.raises(openai.NotFoundError, match="'other' is not served here, 'tiny' is"):
        client.models.retrieve("other")


# -- the events of a viewer --------------------------------------------------------------------------------------------


def test_events_mean_what_a_trace_means(client: openai.OpenAI) -> None:
    body = {**TIGHT, "kv_events": True}
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, stream=True, extra_body=body
    )
    facts, *told = [chunk.model_extra["leanthink"] for chunk in stream if "leanthink" in (chunk.model_extra or {})]
    expected = greedy()
    assert facts["prompt_tokens"] == expected.prompt_tokens
    assert facts["budget"] == {"slots": 32, "window": 8, "interval": 16, "answer": 200}
    assert [token["token_id"] for token in told] == list(expected.token_ids)
    assert [token["position"] - expected.prompt_tokens for token in told] == list(range(len(told)))
    assert "".join(token["text"] for token in told) == expected.text
    evicted_at: list[int | None] = [None] * len(told)
    importance: dict[int, list[float]] = {}
    for token in told:
        if "eviction" not in token:
            continue
        for position in token["eviction"]["positions"]:
            evicted_at[position - expected.prompt_tokens] = token["eviction"]["evicted_at"]
        for position, *scores in token["eviction"]["importance"]:
            assert position not in importance
            importance[position] = scores
    assert evicted_at == list(expected.evicted_at or ())
    assert sum(token["in_thought"] for token in told) == expected.thought_tokens
    assert all(len(scores) == len(facts["horizons"]) for scores in importance.values())
    gone = {index + expected.prompt_tokens for index, at in enumerate(evicted_at) if at is not None}
    assert gone <= importance.keys()
    held = expected.prompt_tokens
    for token in told:  # the slots follow from the events: one for each token but the last, less what was evicted
        held -= len(token.get("eviction", {}).get("positions", ()))
        assert token["slots"] == held
        held += 1


def test_the_page_on_serving_is_true(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    page, readme = (path.read_text().replace("http://127.0.0.1:8000", server.url) for path in (PAGE, README))
    readme = readme.replace("MODEL", "tiny")
    blocks = {
        language: re.findall(rf"^```{language}\n(.*?)^```", page, re.M | re.S)
        for language in ("bash", "python", "json")
    }
    blocks["bash"] += re.findall(r"^```bash\n(.*?)^```", readme, re.M | re.S)
    lines = [line for block in blocks["bash"] for line in block.replace("\\\n", " ").splitlines()]
    curls = [shlex.split(line) for line in lines if line.startswith("curl ")]
    assert len(curls) == 5
    for words in curls:
        told = subprocess.run(
            [*words, "--silent", "--fail-with-body"], capture_output=True, text=True, check=True
        ).stdout
        assert "1776" in told or words[-1].endswith("/metrics") or "tiny" in told
    (code,) = blocks["python"]
    exec(code, {})
    assert "1776" in capfd.readouterr().out
    facts, token = (json.loads(block) for block in blocks["json"])
    _, document = server.chat(max_tokens=5)
    assert document["usage"]["kv"].keys() == {name for name in document["usage"]["kv"] if f"`{name}`" in page}
    asked = json.dumps({"model": "tiny", "messages": MESSAGES, "stream": True, "kv_events": True, **TIGHT}).encode()
    request = urllib.request.Request(f"{server.url}/v1/chat/completions", asked, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        events = [json.loads(line[6:]) for line in answer if line.startswith(b"data: {")]
    seen = [event["leanthink"] for event in events if "leanthink" in event]
    assert seen[0].keys() == facts.keys()
    assert all(event.keys() | {"eviction"} == token.keys() for event in seen[1:])


def test_the_viewer_is_there_and_runs_nothing_but_its_own_files(server: Server) -> None:
    with urllib.request.urlopen(f"{server.url}/viewer/", timeout=60) as page:
        assert "text/html" in page.headers["content-type"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff"


# -- what is refused ---------------------------------------------------------------------------------------------------

REFUSED = [
    ({"colour": 1}, "colour", "colour is not a field that this server honours"),
    ({"tools": [{"type": "function"}]}, "tools", "tools: only [] is honoured here: give that, or leave it out"),
    ({"tool_choice": "required"}, "tool_choice", 'only "none" or "auto"'),
    ({"response_format": {"type": "json_object"}}, "response_format", 'only {"type": "text"}'),
    ({"logit_bias": {"5": -100}}, "logit_bias", "only {}"),
    ({"store": True}, "store", "only false"),
    ({"echo": True}, "echo", "only false"),
    ({"reasoning_effort": "none"}, "reasoning_effort", "has no switch enable_thinking"),
    ({"reasoning_effort": "hihg"}, "reasoning_effort", "'high'"),
    ({"user": 3}, "user", "only a string"),
    ({"stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats", "only false"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type", "be 'text'"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "has to say something"),
    ({"messages": [{"role": "user", "content": "hi", "colour": "x"}]}, "messages.0.colour", "not a field"),
    ({"frequency_penalty": 0.5}, "frequency_penalty", "only 0 is honoured"),
    ({"temperature": "1"}, "temperature", "valid number"),
    ({"temperature": 3}, "temperature", "got 3"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 17}, "n", "at most 16 choices"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "give one of them"),
    ({"top_k": -2}, "top_k", "greater than or equal to -1"),
    ({"seed": -2}, "seed", "greater than or equal to -1"),
    ({"top_logprobs": 3}, "top_logprobs", "need logprobs=true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
    ({"budget": 301}, "budget", "at most 300 slots are allowed"),
    ({"recent_window": 300}, "recent_window", "recent_window=300 is larger than slots=256"),
    ({"window": 3}, "window", "not a field"),
    ({"messages": [{"role": "user", "content": "x" * 150}]}, None, "154 of them prompt, and at most 500 are allowed"),
    ({"policy": "full", "budget": 10}, "budget", "leave out budget"),
    ({"policy": "horizonn"}, "policy", "Did you mean 'horizon'?"),
    ({"policy": "snapkv:kernel=4"}, "policy", "kernel odd"),
    ({"kv_events": True}, "kv_events", "add stream=true"),
    ({"kv_events": True, "stream": True, "policy": "snapkv"}, "policy", "in every head"),
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages", "refused by the model's chat template"),
    ({"messages": [{"role": "user", "content": "x" * 300}]}, None, "at most 200 are allowed: shorten it"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content", "half of a surrogate pair"),
    ({"seed": 2**63}, "seed", "less than"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_not_honoured_is_refused_by_name(server: Server, fields: Any, param: str | None, words: str) -> None:
    status, document = server.chat(**fields)
    assert status == 400, document
    assert words in document["error"]["message"]
    assert document["error"]["type"] == "invalid_request_error"
    if param is not None:
        assert document["error"]["param"] == param


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b"[" * 100_000, 400, "invalid_json"),
        (b"", 400, "missing_field"),
        (b"[]", 400, "invalid_value"),
        (
            b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
            400,
            "invalid_json",
        ),
        (b" " * (2**20 + 1), 413, "body_too_large"),
    ],
    ids=["cut off", "not UTF-8", "deep", "empty", "a list", "NaN", "too large"],
)
def test_a_body_that_cannot_be_read_is_refused(server: Server, body: bytes, status: int, code: str | None) -> None:
    got, document = server.request("/v1/chat/completions", body)
    assert (got, document["error"]["code"]) == (status, code)


def test_a_body_of_100_megabytes_is_refused_and_the_server_lives(server: Server) -> None:
    before = server_megabytes(server)
    assert server.request("/v1/chat/completions", b"x" * 10**8)[0] == 413
    announced = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n"
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=60) as line:
        line.sendall(f"{announced}content-type: application/json\r\n\r\n".encode())
        for _ in range(40):  # 2.5 MB in chunks, without a length
            line.sendall(b"10000\r\n" + b" " * 2**16 + b"\r\n")
        line.sendall(b"0\r\n\r\n")
        assert b" 413 " in line.recv(100)
    assert server_megabytes(server) - before < 50
    assert server.request("/health") == (200, {"status": "ok"})


def server_megabytes(server: Server) -> float:
    fields = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return int(next(line for line in fields if line.startswith("VmRSS")).split()[1]) / 1024


def test_text_that_is_not_sent_as_json_is_refused(server: Server) -> None:
    status, document = server.request(
        "/v1/chat/completions", b'{"model": "tiny"}', headers={"content-type": "text/plain"}
    )
    assert status == 400
    assert "error" in document


@pytest.mark.parametrize(("path", "status"), [("/", 404), ("/v1/chat/completions", 405), ("/v1/nothing", 404)])
def test_errors_of_the_address_have_the_same_shape(server: Server, path: str, status: int) -> None:
    got, document = server.request(path)
    assert got == status
    assert document["error"]["message"]


def test_another_model_is_not_found(server: Server) -> None:
    status, document = server.chat(model="other")
    assert (status, document["error"]["code"]) == (404, "model_not_found")


# -- load and leaving --------------------------------------------------------------------------------------------------


def test_more_than_fit_are_told_when_to_come_again(server: Server, client: openai.OpenAI) -> None:
    async def flood() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="unused", max_retries=0) as many:
            asked = [
                many.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=30, n=4, temperature=1)
                for _ in range(12)
            ]
            return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(flood())
    refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
    assert len(refused) == 4  # of 12 x 4 choices, 8 run and 24 wait
    assert all(1 <= int(error.response.headers["retry-after"]) <= 60 for error in refused)
    assert all(error.code == "queue_full" for error in refused)
    assert sum(len(answer.choices) for answer in answers if not isinstance(answer, Exception)) == 32


def test_who_leaves_frees_the_slots_at_once(server: Server, client: openai.OpenAI) -> None:
    gone = 'leanthink_choices_total{finish_reason="gone"}'
    before = server.metrics().get(gone, 0)
    stream = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, temperature=1, n=3)
    for _ in range(10):
        next(stream)
    assert server.metrics()["leanthink_slots_reserved"] > 0
    stream.close()
    wait_until(lambda: server.metrics().get(gone, 0) == before + 3)
    wait_until(lambda: server.metrics()["leanthink_slots_reserved"] == 0)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(model="tiny", messages=MESSAGES, temperature=0)
    wait_until(lambda: server.metrics().get(gone, 0) == before + 4)
    wait_until(lambda: server.metrics()["leanthink_slots_reserved"] == 0)


def test_what_prompts_begin_with_alike_is_computed_once_and_told(server: Server, client: openai.OpenAI) -> None:
    before, names = server.metrics(), [f"leanthink_prefix_cache_{kind}_total" for kind in ("queries", "hits")]
    ask: Any = {"model": "tiny", "max_tokens": 5, "extra_body": {"cache_salt": "two"}}
    done: Any = [client.completions.create(prompt=[USER] * 50 + [last], **ask) for last in (USER, THINK)]
    assert [one.usage.prompt_tokens_details.cached_tokens for one in done] == [0, 48]
    after = server.metrics()
    assert [after[name] - before[name] for name in names] == [102, 48]


def test_metrics_count_and_the_log_keeps_texts_to_itself(server: Server, client: openai.OpenAI) -> None:
    before = server.metrics()
    done = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0, extra_body=TIGHT)
    after = server.metrics()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    expected = greedy()
    assert done.choices[0].message.content == expected.answer
    assert grown('leanthink_tokens_total{kind="thought"}') == expected.thought_tokens
    assert grown('leanthink_tokens_total{kind="answer"}') == expected.answer_tokens
    assert grown("leanthink_evictions_total") == expected.evictions
    assert grown('leanthink_requests_total{path="/v1/chat/completions",status="200"}') == 1
    *_, line = (line for line in server.lines() if line.get("path") == "/v1/chat/completions")
    assert (line["event"], line["status"], line["evictions"]) == ("request", 200, expected.evictions)
    assert QUESTION not in server.log.read_text()
    assert expected.answer not in server.log.read_text()


# -- keys, timeouts, the end -------------------------------------------------------------------------------------------


def test_a_key_is_asked_for_where_one_is_set(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "keys").write_text(f"{KEY}\nsk-test-2\n")
    flags = ["--keys", tmp_path / "keys", "--model", folder, "--policy", "window", "--kv-gib", 0.1, "--name", "tiny"]
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    with serving(tmp_path / "log", *flags, "--log-text") as server:
        for header in ({}, {"authorization": "Bearer sk-test-3"}, {"authorization": f"Basic {KEY}"}):
            status, document = server.request("/v1/chat/completions", body, headers=header)
            assert (status, document["error"]["code"]) == (401, "invalid_api_key")
        assert server.request("/v1/models")[0] == 401
        for key in (KEY, "sk-test-2"):
            assert server.request("/v1/chat/completions", body, headers={"authorization": f"Bearer {key}"})[0] == 200
        assert server.request("/health")[0] == server.request("/ready")[0] == 200
        status, document = server.request(
            "/v1/chat/completions", body | {"policy": "horizon"}, headers={"authorization": f"Bearer {KEY}"}
        )
        assert (status, document["error"]["param"]) == (400, "policy")
        assert "none was given" in document["error"]["message"]
        assert any(line.get("body", {}).get("messages") == body["messages"] for line in server.lines())
        assert KEY not in server.log.read_text()


def test_time_is_up_with_what_there_is(tmp_path: Path, folder: Path) -> None:
    flags = [
        "--model",
        folder,
        "--policy",
        "window",
        "--kv-gib",
        0.1,
        "--timeout",
        1,
        "--max-num-seqs",
        1,
        "--name",
        "tiny",
    ]
    with serving(tmp_path / "log", *flags) as server:
        status, document = server.chat(temperature=0)
        assert (status, document["choices"][0]["finish_reason"]) == (200, "timeout")
        assert document["usage"]["completion_tokens"] > 10
        status, document = server.chat(temperature=0, n=2)  # the second waits for the only row
        assert (status, document["error"]["code"]) == (504, "timeout")


def test_what_runs_at_the_end_says_so_and_the_exit_code_is_0(tmp_path: Path, folder: Path) -> None:
    flags = [
        "--model",
        folder,
        "--policy",
        "window",
        "--kv-gib",
        0.1,
        "--grace",
        1,
        "--max-num-seqs",
        4,
        "--name",
        "tiny",
    ]

    async def under_load(server: Server) -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as many:
            ask: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "temperature": 0}
            long = [many.chat.completions.create(**ask) for _ in range(2)]
            short = [many.chat.completions.create(**ask, max_tokens=40)]
            answers = [asyncio.ensure_future(asked) for asked in (*long, *short)]
            streams = [await many.chat.completions.create(**ask, stream=True) for _ in range(3)]
            for stream in streams[:1]:
                await anext(stream)
            server.process.terminate()
            await asyncio.sleep(0.4)
            late = await asyncio.gather(many.chat.completions.create(**ask), return_exceptions=True)
            reasons = [[chunk.choices[0].finish_reason async for chunk in stream][-1] for stream in streams]
            return [*(await asyncio.gather(*answers)), reasons, late[0]]

    with serving(tmp_path / "log", *flags) as server:
        start = time.monotonic()
        *answers, reasons, late = asyncio.run(under_load(server))
        assert server.process.wait(timeout=30) == 0
        assert time.monotonic() - start < 20
    assert [answer.choices[0].finish_reason for answer in answers] == ["shutdown", "shutdown", "length"]
    assert reasons == ["shutdown"] * 3
    assert isinstance(late, openai.APIConnectionError | openai.InternalServerError)
