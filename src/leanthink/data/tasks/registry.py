"""The embedded tasks: families of problems with five levels each, made by seed, graded exactly."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from leanthink.data.tasks import bases, countdown, equations, ledger, multiply, sums
from leanthink.data.tasks.problem import Document, Problem, Split
from leanthink.data.tasks.scratchpad import Style
from leanthink.utils.errors import UsageError, unknown

LEVELS = (1, 2, 3, 4, 5)
MAX_TRIES_IN_VAIN = 3000  # so many draws without a new problem mean that there are hardly any left


def equals(problem: Problem, answer: str) -> bool:
    """Is it the very number that is asked for?"""
    return answer.replace(",", "").strip() == problem.answer


@dataclass(frozen=True)
class Family:
    """One kind of problem: what it is, how it is made, solved and graded."""

    name: str
    about: str
    make: Callable[[random.Random, int], Problem]
    solve: Callable[[Problem, Style, random.Random], Document]
    check: Callable[[Problem, str], bool] = equals


_ALL = (
    Family("multiply", "long multiplication, up to 7 x 7 digits", multiply.make, multiply.solve),
    Family("sums", "chains of additions and subtractions", sums.make, sums.solve),
    Family(
        "countdown", "reach a target from given numbers, by search", countdown.make, countdown.solve, countdown.check
    ),
    Family("equations", "linear equations and systems", equations.make, equations.solve),
    Family("bases", "write a number in another base", bases.make, bases.solve),
    Family("ledger", "balances after a list of payments", ledger.make, ledger.solve),
)
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}


def sample(family: str, level: int, count: int, seed: int, split: Split = "held-out") -> list[Problem]:
    """`count` different problems of one family and level, the same for the same arguments.

    Raises:
        UsageError: an unknown family, level or split, or more problems than the level has.
    """
    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    if split not in ("train", "held-out"):
        raise unknown("split", split, ("train", "held-out"))
    if count < 0:
        raise UsageError(f"count must be 0 or more, got {count}")
    rng = random.Random(f"{family}/{level}/{seed}/{split}")
    problems: dict[str, Problem] = {}
    tries_in_vain = 0
    while len(problems) < count and tries_in_vain < MAX_TRIES_IN_VAIN:
        problem = FAMILIES[family].make(rng, level)
        tries_in_vain += 1
        if problem.split == split and problem.id not in problems:
            problems[problem.id], tries_in_vain = problem, 0
    if len(problems) == count:
        return list(problems.values())
    raise UsageError(f"{family} level {level} has fewer than {count} {split} problems; found {len(problems)}")


def is_correct(problem: Problem, answer: str | None) -> bool:
    """Is the content of the answer's box right? None: there was no box."""
    return answer is not None and FAMILIES[problem.family].check(problem, answer)
