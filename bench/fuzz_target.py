"""What bench/fuzz.py fuzzes, and what it checks of each input: errors are sentences, time and memory are bounded."""

from __future__ import annotations

import contextlib
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 2.0  # of CPU for one input
LIMIT_BYTES = 300 * 2**20  # that one input may add to the process's peak
MOST_CHARACTERS = 2000  # of a message: it is a sentence


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is fuzzed.

    Attributes:
        run: takes an input; raises whatever is not promised.
        seeds: whole inputs to begin with.
        words: pieces that inputs are made of.
        most_bytes: of an input.
        unpack: an input as something like JSON, and what makes an input of the like again; None: it is no such thing.
    """

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]
    most_bytes: int = 20_000
    unpack: Callable[[bytes], tuple[Any, Callable[[str], bytes]]] | None = None


def check_sentence(error: Exception) -> None:
    """Check that an error that was promised is a sentence, which can be printed."""
    text = str(error)
    assert 0 < len(text) <= MOST_CHARACTERS, f"a message of {len(text)} characters"
    text.encode()


@contextlib.contextmanager
def promised(kind: type[Exception]) -> Iterator[None]:
    """An error of this kind is what was promised; it has to be a sentence."""
    try:
        yield
    except kind as error:
        check_sentence(error)


def bounded(run: Callable[[bytes], None], data: bytes) -> None:
    """Run one input; raises what it raises, and AssertionError where it takes too many seconds or bytes."""
    seconds, kilobytes = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(data)
    seconds = time.process_time() - seconds
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - kilobytes) * 1024
    assert seconds <= LIMIT_SECONDS, f"{seconds:.1f} s"
    assert grown <= LIMIT_BYTES, f"{grown} bytes more"


def scratch() -> Path:
    """A folder in memory where there is one, until the process ends."""
    memory = Path("/dev/shm")
    _folders.append(tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None))
    return Path(_folders[-1].name)


_folders: list[tempfile.TemporaryDirectory[str]] = []


def texts(documents: Iterable[Any]) -> Iterator[bytes]:
    """Each document as JSON."""
    yield from (json.dumps(document).encode() for document in documents)


def plain_json(data: bytes) -> tuple[Any, Callable[[str], bytes]]:
    """`Target.unpack` of an input that is JSON as it stands."""
    return json.loads(data), str.encode
