"""A conversation through clients that people use, streamed and not: each asks, sends back what came, and goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openai
import pytest

from command_line import ENVIRONMENT
from server import Server, serving

CLIENT = Path(__file__).with_name("litellm_client.py")
QUESTION, NEXT = "Find x: x + 57 = 65.", "And 9 + 4?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
SHORT = {"max_tokens": 20}  # the second turn: the embedded reasoner has learned single questions only


@dataclass(frozen=True)
class Turn:
    """What the server says without a client in between."""

    thought: str
    answer: str
    prompt_tokens: int
    thought_tokens: int

    @property
    def texts(self) -> tuple[str, str]:
        return self.thought, self.answer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = ["--max-slots", 500, "--max-new-tokens", 400, "--max-num-seqs", 8, "--kv-gib", 0.25]
    budget = ["--budget", 64, "--recent-window", 8, "--eviction-interval", 16, "--max-answer-slots", 200]
    with serving(tmp_path_factory.mktemp("clients") / "log", *limits, *budget) as server:
        yield server


@pytest.fixture(scope="module")
def first(server: Server) -> Turn:
    return turn(server, MESSAGES)


@pytest.fixture(scope="module")
def second(server: Server, first: Turn) -> Turn:
    answer = {"role": "assistant", "content": first.answer, "reasoning_content": first.thought}
    return turn(server, [*MESSAGES, answer, {"role": "user", "content": NEXT}], **SHORT)


def turn(server: Server, messages: Any, **fields: Any) -> Turn:
    status, document = server.chat(messages=messages, temperature=0, **fields)
    assert status == 200, document
    message, usage = document["choices"][0]["message"], document["usage"]
    reasoning_tokens = usage["completion_tokens_details"]["reasoning_tokens"]
    return Turn(message["reasoning_content"], message["content"], usage["prompt_tokens"], reasoning_tokens)


def joined(chunks: Any, *names: str) -> tuple[str, ...]:
    """The text that a stream's deltas have under each name."""
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    return tuple("".join(getattr(delta, name, None) or "" for delta in deltas) for name in names)


def test_the_conversation_is_worth_having(first: Turn, second: Turn) -> None:
    assert first.thought
    assert r"\boxed{8}" in first.answer
    assert second.prompt_tokens > first.prompt_tokens + len(first.answer)


def test_openai_sends_back_the_dump_of_what_came(server: Server, first: Turn, second: Turn) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
    ask: dict[str, Any] = {"model": "tiny", "temperature": 0}
    message: Any = client.chat.completions.create(**ask, messages=MESSAGES).choices[0].message
    assert (message.reasoning, message.content) == first.texts
    stream = client.chat.completions.create(**ask, messages=MESSAGES, stream=True)
    assert joined(stream, "reasoning", "content") == first.texts
    ask |= {"messages": [*MESSAGES, message.model_dump(), {"role": "user", "content": NEXT}], **SHORT}
    more: Any = client.chat.completions.create(**ask)
    assert (more.choices[0].message.reasoning_content, more.choices[0].message.content) == second.texts
    assert more.usage.prompt_tokens == second.prompt_tokens
    assert joined(client.chat.completions.create(**ask, stream=True), "reasoning_content", "content") == second.texts


def test_langchain_with_no_tools_bound(server: Server, first: Turn, second: Turn) -> None:
    langchain = pytest.importorskip(
        "langchain_openai", reason="langchain-openai is not installed: leanthink[dev] has it"
    )
    model = langchain.ChatOpenAI(
        base_url=f"{server.url}/v1", api_key="unused", model="tiny", temperature=0, max_retries=0
    )
    chat = model.bind_tools([])
    answer = chat.invoke(QUESTION)
    assert answer.content == first.answer
    assert answer.usage_metadata["output_token_details"]["reasoning"] == first.thought_tokens
    assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == first.answer
    more = [("user", QUESTION), answer, ("user", NEXT)]
    assert chat.bind(**SHORT).invoke(more).usage_metadata["input_tokens"] == second.prompt_tokens
    assert "".join(chunk.content for chunk in chat.bind(**SHORT).stream(more)) == second.answer


@pytest.mark.slow  # its import alone takes seconds
def test_litellm_sends_back_the_dump_of_what_came(server: Server, first: Turn, second: Turn) -> None:
    if find_spec("litellm") is None:
        pytest.skip("litellm is not installed: leanthink[dev] has it")
    command = [sys.executable, CLIENT, server.url, QUESTION, NEXT]
    environment = {**ENVIRONMENT, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it fetches a list of prices
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert tuple(told["whole"]) == tuple(told["streamed"]) == first.texts
    assert tuple(told["more"]) == tuple(told["more streamed"]) == second.texts
    assert told["prompt_tokens"] == second.prompt_tokens
