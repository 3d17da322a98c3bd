"""Answers as text and as numbers: what LaTeX adds for looks, units, percent, fractions, thousands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from leanthink.errors import UsageError

ROUNDING = Fraction(1, 1_000_000)  # relative: a gold that is no integer may have been rounded to six digits


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a number may be from the gold: a share of it, or an absolute distance, whichever is more.

    Both 0: integers must be equal, other numbers to six digits. Raises UsageError for a negative number.
    """

    relative: float = 0.0
    absolute: float = 0.0

    def __post_init__(self) -> None:
        for name in ("relative", "absolute"):
            given = getattr(self, name)
            if not 0 <= given < float("inf"):
                raise UsageError(f"tolerance: {name}={given!r} must be 0 or more")


EXACT = Tolerance()

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_LAST_NUMBER = re.compile(rf"(?<![\w)\].])-(?:{_NUMBER})|(?:{_NUMBER})")
_FRACTION = re.compile(r"([+-]?)\\[cdt]?frac\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))")
_RATIO = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))/(\d+\.?\d*|\.\d+)")
_DECIMAL = re.compile(rf"[+-]?(?:{_NUMBER}|\d+\.)(?:e[+-]?\d{{1,3}})?", re.IGNORECASE)
_SCIENTIFIC = re.compile(r"\s*(?:\\times|\\cdot|\*|×|x)\s*10\s*\^\s*(?:\{\s*([+-]?\d{1,3})\s*\}|([+-]?\d{1,3}))$")
_TEXT = r"\\(?:text|textbf|textrm|textit|textnormal|mathrm|mathbf|mbox)\s*"
# What may stand around a number without changing it: units in \text{}, degrees, percent, dollars, thin spaces.
_UNITS = re.compile(
    rf"{_TEXT}\{{[^{{}}]*\}}(?:\s*\^\s*\{{?-?\d\}}?)?|\^\s*\{{?\s*\\circ\s*\}}?|\\circ\b|\\degree\b|°|\\%|%|\\\$|\$|€|£"
)
# Spaces for looks; one of them has a comma in its name.
SPACES = re.compile(r"\\[,;:! ]|\\quad|\\qquad|~|\u00a0")
_WORDS = re.compile(r"(?<=\d)\s+(?!(?:pi|or|and|to|mod|e|i)\b)[a-z]{2,}(?:\s+[a-z]+)*\.?$", re.IGNORECASE)
_TRAILING_UNIT = re.compile(rf"(?<=\S)\s*(?:{_TEXT}\{{\s*[a-zA-Z][^{{}}]*\}}(?:\s*\^\s*\{{?-?\d\}}?)?\s*)+$")


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
    text = _UNITS.sub(" ", SPACES.sub("", text.replace("{,}", ",").replace("\u2212", "-"))).strip()
    text = _WORDS.sub("", text).rstrip(".").strip()
    text = _SCIENTIFIC.sub(r"e\1\2", re.sub(r"^([+-])\s+", r"\1", text))
    if match := _FRACTION.fullmatch(text):
        sign, long_top, top, long_bottom, bottom = match.groups()
        return _quotient(Fraction(int(sign + "1") * int(long_top or top)), Fraction(long_bottom or bottom))
    if match := _RATIO.fullmatch(re.sub(r"\s*/\s*", "/", text)):
        return _quotient(Fraction(match[1].removesuffix(".")), Fraction(match[2].removesuffix(".")))
    if _DECIMAL.fullmatch(text):
        return Fraction(text.replace(",", "").removesuffix("."))
    return None


def _quotient(top: Fraction, bottom: Fraction) -> Fraction | None:
    return top / bottom if bottom else None


def is_percent(text: str) -> bool:
    """Whether the text has a percent sign."""
    return "%" in text


def same_number(given: Fraction, wanted: Fraction, tolerance: Tolerance = EXACT) -> bool:
    """Integers exactly, others to six digits, both at least within the tolerance."""
    relative = max(Fraction(tolerance.relative), ROUNDING if wanted.denominator > 1 else Fraction(0))
    return abs(given - wanted) <= max(Fraction(tolerance.absolute), relative * abs(wanted))


def without_unit(text: str) -> str:
    r"""A formula without the units that stand after it in \text{}; text that is nothing else stays."""
    return _TRAILING_UNIT.sub("", text)


def plain(text: str) -> str:
    """The text without what LaTeX adds for looks: `$`, spaces, size and font commands, a closing full stop."""
    text = re.sub(rf"{_TEXT}\{{([^{{}}]*)\}}", r"\1", SPACES.sub(" ", text.replace("\u2212", "-")))
    text = re.sub(r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big)(?![a-zA-Z])|\\displaystyle", "", text)
    text = re.sub(r"\\[cdt]frac(?![a-zA-Z])", r"\\frac", text).replace("$", "").replace("{,}", ",")
    text = re.sub(r"\\(?:leqslant|leq|le)(?![a-zA-Z])|≤", r"\\leq ", text)
    text = re.sub(r"\\(?:geqslant|geq|ge)(?![a-zA-Z])|≥", r"\\geq ", text)
    text = re.sub(r"([_^])\s*\{\s*(\w)\s*\}", r"\1\2", text)
    text = re.sub(r"\s*([^\w\s])\s*", r"\1", text)  # a space matters only between two words or numbers
    text = " ".join(text.split()).removesuffix(".")
    choice = re.fullmatch(r"\(?([A-Za-z])\)?", text)
    return choice[1] if choice else text
