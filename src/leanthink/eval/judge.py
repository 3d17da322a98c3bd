"""A pool of processes that compare answers with golds: what hangs is ended, what crashes is started anew."""

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
from pathlib import Path

ROOT = str(Path(__file__).parents[2])
# The processes take this very package, and everything else from where they would find it.
WORKER = (
    f"import sys; sys.path.insert(0, {ROOT!r}); import leanthink; sys.path.remove({ROOT!r}); "
    "from leanthink.eval.judge_worker import main; main()"
)
LIMIT_SECONDS, START_SECONDS = 5, 120
MOST_WORKERS = 4
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

    def ask(self, question: bytes, seconds: float) -> bool | None:
        """The verdict; None if it took longer than that, or the process died of it."""
        if not self._is_ready:
            self._is_ready = self._line(START_SECONDS) == b"ready\n"
        if not self._is_ready:
            return None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(question)
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        verdict = self._line(seconds)
        return None if verdict is None else verdict == b"true\n"

    def _line(self, seconds: float) -> bytes | None:
        """The next line of its output: lines are short and written whole, so one that has begun is there."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return None
        return self._process.stdout.readline() or None

    def end(self) -> None:
        """Kill it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class Judges:
    """At most `most` worker processes, started when they are needed; may be asked from many threads."""

    def __init__(
        self, seconds: int = LIMIT_SECONDS, most: int = MOST_WORKERS, command: list[str] | None = None
    ) -> None:
        self._seconds = seconds
        self._command = command or [sys.executable, "-P", "-c", WORKER, str(seconds)]
        self._room = threading.BoundedSemaphore(most)
        self._idle: list[Worker] = []

    def same(self, given: str, gold: str, *, relative: float = 0.0, absolute: float = 0.0) -> bool:
        """Whether `given` is the answer `gold`; False, and a warning in the log, where nobody could tell in time.

        Args:
            given: text or LaTeX.
            gold: text or LaTeX.
            relative: numbers may differ by this share of the gold.
            absolute: or by this much.
        """
        fields = {"given": given, "gold": gold, "relative": relative, "absolute": absolute}
        question = json.dumps(fields).encode() + b"\n"
        with self._room:
            worker = self._idle.pop() if self._idle else Worker(self._command)
            verdict = worker.ask(question, self._seconds)
            if verdict is None:
                worker.end()
            else:
                self._idle.append(worker)
        if verdict is None:
            log.warning("no verdict within %s s, graded as wrong: %.80r against %.80r", self._seconds, given, gold)
        return bool(verdict)

    def close(self) -> None:
        """End all processes; asked again, it starts new ones."""
        while self._idle:
            self._idle.pop().end()

    def forget(self) -> None:
        """After a fork, in the child: the processes are the parent's."""
        self.__init__(self._seconds, command=self._command)  # type: ignore[misc]


judges = Judges()
atexit.register(judges.close)
os.register_at_fork(after_in_child=judges.forget)
