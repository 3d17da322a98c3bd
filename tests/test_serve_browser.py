"""A page in a real browser asks a server of another origin: only where the server was told to let it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from browser import started_browser
from server import Server, serving

KEY = "sk-test-1"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 12, "temperature": 0}
# What a chat client in a page does: a header that needs a preflight, and a stream read as it comes.
ASK = """async ([url, key, body]) => {
  const headers = {"content-type": "application/json", "authorization": `Bearer ${key}`, "x-stainless-lang": "js"};
  const answer = await fetch(`${url}/v1/chat/completions`, {method: "POST", headers, body: JSON.stringify(body)});
  if (!body.stream) return {status: answer.status, document: await answer.json()};
  const parts = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let part = await parts.read(); !part.done; part = await parts.read()) text += part.value;
  const events = text.trim().split("\\n\\n").map((event) => event.replace("data: ", ""));
  const deltas = events.slice(0, -1).map((event) => JSON.parse(event).choices[0].delta);
  return {last: events.at(-1), thought: deltas.map((delta) => delta.reasoning ?? "").join(""),
          id: answer.headers.get("x-request-id")};
}"""


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with started_browser() as browser:
        yield browser.new_page()


@pytest.fixture(scope="module")
def origins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Two places that serve an empty page."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "index.html").write_text("<!doctype html><title>A client</title>")
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) for _ in range(2)]
    for one in servers:
        threading.Thread(target=one.serve_forever, daemon=True).start()
    yield [f"http://127.0.0.1:{one.server_port}" for one in servers]
    for one in servers:
        one.shutdown()
        one.server_close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> list[Any]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    return ["--model", folder, "--name", "tiny", "--policy", "window", "--kv-gib", 0.1, "--keys", keys]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, flags: list[Any], origins: list[str]) -> Iterator[Server]:
    allowed = ["--allowed-origins", f'["{origins[0]}"]']
    with serving(tmp_path_factory.mktemp("allowed") / "log", *flags, *allowed) as server:
        yield server


def test_a_page_that_may_asks_streamed_and_not(server: Server, page: Any, origins: list[str]) -> None:
    page.goto(origins[0])
    _, expected = server.request("/v1/chat/completions", BODY, headers={"authorization": f"Bearer {KEY}"})
    whole = page.evaluate(ASK, [server.url, KEY, BODY])
    # Its prompt lies in the cache by now.
    expected["usage"]["prompt_tokens_details"]["cached_tokens"] = expected["usage"]["prompt_tokens"] - 1
    assert whole == {"status": 200, "document": {**expected, **{k: whole["document"][k] for k in ("id", "created")}}}
    streamed = page.evaluate(ASK, [server.url, KEY, BODY | {"stream": True}])
    assert streamed["thought"] == expected["choices"][0]["message"]["reasoning"] != ""
    assert streamed["last"] == "[DONE]"
    assert streamed["id"]


def test_a_page_that_may_reads_why_it_is_refused(server: Server, page: Any, origins: list[str]) -> None:
    page.goto(origins[0])
    for key, body, status, code in (("sk-wrong", BODY, 401, "invalid_api_key"),
                                    (KEY, BODY | {"colour": 1}, 400, "unknown_field")):  # fmt: skip
        told = page.evaluate(ASK, [server.url, key, body])
        assert (told["status"], told["document"]["error"]["code"]) == (status, code)


def test_a_page_of_another_origin_is_refused_by_the_browser(server: Server, page: Any, origins: list[str]) -> None:
    page.goto(origins[1])
    with pytest.raises(Exception, match="Failed to fetch"):
        page.evaluate(ASK, [server.url, KEY, BODY])


def test_no_page_may_ask_unless_the_server_was_told_so(
    tmp_path: Path, flags: list[Any], page: Any, origins: list[str]
) -> None:
    page.goto(origins[0])
    with serving(tmp_path / "log", *flags) as server:
        assert server.request("/v1/chat/completions", BODY, headers={"authorization": f"Bearer {KEY}"})[0] == 200
        with pytest.raises(Exception, match="Failed to fetch"):
            page.evaluate(ASK, [server.url, KEY, BODY])
