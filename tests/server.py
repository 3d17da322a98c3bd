"""Runs `leanthink serve` as a process, for tests."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import ENVIRONMENT


@dataclass
class Server:
    """A server that answers: its process, where it is, and the file of its log."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def request(self, path: str, body: object = None, *, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and JSON of a GET, or of a POST of this body (bytes are sent as they are)."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        wanted = {"content-type": "application/json"} | (headers or {})
        asked = urllib.request.Request(self.url + path, data=data, headers=wanted)
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def chat(self, **fields: Any) -> tuple[int, Any]:
        """A chat with one short message, and these fields."""
        body = {"model": "tiny", "messages": [{"role": "user", "content": "What is 12 times 13?"}]} | fields
        return self.request("/v1/chat/completions", body)

    def metrics(self) -> dict[str, float]:
        """Every line of /metrics."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=60) as page:
            lines = [line for line in page.read().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def lines(self) -> list[dict[str, Any]]:
        """The log so far, without what other programs say."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


@contextmanager
def serving(log: Path, *arguments: object) -> Iterator[Server]:
    """A server on a free port; it is ended, and must have ended well."""
    command = [sys.executable, "-m", "leanthink", "serve", "--port", "0", "--json", *map(str, arguments)]
    with (
        log.open("w") as told,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, text=True, env=ENVIRONMENT) as process,
    ):
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready, log.read_text()
        try:
            yield Server(process=process, url=json.loads(ready)["url"], log=log)
        finally:
            process.terminate()
            code = process.wait(timeout=60)
        assert code == 0, log.read_text()
