r"""Numbers with the base that they are written in: `452_7`, `1101_{\text{two}}`, `2A (base 16)`."""

from __future__ import annotations

import re

_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_BASE = {str(base): base for base in range(2, 37)} | {word: base for base, word in enumerate(_WORDS, start=2)}
_NUMBER = re.compile(
    r"\(?\s*([0-9A-Z]+)\s*\)?\s*"
    r"(?:_\s*\{?\s*\(?(?:\\text\s*\{)?\s*(\w+)\s*\}?\s*\)?\s*\}?|\(?\s*(?:\\text\s*\{)?\s*base\s*\}?\s*(\w+)\s*\}?\s*\)?)?"
)


def same_in_base(given: str, gold: str) -> bool | None:
    """Whether two numbers have the same digits and base; None where neither names a base.

    A problem that asks for a base may be answered by the digits alone; digits of another base than ten are no answer to
    a problem that asks for a number without one.
    """
    ours, theirs = _digits(given), _digits(gold)
    if (ours is None or ours[1] is None) and (theirs is None or theirs[1] is None):
        return None
    if ours is None or theirs is None:
        return False
    return ours[0] == theirs[0] and ours[1] in ((None, theirs[1]) if theirs[1] else (10,))


def _digits(text: str) -> tuple[str, int | None] | None:
    """The digits, and the base if there is one."""
    found = _NUMBER.fullmatch(text.strip().strip("$").strip())
    if found is None:
        return None
    named = found[2] or found[3]
    if named is None:
        return found[1].lstrip("0"), None
    base = _BASE.get(named.lower())
    if base is None or any(int(digit, 36) >= base for digit in found[1]):
        return None  # V_2 is a name with an index
    return found[1].lstrip("0"), base
