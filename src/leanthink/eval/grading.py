r"""Tells a right answer from a wrong one: the last \boxed{...}, as text, as a number, else by math-verify."""

from __future__ import annotations

import importlib.util
import logging
import re
import threading
from fractions import Fraction

from leanthink.errors import UsageError
from leanthink.eval.problems import Problem

END_OF_THOUGHT = "</think>"
TIMEOUT_SECONDS = 5


def is_solved(problem: Problem, text: str, *, think_tags: bool) -> bool:
    """Whether `text` solves the problem: by the problem's own check of the box if it has one, else by `is_correct`."""
    if problem.check is None:
        return is_correct(text, problem.answer, think_tags=think_tags)
    section = answer_section(text, think_tags=think_tags)
    return section is not None and problem.check(last_boxed(section))


def is_correct(text: str, gold: str, *, think_tags: bool = False) -> bool:
    r"""Whether the answer in `text` is `gold`.

    Only what follows the first `</think>` is graded. Without one, `think_tags` (the model closes its thoughts) makes it
    a thought that never ended, which is wrong whatever it says; else the whole text is graded.

    What is compared is the last complete \boxed{...}. Without a box a numeric gold is compared with the last number,
    another gold with all of the text.
    math-verify judges what neither text nor numbers settle; without it a numeric gold is graded by numbers alone.

    Raises:
        UsageError: the gold cannot be graded, see `check_gold`.
    """
    check_gold(gold)
    section = answer_section(text, think_tags=think_tags)
    if section is None:
        return False
    boxed = last_boxed(section)
    wanted = as_number(gold)
    given = boxed if boxed is not None else section if wanted is None else last_number(section)
    if given is None or not given.strip():
        return False
    if _plain(given) == _plain(gold):
        return True
    number = as_number(given)
    if wanted is not None and number is not None:
        return _same_number(number, wanted)
    if wanted is not None and (_is_equation(given) or not _has_math_verify()):
        return False
    return _same_mathematics(given, gold, boxed=boxed is not None)


def check_gold(gold: str) -> None:
    """Refuse a gold that could not be graded here, before anything is generated for it.

    Raises:
        UsageError: it is empty, or it is a formula and math-verify is not installed.
    """
    if not gold.strip():
        raise UsageError("the gold is empty: give the right answer as text")
    if as_number(gold) is None and not _has_math_verify():
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


_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_LAST_NUMBER = re.compile(rf"(?<![\w)\].])-(?:{_NUMBER})|(?:{_NUMBER})")
_FRACTION = re.compile(r"([+-]?)\\[dt]?frac\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))")
_RATIO = re.compile(r"([+-]?\d+)/(\d+)")
_DECIMAL = re.compile(rf"[+-]?(?:{_NUMBER}|\d+\.)(?:e[+-]?\d{{1,3}})?", re.IGNORECASE)
_SCIENTIFIC = re.compile(r"\s*\\(?:times|cdot)\s*10\s*\^\s*(?:\{\s*([+-]?\d{1,3})\s*\}|(\d))$")
# What may stand around a number without changing it: units in \text{}, degrees, percent, dollars, thin spaces.
_UNITS = re.compile(r"\\(?:text|textbf|mathrm|mbox)\s*\{[^{}]*\}(?:\^\{?\d\}?)?|\^\s*\{?\s*\\circ\s*\}?|\\%|%|\\\$|\$")
_SPACES = re.compile(r"\\[,;:! ]|\\quad|~")
_WORDS = re.compile(r"(?<=\d)\s+(?!(?:pi|or|and|to|mod|e|i)\b)[a-z]{2,}(?:\s+[a-z]+)*\.?$", re.IGNORECASE)


def last_number(text: str) -> str | None:
    """The last number in running text, without thousands commas; None where there is none.

    A minus counts as a sign only where it cannot be a difference or a hyphen: `5-3` ends in 3.
    """
    text = text.replace("{,}", ",").replace("\u2212", "-")
    found = _LAST_NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None


def as_number(text: str) -> Fraction | None:
    r"""The exact value of a literal number (`1,234`, `-0.5`, `3/4`, `\frac{3}{4}`, `1e5`), else None.

    Units around it (`\text{ cm}`, `\$`, `%`, `^\circ`, trailing words) are dropped: 50% reads as 50.
    """
    text = _UNITS.sub(" ", _SPACES.sub("", text.replace("{,}", ",").replace("\u2212", "-"))).strip()
    text = _WORDS.sub("", text).rstrip(".").strip()
    text = _SCIENTIFIC.sub(r"e\1\2", re.sub(r"^([+-])\s+", r"\1", text))
    if match := _FRACTION.fullmatch(text):
        sign, long_top, top, long_bottom, bottom = match.groups()
        return _quotient(sign + "1", long_bottom or bottom, times=int(long_top or top))
    if match := _RATIO.fullmatch(re.sub(r"\s*/\s*", "/", text)):
        return _quotient(match[1], match[2])
    if _DECIMAL.fullmatch(text):
        return Fraction(text.replace(",", "").removesuffix("."))
    return None


def _quotient(top: str, bottom: str, *, times: int = 1) -> Fraction | None:
    return Fraction(int(top) * times, int(bottom)) if int(bottom) else None


def _same_number(given: Fraction, wanted: Fraction) -> bool:
    """Integers exactly; a gold that is no integer may have been rounded, so to six digits."""
    if wanted.denominator == 1:
        return given == wanted
    return abs(given - wanted) <= abs(wanted) / 1_000_000


def _is_equation(text: str) -> bool:
    """Whether there is more left of a last `=` than a name: `x^2 + y = 1` is no way of saying 1, `f(2) = 1` is."""
    left = text.rpartition("=")[0]
    has_letters = re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", left)) is not None
    return has_letters and re.fullmatch(r"\s*\\?[A-Za-z]\w*(?:\(\w+\))?\s*", left) is None


def _plain(text: str) -> str:
    """The text without what LaTeX adds for looks: `$`, spaces, size and font commands, a closing full stop."""
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r"\1", _SPACES.sub(" ", text))
    text = re.sub(r"\\(?:left|right)(?![a-zA-Z])|\\displaystyle", "", text).replace(r"\dfrac", r"\frac")
    text = text.replace(r"\tfrac", r"\frac").replace("$", "")
    text = re.sub(r"\s*([^\w\s])\s*", r"\1", text)  # a space matters only between two words or numbers
    text = " ".join(text.split()).removesuffix(".")
    choice = re.fullmatch(r"\(?([A-Za-z])\)?", text)
    return choice[1] if choice else text


def _has_math_verify() -> bool:
    return importlib.util.find_spec("math_verify") is not None


def _same_mathematics(given: str, gold: str, *, boxed: bool) -> bool:
    """Ask math-verify. Its time limit is an alarm signal: outside the main thread it must run without one."""
    from math_verify import parse, verify

    limit = TIMEOUT_SECONDS if threading.current_thread() is threading.main_thread() else None
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it reports each bad formula and missing time limit
    wanted = parse(f"${gold.strip().strip('$')}$", parsing_timeout=limit)
    found = parse(f"${given.strip().strip('$')}$" if boxed else given, parsing_timeout=limit)
    return bool(verify(wanted, found, timeout_seconds=limit))
