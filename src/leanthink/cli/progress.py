"""How far a long command is and how long it will still take: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from leanthink.cli.output import say

LINES = 20  # at most so many, where there is no terminal


class ProgressBar:
    """Counts units of work on standard error; those that were there before do not enter the estimate."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._before = total, 0, 0
        self._start, self._told = time.monotonic(), 0
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(
            *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True)
        )
        self._task = self._bar.add_task("", total=total)
        self._has_terminal = sys.stderr.isatty()

    def __enter__(self) -> ProgressBar:
        if self._has_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._has_terminal:
            self._bar.stop()

    def skip(self, what: str, count: int) -> None:
        """So many were done in an earlier run."""
        self._before += count
        self._count(what, count)

    def advance(self, what: str) -> None:
        """One more is done."""
        self._count(what, 1)

    def _count(self, what: str, count: int) -> None:
        self._done += count
        if self._has_terminal:
            self._bar.update(self._task, description=what, advance=count)
        elif self._done * LINES // self._total > self._told:
            self._told = self._done * LINES // self._total
            say(f"{what}: {self._done} of {self._total}{self._left()}")

    def _left(self) -> str:
        now = self._done - self._before
        if now == 0 or self._done >= self._total:
            return ""
        seconds = (time.monotonic() - self._start) / now * (self._total - self._done)
        return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"
