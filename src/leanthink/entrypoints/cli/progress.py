"""How far a long command is and how long it will still take: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from leanthink.entrypoints.cli.output import say

GAP_SECONDS = 5.0  # between two lines where there is no terminal
GAP_SHARE = 0.1  # of the time so far: the lines of a long command grow rarer
LEAST_SHARE = 0.02  # of the work that must be done before an estimate is made of it


class ProgressBar:
    """Counts units of work on standard error. A context manager; what was there before does not enter the estimate.

    Where there is no terminal a thread tells how far it is every few seconds, also while nothing is finished.
    """

    def __init__(self, total: int = 0) -> None:
        self._what, self._done, self._total, self._before = "", 0, total, 0
        self._start = time.monotonic()
        self._end: float | None = None  # when it will be done, as of the latest unit
        console = Console(stderr=True)
        self._has_terminal = sys.stderr.isatty() and not console.is_dumb_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        # What is printed meanwhile goes above the bar; into a pipe it goes as it is.
        self._bar = Progress(*columns, _Left(self), console=console, redirect_stdout=sys.stdout.isatty())
        self._task = self._bar.add_task("", total=total)
        self._stopped = threading.Event()
        self._teller = threading.Thread(target=self._tell_now_and_then, daemon=True)

    def __enter__(self) -> ProgressBar:
        self._start = time.monotonic()
        if self._has_terminal:
            self._bar.start()
        else:
            self._teller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._has_terminal:
            self._bar.stop()
            return
        self._stopped.set()
        self._teller.join()
        if kind is None and self._total:
            say(self.line())

    def skip(self, what: str, count: int) -> None:
        """So many were done in an earlier run."""
        self._before += count
        self._count(what, self._done + count)

    def advance(self, what: str) -> None:
        """One more is done."""
        self._count(what, self._done + 1)

    def update(self, what: str, done: int, total: int, *, share: float | None = None) -> None:
        """So many of `total` are done, and `what` is in hand; another total, or fewer done, begins another count.

        `share` is that of the work, where units differ: between 0 and 1.
        """
        if not self._what:
            self._before, self._total = max(0, done - 1), total
        elif total != self._total or done < self._done:
            self._before, self._total, self._start = done, total, time.monotonic()
        self._count(what, done, share)

    def _count(self, what: str, done: int, share: float | None = None) -> None:
        self._what, self._done = what, done
        own = (done - self._before) / max(1, self._total - self._before)
        share = own if share is None else share
        passed = time.monotonic() - self._start
        self._end = self._start + passed / share if share >= LEAST_SHARE else None
        self._bar.update(self._task, description=what, completed=done, total=self._total)

    def line(self) -> str:
        """What, how many of how many, and how long it will still take, or has taken while that is not known."""
        left, passed = self.left(), time.monotonic() - self._start
        if not left and passed >= 1 and self._done < self._total:
            left = f"{passed:.0f} s so far"
        return f"{self._what}: {self._done} of {self._total}{f', {left}' if left else ''}"

    def left(self) -> str:
        """The time left in words; empty while it is not known, and at the end."""
        if self._end is None or self._done >= self._total:
            return ""
        seconds = max(0.0, self._end - time.monotonic())
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"

    def _tell_now_and_then(self) -> None:
        while not self._stopped.wait(max(GAP_SECONDS, GAP_SHARE * (time.monotonic() - self._start))):
            if self._total:
                say(self.line())


class _Left(ProgressColumn):
    """The last column: the time left."""

    def __init__(self, owner: ProgressBar) -> None:
        super().__init__()
        self._owner = owner

    def render(self, task: Task) -> Text:
        """Drawn several times a second."""
        return Text(self._owner.left())
