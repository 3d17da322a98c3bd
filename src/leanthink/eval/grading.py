r"""Tells a right answer from a wrong one: the last \boxed{...}, as text, as numbers, in parts, else by math-verify."""

from __future__ import annotations

import re

from leanthink.errors import UsageError
from leanthink.eval import judge
from leanthink.eval.literals import (
    EXACT,
    Tolerance,
    as_number,
    is_percent,
    last_number,
    plain,
    same_number,
    without_unit,
)
from leanthink.eval.problems import Problem
from leanthink.eval.structure import same_parts

END_OF_THOUGHT = "</think>"
_CHOICE = re.compile(
    r"(?:option|choice|answer)?[\s:]*\(?([A-K])(?:\)(?:[\s.:].*)?|[.:](?:\s.*)?|\s+[-–—]\s.*)?",
    re.IGNORECASE | re.DOTALL,
)
_STATED_CHOICE = re.compile(
    r"(?i:answer|option|choice)(?i:\s+is)?\s*[:=]?\s*(?i:option|choice)?\s*[*$({\\]*(?:text\{)?\(?([A-K])\b(?!['’])"
)
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")


def is_solved(problem: Problem, text: str, *, think_tags: bool) -> bool:
    """Whether `text` solves the problem: by the problem's own check of the box if it has one, else by `is_correct`."""
    if problem.check is None:
        return is_correct(text, problem.answer, think_tags=think_tags, tolerance=problem.tolerance)
    section = answer_section(text, think_tags=think_tags)
    return section is not None and problem.check(last_boxed(section))


def is_correct(text: str, gold: str, *, think_tags: bool = False, tolerance: Tolerance = EXACT) -> bool:
    r"""Whether the answer in `text` is `gold`.

    Only what follows the first `</think>` is graded. Without one, `think_tags` (the model closes its thoughts) makes it
    a thought that never ended, which is wrong whatever it says; else the whole text is graded.

    What is compared is the last complete \boxed{...}. Without a box a numeric gold is compared with the last number,
    the letter of a choice with the last one that is said to be the answer, another gold with all of the text.
    math-verify judges, in a process with a time limit, what nothing else settles; without it a numeric gold is graded
    by numbers alone.

    Raises:
        UsageError: the gold cannot be graded, see `check_gold`.
    """
    check_gold(gold)
    section = answer_section(text, think_tags=think_tags)
    if section is None:
        return False
    given = given_answer(section, gold)
    if given is None or not given.strip():
        return False
    return same_answer(given, gold, tolerance, boxed=last_boxed(section) is not None)


def given_answer(section: str, gold: str) -> str | None:
    """What is compared with the gold: the box, or what stands for it in a text that has none; None: nothing does."""
    boxed = last_boxed(section)
    if boxed is not None:
        return boxed
    if as_number(gold) is not None:
        return last_number(section)
    if _is_letter(gold):
        found = _STATED_CHOICE.findall(section)
        return found[-1] if found else section
    return section


def same_answer(given: str, gold: str, tolerance: Tolerance = EXACT, *, boxed: bool = True) -> bool:
    """Whether an answer is the gold; not `boxed`: it may be any text that has it somewhere."""
    if plain(given) == plain(gold):
        return True
    number, wanted = as_number(given), as_number(gold)
    if number is not None and wanted is not None and not (_lists(given) or _lists(gold)):
        return _same_quantity(given, gold, tolerance)
    if not boxed:
        return wanted is None and judge.judges.same(given, gold, boxed=False, **vars(tolerance))
    alike = same_parts(given, gold, lambda one, other: same_answer(one, other, tolerance))
    if alike is not None:
        return alike
    if _is_letter(gold):
        return _chosen(given) == _chosen(gold)
    if (words := _words(gold)) is not None:
        return _words(given) == words
    if wanted is not None and (_is_equation(given) or not judge.is_available()):
        return False
    ours, theirs = (without_unit(text).strip().strip("$") for text in (given, gold))
    return plain(ours) == plain(theirs) or judge.judges.same(ours, theirs, boxed=True, **vars(tolerance))


def check_gold(gold: str) -> None:
    """Refuse a gold that could not be graded here, before anything is generated for it.

    Raises:
        UsageError: it is empty, or it is a formula and math-verify is not installed.
    """
    if not gold.strip():
        raise UsageError("the gold is empty: give the right answer as text")
    if as_number(gold) is None and not judge.is_available():
        raise UsageError(
            f"the gold {gold!r} is not a number, and comparing mathematics needs math-verify: "
            "install it with `pip install 'leanthink[eval]'`"
        )


def answer_section(text: str, *, think_tags: bool) -> str | None:
    """The part of a generated text that may be graded; None for a thought that never ended."""
    _, closed, answer = text.partition(END_OF_THOUGHT)
    if closed:
        return answer
    return None if think_tags else text


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete \boxed{...} or \fbox{...}, braces balanced; None where there is none."""
    for opening in reversed(list(re.finditer(r"\\f?boxed\s*\{|\\fbox\s*\{", text))):
        depth, at = 1, opening.end()
        while at < len(text) and depth:
            if text[at] == "\\":  # an escaped brace is a character, not a bracket
                at += 2
                continue
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        if not depth:
            return text[opening.end() : at - 1]
    return None


def _same_quantity(given: str, gold: str, tolerance: Tolerance) -> bool:
    """Two literal numbers; where one alone is a percentage it may also be read as a share."""
    number, wanted = as_number(given), as_number(gold)
    assert number is not None
    assert wanted is not None
    if same_number(number, wanted, tolerance):
        return True
    if is_percent(given) == is_percent(gold):
        return False
    return same_number(number / 100 if is_percent(given) else number * 100, wanted, tolerance)


def _lists(text: str) -> bool:
    """Whether commas with spaces after them say that this is no single number."""
    return re.search(r"\d,\s+-?\d", text) is not None


def _is_equation(text: str) -> bool:
    """Whether there is more left of a last `=` than a name: `x^2 + y = 1` is no way of saying 1, `f(2) = 1` is."""
    left = text.rpartition("=")[0]
    has_letters = re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", left)) is not None
    return has_letters and re.fullmatch(r"\s*\\?[A-Za-z]\w*(?:\(\w+\))?\s*", left) is None


def _is_letter(gold: str) -> bool:
    return re.fullmatch(r"[A-K]", plain(gold)) is not None


def _chosen(text: str) -> str | None:
    """The letter of an answer such as `(C) 12 m` or `C. 12 m`; None for any other text."""
    bare = _TEXT_COMMAND.sub(r"\1", text).strip().strip("$*").strip()
    found = _CHOICE.fullmatch(bare)
    return found[1].upper() if found else None


def _words(text: str) -> str | None:
    r"""Words in lower case, if there is nothing else: a name, yes or no, a day of the week."""
    bare = _TEXT_COMMAND.sub(r"\1", text).strip().strip("$").strip(" .")
    bare = " ".join(bare.split()).casefold()
    return bare if re.fullmatch(r"[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*", bare) else None
