"""What a text gives as its answer and whether that is the gold: pure functions, which the math-verify pool calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from leanthink.data.grading.answer_comparison import same_answer
from leanthink.data.grading.answer_extraction import given_answer
from leanthink.data.grading.answer_normalisation import Tolerance, as_number, plain

MOST_CHARACTERS = 20_000  # of an answer or a gold: what is longer is compared as text alone
SameFormula = Callable[[str, str, Tolerance], bool]  # (given, gold, tolerance), LaTeX


class Verdict(NamedTuple):
    """Whether a text is right, and its `vote`: what it gives as its answer, numbers by their value; None: nothing."""

    right: bool
    vote: str | None


NOTHING = Verdict(right=False, vote=None)


def verdict(section: str, gold: str, tolerance: Tolerance, same_formula: SameFormula) -> Verdict:
    """The verdict on what follows the thought."""
    given = given_answer(section, gold)
    if given is None or not given.strip():
        return NOTHING
    return Verdict(right=same_bounded(given, gold, tolerance, same_formula), vote=_vote(given))


def same_bounded(given: str, gold: str, tolerance: Tolerance, same_formula: SameFormula) -> bool:
    """Whether an answer is the gold."""
    if max(len(given), len(gold)) > MOST_CHARACTERS:
        return given.strip() == gold.strip()
    return same_answer(given, gold, tolerance, same_formula)


def _vote(given: str) -> str:
    if len(given) > MOST_CHARACTERS:
        return given.strip()[:MOST_CHARACTERS]
    number = as_number(given)
    return plain(given) if number is None else str(number)
