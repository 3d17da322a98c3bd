"""Grades answers, one JSON line in, one out; run by `leanthink.data.grading.math_verify_pool`.

A process of its own, because whatever reads an answer can compute for ever or take all memory (sympy, a regular
expression, the scores of another package), and only a process can be ended.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TextIO

from leanthink.data.grading.answer_normalisation import Tolerance
from leanthink.data.grading.math_verify_pool import LOADED, LOADING, READY, START_SECONDS
from leanthink.data.grading.verdict import same_bounded, verdict

MOST_BYTES = 4 * 2**30
EQUALITY = "leanthink.data.grading.formula_equality"


def main() -> None:
    """Answer until standard input ends; a question that takes longer than its limit ends this process."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    logging.disable(logging.CRITICAL)  # math-verify reports each formula that it cannot read
    worker = _Worker(answers=sys.stdout, seconds=int(sys.argv[1]))
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # what a package prints is no answer
    kinds: dict[str, Callable[..., Any]] = {"same": worker.same, "verdict": worker.verdict, "score": worker.score}
    worker.tell(READY)
    for line in sys.stdin:
        signal.alarm(worker.seconds + 1)  # also where the asking process was killed and cannot end this one
        asked = json.loads(line)
        try:
            answer = kinds[asked.pop("kind")](**asked)
        except Exception:  # whatever sympy or a score cannot do: then the answer was not shown to be right
            answer = None
        signal.alarm(0)
        worker.tell(json.dumps(answer))


@dataclass(frozen=True)
class _Worker:
    """What is asked, and where it is answered."""

    answers: TextIO
    seconds: int

    def tell(self, line: str) -> None:
        print(line, file=self.answers, flush=True)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Tell the asker that something is loaded, which does not count as the answer's time."""
        signal.alarm(START_SECONDS + 1)
        self.tell(LOADING)
        try:
            yield
        finally:
            self.tell(LOADED)
            signal.alarm(self.seconds + 1)

    def same(self, given: str, gold: str, relative: float, absolute: float, formulas: bool) -> bool:
        tolerance = Tolerance(relative=relative, absolute=absolute)
        return same_bounded(given, gold, tolerance, self._formula if formulas else _no_formula)

    def verdict(self, section: str, gold: str, relative: float, absolute: float, formulas: bool) -> tuple[Any, ...]:
        tolerance = Tolerance(relative=relative, absolute=absolute)
        return verdict(section, gold, tolerance, self._formula if formulas else _no_formula)

    def score(self, facts: str, answer: str) -> bool:
        from leanthink.data.gym import entry_of

        with self.loading():
            family, entry = entry_of(facts)
        return float(family.score_answer(answer, entry)) >= 1

    def _formula(self, given: str, gold: str, tolerance: Tolerance) -> bool:
        if EQUALITY not in sys.modules:
            with self.loading():  # sympy takes a second or more
                import_module(EQUALITY)
        same: bool = sys.modules[EQUALITY].same_formula(given, gold, tolerance)
        return same


def _no_formula(given: str, gold: str, tolerance: Tolerance) -> bool:
    """Without math-verify no formula is another one."""
    return False
