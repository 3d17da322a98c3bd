"""Answers as text and as numbers: what LaTeX adds for looks, units, percent, fractions, thousands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from leanthink.data.grading.plain_text import as_latex
from leanthink.data.grading.units import TEXT, unwrapped, without_units
from leanthink.utils.errors import UsageError

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

MOST_CHARACTERS = 1_000  # of a number: what is longer is compared as text

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_TIMES_TEN = r"(?:\\times|\\cdot|\*|×|x)\s*10\s*\^\s*(?:\{\s*[+-]?\d{1,3}\s*\}|[+-]?\d{1,3})"
_SHORT_FRACTION = r"\\[cdt]?frac\s*(?:\{\s*[+-]?\d+\s*\}|\d)\s*(?:\{\s*[+-]?\d+\s*\}|\d)"
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ANY_NUMBER = (
    rf"(?:\d++\s*+)?{_SHORT_FRACTION}|\d++\s++\d++/\d++(?!/)|\d++(?:\.\d*+)?\s*+/\s*+\d++(?!/)"
    rf"|(?:{_NUMBER})(?:[eE][+-]?\d{{1,3}}(?![A-Za-z\d])|\s*{_TIMES_TEN}|\s+(?:{'|'.join(_SCALES)})\b)?"
)
_LAST_NUMBER = re.compile(rf"(?<![\w)\].])-(?:{_ANY_NUMBER})|(?:{_ANY_NUMBER})")
_CALCULATES = r"(?:times|plus|minus|divided|over|out|of|to|or|and|x)\b"
_FIRST_NUMBER = re.compile(rf"\s*([+-]?(?>{_ANY_NUMBER}))(?=\s*$|[.;:)](?!\d)|,?\s+(?!{_CALCULATES})[A-Za-z])")
# A number with one of these beside it is a part of something else: 2\sqrt{3}, x^2, 5x.
_GOES_ON = re.compile(
    r"\s*(?:\\(?:sqrt|pi|cdot|times|frac|left)(?![A-Za-z])|[\^_!(])|(?:[xyzikn]|\\mathrm)(?![A-Za-z])"
)
_CAME_FROM = re.compile(r"(?:\\sqrt\s*\{?|[\^_]\s*\{?\s*-?)$")
_FRACTION = re.compile(r"([+-]?)\\[cdt]?frac\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))")
_RATIO = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))/(\d+\.?\d*|\.\d+)")
_MIXED = re.compile(
    r"([+-]?)(\d+)(?:\s+(\d+)\s*/\s*(\d+)|\s*\\[cdt]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d)))"
)
_DECIMAL = re.compile(rf"[+-]?(?:{_NUMBER}|\d+\.)(?:e[+-]?\d{{1,3}})?", re.IGNORECASE)
_SCIENTIFIC = re.compile(r"\s*(?:\\times|\\cdot|\*|×|x)\s*10\s*\^\s*(?:\{\s*([+-]?\d{1,3})\s*\}|([+-]?\d{1,3}))$")
_REPEATING = re.compile(
    r"([+-]?)(\d*)\.(\d*)(?:\\(?:overline|bar)\s*(?:\{\s*(\d+)\s*\}|(\d))|\((\d+)\)"
    r"|\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?)"
)
_GOING_ON = re.compile(r"([+-]?\d*\.\d{0,20}?)(\d{1,12}?)\2{2,20}\s*(?:\.\.\.|\\[lc]?dots)")
_SCALE = re.compile(rf"(?<=[\d}}])\s*({TEXT}\{{)?[\s~]*(?<![A-Za-z])({'|'.join(_SCALES)})\b")
# Spaces for looks; one of them has a comma in its name.
SPACES = re.compile(r"\\[,;:! ]|\\quad|\\qquad|~|\u00a0")


def last_number(text: str) -> str | None:
    """The last number in running text (`1,234`, `3/4`, `5 1/2`, `1.5e3`), without thousands commas; None for none.

    A minus counts as a sign only where it cannot be a difference or a hyphen: `5-3` ends in 3. Nor is it a number if it
    is a part of something else, such as `2\\sqrt{3}` or `5x`.
    """
    text = as_latex(text.replace("{,}", ","))
    found = list(_LAST_NUMBER.finditer(text))
    if not found or _GOES_ON.match(text, found[-1].end()):
        return None
    start = found[-1].start()
    return None if _CAME_FROM.search(text, max(start - 10, 0), start) else found[-1][0].replace(",", "")


def first_number(text: str) -> str | None:
    """The number that a sentence begins with, if no calculation and no other number goes on from it."""
    text = as_latex(text.replace("{,}", ","))
    found = _FIRST_NUMBER.match(text)
    return found[1].replace(",", "") if found and not _GOES_ON.match(text, found.end(1)) else None


def as_number(text: str) -> Fraction | None:
    r"""The exact value of a literal number, else None.

    Such as `1,234`, `-0.5`, `3/4`, `\frac{3}{4}`, `5 1/2`, `33\frac{1}{3}`, `1e5`, `0.1\overline{6}`, `0.333...`. Units
    around it (`\text{ cm}`, `\$`, `%`, `^\circ`, trailing words) are dropped: 50% reads as 50. What has more than
    MOST_CHARACTERS is no number.
    """
    if len(text) > MOST_CHARACTERS:
        return None
    text = unwrapped(text.strip().strip("$"))
    text, scale = _scaled(text)
    text = without_units(SPACES.sub(" ", as_latex(_TIGHT.sub("", text.replace("{,}", ",")))), " ")
    text = re.sub(r"^([+-])\s+", r"\1", text.strip().strip("$").strip())
    for read in (_repeating, _plain_number):
        if (value := read(text)) is not None:
            return value * scale
    return None


def _scaled(text: str) -> tuple[str, int]:
    r"""The text without the `million` or `\text{ million}` after its number, and what that stands for."""
    found = _SCALE.search(text)
    return (_SCALE.sub(lambda one: " " + (one[1] or ""), text, count=1), _SCALES[found[2]]) if found else (text, 1)


_TIGHT = re.compile(r"\\[,! ](?=\d{3}(?!\d))")  # 1\,234


def _plain_number(text: str) -> Fraction | None:
    text = _SCIENTIFIC.sub(r"e\1\2", text.removesuffix(".").strip())
    if match := _FRACTION.fullmatch(text):
        sign, long_top, top, long_bottom, bottom = match.groups()
        return _quotient(Fraction(int(sign + "1") * int(long_top or top)), Fraction(long_bottom or bottom))
    if match := _MIXED.fullmatch(text):
        sign, whole, *parts = match.groups()
        top, bottom = (int(part) for part in parts if part is not None)
        # An improper fraction after a number is rather a product.
        return int(sign + "1") * (int(whole) + Fraction(top, bottom)) if top < bottom else None
    if match := _RATIO.fullmatch(re.sub(r"\s*/\s*", "/", text)):
        return _quotient(Fraction(match[1].removesuffix(".")), Fraction(match[2].removesuffix(".")))
    if _DECIMAL.fullmatch(text):
        return Fraction(text.replace(",", "").removesuffix("."))
    return None


def _repeating(text: str) -> Fraction | None:
    r"""`0.1\overline{6}`, `0.\dot{3}`, `0.1(6)`, and three of the same with dots after them: `0.1666...`."""
    if match := _REPEATING.fullmatch(text):
        sign, whole, fixed, over, over_one, bracketed, first, middle, last = match.groups()
        repeated = over or over_one or bracketed or (first + (middle or "") + (last or ""))
    elif match := _GOING_ON.fullmatch(text):
        sign, (whole, _, fixed), repeated = "", match[1].partition("."), match[2]
        sign, whole = whole[:1] if whole[:1] in ("+", "-") else "", whole.lstrip("+-")
    else:
        return None
    top = int(whole + fixed + repeated) - int(whole + fixed or 0)
    value = Fraction(top, 10 ** len(fixed) * (10 ** len(repeated) - 1))
    return -value if sign == "-" else value


def _quotient(top: Fraction, bottom: Fraction) -> Fraction | None:
    return top / bottom if bottom else None


def is_percent(text: str) -> bool:
    """Whether the text has a percent sign or says percent."""
    return "%" in text or "percent" in text


def same_number(given: Fraction, wanted: Fraction, tolerance: Tolerance = EXACT) -> bool:
    """Integers exactly, others to six digits, both at least within the tolerance."""
    relative = max(Fraction(tolerance.relative), ROUNDING if wanted.denominator > 1 else Fraction(0))
    return abs(given - wanted) <= max(Fraction(tolerance.absolute), relative * abs(wanted))


def plain(text: str) -> str:
    """The text without what LaTeX adds for looks: `$`, spaces, size and font commands, a closing full stop."""
    text = re.sub(rf"{TEXT}\{{([^{{}}]*)\}}", r"\1", SPACES.sub(" ", text.replace("\u2212", "-")))
    text = re.sub(r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big)(?![a-zA-Z])|\\displaystyle", "", text)
    text = re.sub(r"\\[cdt]frac(?![a-zA-Z])", r"\\frac", text).replace("$", "").replace("{,}", ",")
    text = re.sub(r"\\(?:leqslant|leq|le)(?![a-zA-Z])|≤", r"\\leq ", text)
    text = re.sub(r"\\(?:geqslant|geq|ge)(?![a-zA-Z])|≥", r"\\geq ", text)
    text = " ".join(text.split())  # no pattern below meets a long run of spaces
    text = re.sub(r"([_^])\s*\{\s*(\w)\s*\}", r"\1\2", text)
    text = re.sub(r"\s*([^\w\s])\s*", r"\1", text)  # a space matters only between two words or numbers
    text = " ".join(text.split()).removesuffix(".")
    choice = re.fullmatch(r"\(?([A-Za-z])\)?", text)
    return choice[1] if choice else text
