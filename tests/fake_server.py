"""A server of models that never thinks: it plays back a trace as the stream that the server of models sends."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from leanthink.data.traces.trace import Trace
from leanthink.entrypoints.viewer.server import HEADERS, KINDS, PAGE


def chunks(trace: Trace) -> Iterator[dict[str, Any]]:
    """The chunks of a stream: the settings, one for each token with the eviction before it, and the end."""
    assert trace.scores is not None
    assert trace.token_chars is not None
    assert trace.evicted_at is not None
    prompt, numbers, first = len(trace.prompt_ids), trace.scores.numbers_TC(), 0
    settings = {"prompt_tokens": prompt, "policy": trace.policy, "budget": trace.budget}
    yield chunk({"role": "assistant"}, {"index": 0, **settings, "horizons": trace.scores.horizons})
    for index, count in enumerate(trace.token_chars):
        text, thinks = trace.text[first : first + count], index < trace.thought_tokens
        first += count
        facts: dict[str, Any] = {"index": 0, "token_id": trace.token_ids[index], "position": prompt + index}
        facts |= {"text": text, "in_thought": thinks}
        lost = [prompt + i for i, at in enumerate(trace.evicted_at) if at == index]
        if lost:
            ranked = [[prompt + i, *numbers[i]] for i in range(index - 32)]
            facts["eviction"] = {"evicted_at": index, "positions": lost, "importance": ranked}
        yield chunk({"reasoning_content" if thinks else "content": text}, facts)
    yield {"choices": [{"index": 0, "delta": {}, "finish_reason": trace.finish_reason}]}


def chunk(delta: dict[str, str], facts: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}], "leanthink": facts}


class FakeServer:
    """What the fake answers, and what it was asked."""

    def __init__(self) -> None:
        self.chunks: list[dict[str, Any]] = []
        self.refusal: tuple[int, str] | None = None
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.hold = threading.Event()  # the stream stops in the middle until it is set
        self.hold.set()


@contextmanager
def fake_server() -> Iterator[tuple[FakeServer, str]]:
    """The fake and the address of the page on it."""
    fake = FakeServer()

    class Request(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/v1/models":
                return self.answer(200, "application/json", b'{"data": [{"id": "fake-model"}]}')
            file = PAGE / (Path(self.path).name if not self.path.endswith("/") else "index.html")
            if not self.path.startswith("/viewer/") or not file.is_file():
                return self.answer(404, "text/plain", b"nothing here")
            return self.answer(200, KINDS[file.suffix], file.read_bytes())

        def do_POST(self) -> None:
            fake.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            fake.keys.append(self.headers.get("Authorization"))
            if fake.refusal is not None:
                status, reason = fake.refusal
                return self.answer(status, "application/json", json.dumps({"error": {"message": reason}}).encode())
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for number, one in enumerate(fake.chunks):
                if number == len(fake.chunks) // 2:
                    self.wfile.flush()
                    fake.hold.wait(20)
                self.wfile.write(b": keep-alive\n\n" * (number % 50 == 0) + f"data: {json.dumps(one)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Request) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield fake, f"http://127.0.0.1:{server.server_address[1]}/viewer/"
        finally:
            fake.hold.set()
            server.shutdown()
            thread.join()
