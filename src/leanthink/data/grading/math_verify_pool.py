"""A pool of processes that grade answers: what hangs is ended, what crashes is started anew."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from leanthink.data.grading.answer_normalisation import EXACT, Tolerance
from leanthink.data.grading.verdict import NOTHING, Verdict

ROOT = str(Path(__file__).parents[4])
# The processes take this very package, and everything else from where they would find it.
WORKER = (
    f"import sys; sys.path.insert(0, {ROOT!r}); import leanthink; sys.path.remove({ROOT!r}); "
    "from leanthink.data.grading.math_verify_worker import main; main()"
)
LIMIT_SECONDS, START_SECONDS = 5, 120
MOST_WORKERS = 4
READY, LOADING, LOADED = "ready", "loading", "loaded"  # lines of a process that are no answers
PIECE = 2**16  # bytes read at a time
log = logging.getLogger(__name__)


def is_available() -> bool:
    """Whether math-verify, which is an extra, is installed."""
    return importlib.util.find_spec("math_verify") is not None


class Worker:
    """One process. Raises nothing: what it cannot answer is None, and then it is of no use any more."""

    def __init__(self, command: list[str]) -> None:
        # A session of its own: Ctrl-C on the terminal is for the asking process, which ends this one by its input.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self._is_ready = False
        self._read = bytearray()

    def ask(self, question: bytes, seconds: float) -> bytes | None:
        """The answer, a line; None if it took longer than that, or the process died of it."""
        if not self._is_ready:
            self._is_ready = self._line(START_SECONDS) == READY.encode()
        if not self._is_ready:
            return None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(question)
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        answer = self._line(seconds)
        while answer in (LOADING.encode(), LOADED.encode()):
            answer = self._line(START_SECONDS if answer == LOADING.encode() else seconds)
        return answer

    def _line(self, seconds: float) -> bytes | None:
        """The next line of its output, without its end."""
        assert self._process.stdout is not None
        pipe, until = self._process.stdout.fileno(), time.monotonic() + seconds
        while (end := self._read.find(b"\n")) < 0:
            if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                return None
            piece = os.read(pipe, PIECE)
            if not piece:
                return None
            self._read += piece
        line = bytes(self._read[:end])
        del self._read[: end + 1]
        return line

    def end(self) -> None:
        """Kill it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class MathVerifyPool:
    """At most `most` worker processes, started when they are needed; may be asked from many threads."""

    def __init__(
        self, seconds: int = LIMIT_SECONDS, most: int = MOST_WORKERS, command: list[str] | None = None
    ) -> None:
        self._seconds = seconds
        self._command = command or [sys.executable, "-P", "-c", WORKER, str(seconds)]
        self._room = threading.BoundedSemaphore(most)
        self._idle: list[Worker] = []

    def verdict(self, section: str, gold: str, tolerance: Tolerance = EXACT) -> Verdict:
        """What the text after a thought gives as its answer, and whether that is `gold`.

        What nobody could tell in time is wrong and has no vote, and the log has a warning.
        """
        found = self._asked({"kind": "verdict", "section": section, "gold": gold, **_told(tolerance)}, section, gold)
        return NOTHING if found is None else Verdict(*found)

    def same(self, given: str, gold: str, *, relative: float = 0.0, absolute: float = 0.0) -> bool:
        """Whether `given` is the answer `gold`; False, and a warning in the log, where nobody could tell in time.

        Args:
            given: text or LaTeX.
            gold: text or LaTeX.
            relative: numbers may differ by this share of the gold.
            absolute: or by this much.
        """
        tolerance = Tolerance(relative=relative, absolute=absolute)
        return bool(self._asked({"kind": "same", "given": given, "gold": gold, **_told(tolerance)}, given, gold))

    def score(self, facts: str, answer: str) -> bool:
        """Whether the entry of a family of reasoning-gym, see `leanthink.data.gym`, gives `answer` its whole point."""
        return bool(self._asked({"kind": "score", "facts": facts, "answer": answer}, answer, facts))

    def _asked(self, question: dict[str, Any], given: str, gold: str) -> Any:
        """The answer to one question; None, and a warning about `given` and `gold`, where there was none in time."""
        line = json.dumps(question).encode() + b"\n"
        with self._room:
            worker = self._idle.pop() if self._idle else Worker(self._command)
            answer = worker.ask(line, self._seconds)
            if answer is None:
                worker.end()
            else:
                self._idle.append(worker)
        if answer is None:
            log.warning("no verdict within %s s, graded as wrong: %.80r against %.80r", self._seconds, given, gold)
            return None
        return json.loads(answer)

    def close(self) -> None:
        """End all processes; asked again, it starts new ones."""
        while self._idle:
            self._idle.pop().end()

    def forget(self) -> None:
        """After a fork, in the child: the processes are the parent's."""
        self.__init__(self._seconds, command=self._command)  # type: ignore[misc]


def _told(tolerance: Tolerance) -> dict[str, Any]:
    return {"relative": tolerance.relative, "absolute": tolerance.absolute, "formulas": is_available()}


pool = MathVerifyPool()
atexit.register(pool.close)
os.register_at_fork(after_in_child=pool.forget)
