r"""Units after a number or a formula: what is one, what it is called, and the text without it."""

from __future__ import annotations

import re

TEXT = r"\\(?:text|textbf|textrm|textit|textnormal|mathrm|mathbf|mathit|mbox|operatorname)\s*"
_POWER = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)?"
_WORDS_IN_TEXT = re.compile(rf"{TEXT}\{{([^{{}}]*)\}}{_POWER}")
_SIGNS = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\circ(?![A-Za-z])|\\degree(?![A-Za-z])|°|\\%|%|\\\$|\$|€|£|¥")
# Words after a number in plain text. One letter may be a variable, so only these, after a space, are units.
_NOT_A_UNIT = r"(?:pi|or|and|to|mod|if|for|when|where|base|e|i|sin|cos|tan|log|ln|sqrt|exp)\b"
_WORD = rf"(?!{_NOT_A_UNIT})[A-Za-zµμ]{{2,}}\.?{_POWER}|[mgshLJNWVK]\b{_POWER}"
_PLAIN = re.compile(rf"(?<=[\d}}])\s+(?:{_WORD})(?:(?:\s*/\s*|\s+)[A-Za-zµμ]+{_POWER})*\.?$")
_PLAIN_GLUED = re.compile(rf"(?<=\d)(?:[kcmdµμn]?m|kg|mg|cm|km|in|ft|hr|min|mph|th|st|nd|rd)\b{_POWER}\.?$")
_SPACES = re.compile(r"\\[,;:! ]|~|\s")
_ONE_LETTER = frozenset("mgshdlLJNWVKCFTHAut")

_KNOWN = {
    spelling: words.split()[0]
    for words in (
        "mm millimeter millimetre", "cm centimeter centimetre", "dm decimeter decimetre", "m meter metre",
        "km kilometer kilometre", "in inch inche", "ft foot feet", "yd yard", "mi mile", "mg milligram", "g gram",
        "kg kilogram", "lb pound", "ms millisecond", "s sec second", "min minute", "h hr hour", "day", "week", "month",
        "year", "ml milliliter millilitre", "l liter litre", "degree", "radian rad", "dollar", "cent", "euro",
    )
    for spelling in words.split()
}  # fmt: skip
_FACTORS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}


def without_units(text: str, mark: str = "") -> str:
    r"""The text with `mark` for each unit in `\text{}`, degree, percent and currency sign; without words at its end."""
    text = _WORDS_IN_TEXT.sub(lambda found: mark if is_unit(found[1]) else found[0], text)
    text = _SIGNS.sub(mark, text).strip()
    return _PLAIN_GLUED.sub("", _PLAIN.sub("", text))


def unwrapped(text: str) -> str:
    r"""What a `\text{}` or `\mathbf{}` around all of the text holds; another text as it is."""
    found = _WORDS_IN_TEXT.fullmatch(text.strip())
    return found[1] if found else text


def without_unit(text: str) -> str:
    r"""A formula without the units that stand after it in `\text{}`; text that is nothing else stays."""
    text = text.rstrip()
    end = len(text)
    for found in reversed(list(_WORDS_IN_TEXT.finditer(text))):
        after, before = text[found.end() : end].strip(), text[: found.start()].strip()
        if after or not before or not is_unit(found[1]):
            break
        end = found.start()
    return text[:end]


def is_unit(words: str) -> bool:
    r"""Whether the content of a `\text{}` names a unit or a thing counted: no number, no operator, not i or e."""
    bare = _SPACES.sub(" ", words).strip(" .")
    if len(bare) == 1:
        return bare in _ONE_LETTER
    if re.match(_NOT_A_UNIT, bare, re.IGNORECASE):
        return False
    return bare == "" or re.fullmatch(r"[^\W\d_][^\W_]*(?:[\s/.·^\-'()]+[^\W_]+)*\)?", bare) is not None


def same_unit(given: str, gold: str) -> bool:
    """False where both texts end in units that are known and not the same: 5 cm is not 5 m."""
    ours, theirs = _unit(given), _unit(gold)
    return ours is None or theirs is None or ours == theirs


def _unit(text: str) -> str | None:
    """The unit at the end in one spelling, with its power: "cm", "m2"; None where there is none that is known."""
    if not re.search(r"[A-Za-z]", text):
        return None
    text = _SPACES.sub(" ", re.sub(rf"{TEXT}\{{([^{{}}]*)\}}", r" \1", text)).strip(" .$")
    found = re.search(r"(?:^|[\d\s}])(?:(square|sq|cubic|cu)\.? )?([A-Za-z]+)(?: ?\^ ?\{? ?([23]) ?\}?)?$", text)
    if found is None:
        return None
    name = found[2] if found[2] in _KNOWN else found[2].lower().removesuffix("s")
    return _KNOWN[name] + (found[3] or _FACTORS.get(found[1], "")) if name in _KNOWN else None
