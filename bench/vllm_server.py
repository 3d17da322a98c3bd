"""vLLM's server as a process, and requests to it over HTTP, for the scripts that ask it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def served(
    words: Sequence[str], environment: Mapping[str, str], url: str, *, log: Path | None = None, seconds: float = 240
) -> Iterator[None]:
    """A server while inside, ready to answer.

    Args:
        words: its command line, after the Python that runs this script.
        environment: all of its variables.
        url: where it will answer, without a path.
        log: a file for what it says; None: nobody reads it.
        seconds: how long it may take to start.
    """
    with (log or Path("/dev/null")).open("wb") as file:
        server = subprocess.Popen([sys.executable, *words], env=dict(environment), stdout=file, stderr=file)
        try:
            end = time.monotonic() + seconds
            while not _is_ready(url):
                if server.poll() is not None:
                    raise SystemExit(f"{' '.join(words)} ended with {server.returncode}")
                assert time.monotonic() < end, "the server is not ready"
                time.sleep(0.5)
            yield
        finally:
            server.terminate()
            server.wait(60)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def opened(url: str, body: Mapping[str, Any], seconds: float | None = None) -> Any:
    """The answer to a greedy request to `tiny`, to be read and closed; `seconds` of silence are too many."""
    data = json.dumps({"model": "tiny", "temperature": 0, **body}).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=seconds)
