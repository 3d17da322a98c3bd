"""Tells a right answer from a wrong one: what the text gives as its answer, compared with the gold."""

from __future__ import annotations

from leanthink.data.grading import math_verify_pool
from leanthink.data.grading.answer_extraction import answer_section, given_answer, last_boxed
from leanthink.data.grading.answer_normalisation import EXACT, Tolerance, as_number
from leanthink.data.grading.verdict import NOTHING, Verdict
from leanthink.data.problems import Problem
from leanthink.data.think_tags import ThinkTags
from leanthink.utils.errors import UsageError

__all__ = [
    "answer_section",
    "as_graded",
    "check_gold",
    "given_answer",
    "is_correct",
    "is_solved",
    "last_boxed",
    "same_answer",
    "verdict_on",
    "vote",
]
MOST_CHARACTERS = 1_000_000  # of what follows a thought: of more than that the last ones are graded


def as_graded(text: str, thought_tokens: int, tags: ThinkTags) -> tuple[str, bool]:
    """The text of a completion with the tags that graders know, and whether it is a thought until it is closed."""
    # A prompt that ends in a closed thought gets an answer only: then nothing has to be closed any more.
    return tags.usual(text), tags.must_close(text) and thought_tokens > 0


def verdict_on(problem: Problem, text: str, *, think_tags: bool) -> Verdict:
    """Whether `text` solves the problem, and what it gives as its answer: `is_solved` and `vote` in one."""
    section = _graded(text, think_tags=think_tags)
    if section is None:
        return NOTHING
    found = math_verify_pool.pool.verdict(section, problem.answer, problem.tolerance)
    if problem.check is None:
        return found
    return Verdict(right=problem.check(last_boxed(section)), vote=found.vote)


def is_solved(problem: Problem, text: str, *, think_tags: bool) -> bool:
    """Whether `text` solves the problem: by the problem's own check of the box if it has one, else by `is_correct`."""
    if problem.check is None:
        return is_correct(text, problem.answer, think_tags=think_tags, tolerance=problem.tolerance)
    section = _graded(text, think_tags=think_tags)
    return section is not None and problem.check(last_boxed(section))


def vote(text: str, gold: str, *, think_tags: bool) -> str | None:
    """What a text gives as its answer, numbers by their value; None for a thought that never ended or an empty box."""
    section = _graded(text, think_tags=think_tags)
    return None if section is None else math_verify_pool.pool.verdict(section, gold).vote


def is_correct(text: str, gold: str, *, think_tags: bool = False, tolerance: Tolerance = EXACT) -> bool:
    r"""Whether the answer in `text` is `gold`.

    Only what follows the last `</think>` is graded. Without one, `think_tags` (the model closes its thoughts) makes it
    a thought that never ended, which is wrong whatever it says; else the whole text is graded.

    What is compared is the last complete \boxed{...}, with those before it that only a comma, `and` or `or` stands
    between. Without a box it is what the text states as its answer: what follows the last "answer is", else its last
    formula or, for a numeric gold, its last number; for the letter of a choice the last one that is said to be it.
    math-verify decides what nothing else settles; without it a numeric gold is graded by numbers alone. All of it runs
    in a process with a time limit.

    Raises:
        UsageError: the gold cannot be graded, see `check_gold`.
    """
    check_gold(gold)
    section = _graded(text, think_tags=think_tags)
    return section is not None and math_verify_pool.pool.verdict(section, gold, tolerance).right


def _graded(text: str, *, think_tags: bool) -> str | None:
    section = answer_section(text, think_tags=think_tags)
    return None if section is None else section[-MOST_CHARACTERS:]


def same_answer(given: str, gold: str, tolerance: Tolerance = EXACT) -> bool:
    """Whether an answer is the gold, compared in a process with a time limit."""
    return math_verify_pool.pool.same(given, gold, **vars(tolerance))


def check_gold(gold: str) -> None:
    """Refuse a gold that could not be graded here, before anything is generated for it.

    Raises:
        UsageError: it is empty, or it is a formula and math-verify is not installed.
    """
    if not gold.strip():
        raise UsageError("the gold is empty: give the right answer as text")
    if not math_verify_pool.is_available() and as_number(gold) is None:
        raise UsageError(
            f"the gold {gold!r} is not a number, and comparing mathematics needs math-verify: "
            "install it with `pip install 'leanthink[eval]'`"
        )
