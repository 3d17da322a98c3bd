"""Bodies of a megabyte that are wrong in hundreds of thousands of places: refused by the first, and nobody waits."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from leanthink.entrypoints.openai.error_responses import APIError
from leanthink.entrypoints.openai.protocol import MOST_ITEMS, MOST_SWITCHES, ChatBody, TextBody
from leanthink.entrypoints.openai.request_bodies import parse
from leanthink.entrypoints.openai.request_parsing import RequestParser
from leanthink.entrypoints.openai.settings import Settings
from leanthink.models.loading import load
from leanthink.models.prompt import ChatOptions, encode_prompt
from server import Server, serving

MEGABYTE = 2**20 - 200
PART = '{"type": "text", "text": ""}'
SAY = '{"role": "user", "content": '


def chat(messages: str, more: str = "") -> tuple[str, str]:
    return "/v1/chat/completions", f'{{"model": "tiny", "messages": {messages}{more}}}'


def prompt(value: str) -> tuple[str, str]:
    return "/v1/completions", f'{{"model": "tiny", "prompt": {value}}}'


def many(item: str) -> str:
    """A list of as many as a body has room for."""
    return "[" + ",".join([item] * (MEGABYTE // (len(item) + 1) - 100)) + "]"


def fields(count: int = MEGABYTE // 12 - 100) -> str:
    return ",".join(f'"{i:07d}":1' for i in range(count))


BODIES = {
    "empty messages": chat(many("{}")),
    "messages that are lists": chat(many("[]")),
    "many messages": chat(many(SAY + '"a"}')),
    "empty parts": chat(f"[{SAY}{many('{}')}}}]"),
    "many parts": chat(f"[{SAY}{many(PART)}}}]"),
    "unknown fields": chat(f'[{SAY}"a"}}]', f", {fields()}"),
    "unknown fields of a message": chat(f'[{{"role": "user", {fields()}}}]'),
    "switches": chat(f'[{SAY}"a"}}]', f', "chat_template_kwargs": {{{fields()}}}'),
    "stops": chat(f'[{SAY}"a"}}]', f', "stop": {many("1")}'),
    "control tokens": chat(f'[{SAY}"{"<think>a" * (MEGABYTE // 8 - 100)}"}}]'),
    "empty texts": prompt(many('""')),
    "many texts": prompt(many('"a"')),
    "negative ids": prompt(many("-1")),
    "ids": prompt(many("1")),
    "ids that are none": prompt(many("true")),
    "many lists of ids": prompt(many("[1]")),
    "lists that are empty": prompt(many("[]")),
    "texts, then numbers": prompt(many('"a",1')),
    "nulls": prompt(many("null")),
    "one text": prompt(f'"{"ab " * (MEGABYTE // 3 - 100)}"'),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Server]:
    flags = ["--model", folder, "--name", "tiny", "--policy", "window", "--kv-gib", 0.1, "--max-prompt", 200]
    with serving(tmp_path_factory.mktemp("bodies") / "log", *flags) as server:
        yield server


class Pulse(threading.Thread):
    """Asks for /health all the time; `worst` is how long that took at most, in seconds."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server, self._ends = server, threading.Event()
        self.worst, self.times = 0.0, 0

    def run(self) -> None:
        while not self._ends.is_set() or self.times < 3:
            start = time.perf_counter()
            assert self._server.request("/health")[0] == 200
            self.worst, self.times = max(self.worst, time.perf_counter() - start), self.times + 1
            time.sleep(0.005)

    def end(self) -> float:
        self._ends.set()
        self.join()
        return self.worst


@pytest.mark.parametrize(("path", "body"), BODIES.values(), ids=BODIES)
def test_a_megabyte_of_nonsense_is_refused_soon_and_health_answers_meanwhile(
    server: Server, path: str, body: str
) -> None:
    assert len(body) > 2**19
    pulse = Pulse(server)
    pulse.start()
    start = time.perf_counter()
    status, document = server.request(path, body.encode())
    seconds, worst = time.perf_counter() - start, pulse.end()
    assert status == 400, document
    assert len(json.dumps(document)) < 1000
    assert seconds < 8, "of which a text of a megabyte takes two"
    assert worst < 0.5


@pytest.mark.parametrize("name", sorted(BODIES.keys() - {"control tokens", "ids", "one text"}))
def test_a_body_is_refused_for_its_first_error_however_many_it_has(name: str) -> None:
    path, body = BODIES[name]
    kind: type[ChatBody | TextBody] = ChatBody if "chat" in path else TextBody
    with pytest.raises(ValidationError) as found:
        kind.model_validate(json.loads(body))
    assert found.value.error_count() < 10, "one for each field of one message at most"


def test_lists_are_bounded_and_what_is_at_the_bound_is_taken() -> None:
    say = {"role": "user", "content": [{"type": "text", "text": "a"}] * MOST_ITEMS}
    switches = {str(i): 1 for i in range(MOST_SWITCHES)}
    body: dict[str, Any] = {"model": "tiny", "messages": [say] + [{"role": "user", "content": "a"}] * (MOST_ITEMS - 1)}
    ChatBody.model_validate(body | {"chat_template_kwargs": switches})
    TextBody.model_validate({"model": "tiny", "prompt": ["a"] * MOST_ITEMS})
    for wrong in (
        {"messages": body["messages"] + [say]},
        {"messages": [say | {"content": say["content"] + say["content"]}]},
        {"messages": [say], "chat_template_kwargs": switches | {"one": 1}},
    ):
        with pytest.raises(APIError, match=rf"should have at most ({MOST_ITEMS}|{MOST_SWITCHES}) items"):
            parse(ChatBody, json.dumps({"model": "tiny", **wrong}).encode(), "application/json")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, "prompt: must be text, a list of texts, a list of token ids, or a list of such lists"),
        (None, "prompt is missing"),
        ([], "prompt: List should have at least 1 item"),
        ([None], "prompt.0: Input should be a valid integer"),
        (["a", 1], "prompt.1: Input should be a valid string"),
        ([[1], "a"], "prompt.1: Input should be a valid list"),
        ([[1, "a"]], "prompt.0.1: Input should be a valid integer"),
        ([True], "prompt.0: Input should be a valid integer"),
    ],
)
def test_a_prompt_of_no_kind_is_told_where_it_is_wrong(given: object, words: str) -> None:
    with pytest.raises(APIError, match=words):
        parse(TextBody, json.dumps({"model": "tiny", "prompt": given}).encode(), "application/json")


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        (b"1" * 5000, "application/json", "invalid_json"),
        (b"\xff\xfe", "application/json", "invalid_json"),
        (b'"\xff"', "application/json", "invalid_json"),
        (b"[" * 300_000, "application/json", "invalid_json"),
        (b'{"a":' * 100_000, "application/json", "invalid_json"),
        (b"[]", "application/json", "invalid_value"),
        (b"{}", "text/plain", "missing_field"),
        (b"{}", "", "missing_field"),
        (b"{}", "application/x-json", "missing_field"),
    ],
)
def test_what_is_no_json_is_refused(body: bytes, content_type: str, code: str) -> None:
    with pytest.raises(APIError) as refused:
        parse(TextBody, body, content_type)
    assert (refused.value.status, refused.value.code) == (400, code)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/vnd.api+json"])
def test_json_by_another_name_is_read(content_type: str) -> None:
    assert parse(TextBody, b'{"model": "tiny", "prompt": "a"}', content_type).prompt == "a"


def test_prompts_are_counted_before_any_is_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = RequestParser(*load("tiny"), Settings(name="tiny", max_choices=16), largest=10**6)
    monkeypatch.setattr(parser, "_ids", lambda *_: pytest.fail("tokenised"))
    with pytest.raises(APIError, match="17 prompts with n=1: at most 16 choices"):
        parser.parse(TextBody(model="tiny", prompt=["a"] * 17))


def test_a_control_token_is_spelt_once_however_often_it_stands_in_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    _, tokenizer = load("tiny")
    calls, encode = [0], type(tokenizer).__call__

    def counted(self: Any, *texts: Any, **options: Any) -> Any:
        calls[0] += 1
        return encode(self, *texts, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    text = "".join(f"<think>{i}</think>" for i in range(500))
    ids = encode_prompt(tokenizer, 0, [{"role": "user", "content": text}], ChatOptions())
    assert text in tokenizer.decode(ids)
    assert calls[0] < 20


def test_the_schema_still_tells_every_field_of_a_body(server: Server) -> None:
    with urllib.request.urlopen(f"{server.url}/openapi.json", timeout=60) as page:
        schema = json.load(page)
    for path, kind in (("/v1/chat/completions", ChatBody), ("/v1/completions", TextBody)):
        asked = schema["paths"][path]["post"]["requestBody"]
        name = asked["content"]["application/json"]["schema"]["$ref"].removeprefix("#/components/schemas/")
        assert asked["required"]
        assert schema["components"]["schemas"][name]["properties"].keys() == kind.model_fields.keys() | kind.neutral


def test_who_leaves_in_the_middle_of_a_body_is_no_error_of_the_server(server: Server) -> None:
    before = len(server.lines())
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=20) as line:
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        line.sendall(f'{head}content-length: 100\r\n\r\n{{"model"'.encode())
        time.sleep(0.2)
    deadline = time.monotonic() + 10
    while not (told := [line for line in server.lines()[before:] if line.get("path") == "/v1/completions"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)  # the line of an earlier test's last request may come first
    assert [(line["status"], line["level"], "traceback" in line) for line in told] == [(499, "info", False)]


def test_a_name_that_a_page_has_given_this_machine_is_not_answered(server: Server) -> None:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
    for path, asked in (("/v1/completions", body), ("/v1/models", None), ("/health", None), ("/viewer/", None)):
        status, document = server.request(path, asked, headers={"host": "evil.example:8000"})
        assert (status, document["error"]["code"]) == (403, "host_not_allowed")
        assert "--allowed-hosts" in document["error"]["message"]
    for host in ("localhost", "127.0.0.1:1", "[::1]:8000", "app.localhost"):
        assert server.request("/v1/completions", body, headers={"host": host})[0] == 200


def test_names_that_are_allowed_are_answered(tmp_path: Path, folder: Path) -> None:
    flags = ["--model", folder, "--name", "tiny", "--policy", "window", "--kv-gib", 0.1]
    with serving(tmp_path / "log", *flags, "--allowed-hosts", '["api.example.com", "*.lan"]') as server:
        for host, status in (("api.example.com", 200), ("gpu.lan:80", 200), ("localhost", 200), ("evil.example", 403)):
            assert server.request("/health", headers={"host": host})[0] == status
