"""What both measurements of the server need: the server as a process, and a client that costs little.

Requests are written to plain sockets and answers read line by line: with 200 clients on the machine that is measured, a
full client library would take the time that is to be measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TEXTS = ("reasoning_content", "content")


@dataclass
class Answer:
    """What came back: status, the text of thought and answer, and when each event of a stream came."""

    status: int = 0
    reasoning_content: str = ""
    content: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    times: list[float] = field(default_factory=list)
    complete: bool = False
    retry_after: float = 0.0


@contextmanager
def running(log: Path, *options: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`leanthink serve` on the embedded model and a free port: (process, port). Its log goes to a file."""
    words = [sys.executable, "-m", "leanthink", "serve", "--port", "0", "--json", *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        log.open("w") as told,
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=told, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        try:
            yield process, int(json.loads(line)["url"].rsplit(":", 1)[1])
        finally:
            process.terminate()
            process.wait(60)


def post(path: str, body: bytes) -> bytes:
    """A request as it goes over the wire."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    )
    return head.encode() + b"connection: close\r\n\r\n" + body


async def ask(
    port: int,
    body: bytes,
    *,
    path: str = "/v1/chat/completions",
    pause: Callable[[int], float] | None = None,
    leave_after: int | None = None,
) -> Answer:
    """Send a body and read the answer, with a pause before each event, or leaving after so many of them."""
    answer = Answer()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    try:
        writer.write(post(path, body))
        await writer.drain()
        answer.status = int((await reader.readline()).split()[1])
        while (line := await reader.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"retry-after:"):
                answer.retry_after = float(line.split(b":")[1])
        events = 0
        while line := await reader.readline():
            if line.startswith(b"{"):
                _take(answer, json.loads(line))
                answer.complete = True
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                answer.complete = True
                break
            answer.times.append(time.perf_counter())
            _take(answer, json.loads(line[6:]))
            events += 1
            if events == leave_after:
                break
            if pause is not None:
                await asyncio.sleep(pause(events))
    finally:
        writer.close()
    return answer


def _take(answer: Answer, document: dict[str, Any]) -> None:
    """Add what a document or a chunk holds."""
    for choice in document.get("choices", ()):
        part = choice.get("delta") or choice.get("message") or {}
        for name in TEXTS:
            setattr(answer, name, getattr(answer, name) + (part.get(name) or ""))
        answer.finish_reason = choice["finish_reason"] or answer.finish_reason
    answer.usage = document.get("usage") or answer.usage
