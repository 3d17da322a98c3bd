r"""Results with a name before them: `x = 5`, `a_{10} = 30`, `P(X=2) = \frac14`, `(x,y) = (1,2)`."""

from __future__ import annotations

import re
from typing import NamedTuple

from leanthink.data.grading.composite_answers import is_listed, split_top
from leanthink.data.grading.units import TEXT

MOST_STEPS = 16  # of a calculation are compared: its result, then its first ones
_SIGN = re.compile(r"(?<![<>!:\\])=(?!=)|\\approx(?![A-Za-z])|\\simeq(?![A-Za-z])")
_GROUP = re.compile(r"\\?[({\[][^(){}\[\]]*\\?[)}\]]")
_TUPLE = re.compile(r"\(\s*[A-Za-z](?:_\{?\w+\}?)?(?:\s*,\s*[A-Za-z](?:_\{?\w+\}?)?)+\s*\)")
# A letter that is rarely a function's: x(x+1) is a product, f(x+1) a name.
_PRODUCT = re.compile(r"(?<![A-Za-z\\])[abcdkmnqrstwxyz]\s*\([^()]*[+\-*/][^()]*\)")
_COMPUTED = re.compile(r"\\(?:sqrt|binom|cdot|times|div|pm|cup|cap|int|sum|prod|leq?|geq?|neq?|equiv|pmod)(?![A-Za-z])")


class Named(NamedTuple):
    """A result: its name ("" for none) and the ways its value is written, such as `\\sqrt{2} \\approx 1.41`."""

    name: str
    values: tuple[str, ...]


def split_name(text: str) -> Named:
    """The name of a result and its value; an equation such as `x^2 + y = 1` is a value without a name."""
    if not _SIGN.search(text) or is_listed(text):
        return Named("", (text,))
    first, *rest = split_top(text, _SIGN) or ("",)
    if not rest:
        return Named("", (first,))  # = 5
    if is_name(first):
        return Named(first, (*rest[-1:], *_exact(text, rest)))
    if not any(map(_has_letters, (first, *rest))):
        return Named("", (rest[-1], first, *rest[:-1])[:MOST_STEPS])  # a calculation: every step has the value
    if len(rest) == 1 and not _has_letters(first) and is_name(rest[0]):
        return Named(rest[0], (first,))  # 5 = x
    return Named("", (text,))


def is_equation(text: str) -> bool:
    """Whether there is an `=` after more than a name or a calculation."""
    return split_name(text) == Named("", (text,)) and not is_listed(text) and _SIGN.search(text) is not None


def _exact(text: str, values: list[str]) -> list[str]:
    """What stands before the last approximation, if there is one."""
    return values[-2:-1] if r"\approx" in text or r"\simeq" in text else []


def _has_letters(text: str) -> bool:
    """Whether there are names in it; e and i are numbers."""
    return re.search(r"[A-Za-df-hj-z]", re.sub(r"\\[A-Za-z]+", "", text)) is not None


def is_name(text: str) -> bool:
    r"""Whether a left side names one quantity: a letter or word, a function's value, an angle, a length, a ratio."""
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])|\\[,;:! ]|~|\$", "", text)
    text = re.sub(rf"{TEXT}\{{([^{{}}]*)\}}", r"\1", text).strip()
    if _TUPLE.fullmatch(text):
        return True
    if _PRODUCT.search(text) or _COMPUTED.search(text) or re.search(r"\^\s*\{?\s*\d", text):
        return False
    if re.match(r"\\[cdt]?frac(?![A-Za-z])", text):
        return re.fullmatch(r"\\[cdt]?frac\{[^{}\d+\-*/]+\}\{[^{}\d+\-*/]+\}", text) is not None
    while (shorter := _GROUP.sub("", text)) != text:
        text = shorter
    return re.fullmatch(r"[|\s]*\\?[A-Za-z](?:[A-Za-z\s\\|'_^!]|(?<=[A-Za-z_])\d+)*", text) is not None
