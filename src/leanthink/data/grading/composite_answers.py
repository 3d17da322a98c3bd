r"""Answers of several parts: lists and sets in any order, tuples, intervals, unions, `\pm` and inequalities."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from leanthink.data.grading.answer_normalisation import SPACES, plain

SameAnswer = Callable[[str, str], bool]  # (given, gold)
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_AND = re.compile(r"\\text\s*\{\s*(?:,\s*)?(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])")
_OR = re.compile(r"(?<![a-zA-Z\\])or(?![a-zA-Z])")
_EMPTY = re.compile(r"\\emptyset")
# `n \equiv 3 \pmod 4` in its spellings; the name does not count.
_MODULO = r"(?:\\pmod|\(\s*(?:\\[bp]?mod|\\text\s*\{\s*mod\s*\}|mod)(?![a-zA-Z]))"
_EQUIVALENT_OR_MODULO = re.compile(rf"(\\equiv(?![a-zA-Z]))|{_MODULO}")
_CONGRUENCE = re.compile(rf"\s*(.+?)\s*{_MODULO}\s*(?:\{{(.+)\}}|(.+?))\s*\)?")
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_BELONGS = re.compile(r"^\s*\\?[a-zA-Z]+\s*\\in(?![a-zA-Z])\s*")
_SUCH_THAT = re.compile(r"^[a-zA-Z]\s*(?:\\in\s*\\mathbb\{?R\}?\s*)?(?:\||:|\\mid(?![a-zA-Z]))\s*")
_LESS, _MORE = r"<|\\leq\s*|\\lt\s*", r">|\\geq\s*|\\gt\s*"
_CHAIN_UP = re.compile(rf"(.+?)({_LESS})\s*[a-zA-Z]\s*({_LESS})(.+)")
_CHAIN_DOWN = re.compile(rf"(.+?)({_MORE})\s*[a-zA-Z]\s*({_MORE})(.+)")
_NAME_FIRST = re.compile(rf"[a-zA-Z]\s*({_LESS}|{_MORE})(.+)")
_NAME_LAST = re.compile(rf"(.+?)({_LESS}|{_MORE})\s*[a-zA-Z]")


@dataclass(frozen=True)
class CompositeAnswer:
    """An answer of at least two parts, or a set.

    Attributes:
        kind: "list" (any order; also a set), "tuple" (with its brackets, ordered; also an interval), "union",
            "ratio" (of three or more) or "congruence" (residue and modulus).
        parts: their texts.
        brackets: of a tuple, such as "(]"; "" where there are none.
    """

    kind: str
    parts: tuple[str, ...]
    brackets: str = ""


def composite_answer(text: str) -> CompositeAnswer | None:
    """The parts of an answer; None for an answer that is one formula, number or word."""
    text = _BELONGS.sub("", _tidy(text))
    text = re.sub(r"^[a-zA-Z]\s*=\s*(?=[\[({]|\\\{)", "", text)
    if _EMPTY.fullmatch(text):
        return CompositeAnswer("list", ())
    if (congruence := _congruence(text)) is not None:
        return congruence
    unions = split_top(text, re.compile(r"\\cup(?![a-zA-Z])|∪"))
    if len(unions) > 1:
        return CompositeAnswer("union", unions)
    if (inside := _enclosed(text, r"\{", r"\}")) is not None:
        if between := _interval(_SUCH_THAT.sub("", inside)) if _SUCH_THAT.match(inside) else None:
            return between
        return CompositeAnswer("list", split_top(inside, _COMMA) if inside else ())
    if between := _interval(text):
        return between
    if len(ratio := split_top(text, _COLON)) > 2:
        return CompositeAnswer("ratio", ratio)
    for opening in "([":
        for closing in ")]":
            inside = _enclosed(text, opening, closing)
            if inside is not None and len(split_top(inside, _COMMA)) > 1:
                return CompositeAnswer("tuple", split_top(inside, _COMMA), opening + closing)
    return _list(text)


def _congruence(text: str) -> CompositeAnswer | None:
    """Residue and modulus, behind the last sign of equivalence that has a modulus after it."""
    start, after = None, 0
    for found in _EQUIVALENT_OR_MODULO.finditer(text):
        if found[1]:
            after = found.end()
        else:
            start = after
    if start is None or (match := _CONGRUENCE.fullmatch(text, start)) is None:
        return None
    return CompositeAnswer("congruence", (match[1], match[2] or match[3]))


def _list(text: str) -> CompositeAnswer | None:
    """CompositeAnswer with commas, semicolons, `and` or `or` between them; both signs of one plus-or-minus."""
    parts = _listed(text)
    if len(parts) > 1 and _OR.search(text) and all(map(_interval, parts)):
        return CompositeAnswer("union", parts)  # x < 2 or x > 3
    if len(parts) > 1:
        return CompositeAnswer("list", tuple(sign for part in parts for sign in _signs(part)))
    return CompositeAnswer("list", signs) if len(signs := _signs(text)) > 1 else None


def is_listed(text: str) -> bool:
    """Whether commas, semicolons, `and` or `or` outside of all brackets make the text a list."""
    return len(_listed(_tidy(text))) > 1


def _listed(text: str) -> tuple[str, ...]:
    bare = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    return split_top(re.sub(r",\s*,", ",", _AND.sub(",", bare)), _COMMA)


def _signs(text: str) -> tuple[str, ...]:
    if len(re.findall(r"\\pm(?![a-zA-Z])|±", text)) != 1:
        return (text,)
    both = [re.sub(r"\\pm(?![a-zA-Z])|±", sign, text) for sign in "+-"]
    return tuple(text.strip().removeprefix("+") for text in both)


def same_parts(given: str, gold: str, same: SameAnswer) -> bool | None:
    """Whether two answers have the same parts; None if neither has any, so that it is for others to tell."""
    ours, theirs = composite_answer(given), composite_answer(gold)
    if ours is None and theirs is None:
        return None
    if theirs is not None and ours is None and len(split_top(given, _COMMA)) == len(theirs.parts) > 1:
        ours = CompositeAnswer("list", split_top(given, _COMMA))  # 100,200 can be one number, and here it is two
    if ours is None or theirs is None or len(ours.parts) != len(theirs.parts):
        return False
    if ours.kind != theirs.kind and {ours.kind, theirs.kind} != {"list", "tuple"}:
        return False
    if _ORDERED & {ours.kind, theirs.kind}:
        if ours.brackets and theirs.brackets and ours.brackets != theirs.brackets:
            return False
        return all(same(one, other) for one, other in zip(ours.parts, theirs.parts, strict=True))
    return _matched(ours.parts, theirs.parts, same)


def _matched(given: Sequence[str], gold: Sequence[str], same: SameAnswer) -> bool:
    """Whether each of the gold's parts is one of the given ones, each used once."""
    ours, theirs = list(map(plain, given)), list(map(plain, gold))
    texts = Counter(ours) & Counter(theirs)  # equal texts first: long lists stay linear
    left, still = _without(given, ours, texts), _without(gold, theirs, texts)
    for wanted in still:
        found = next((index for index, part in enumerate(left) if same(part, wanted)), None)
        if found is None:
            return False
        left.pop(found)
    return True


def _without(parts: Sequence[str], plain_parts: Sequence[str], texts: Counter[str]) -> list[str]:
    """The parts but for so many of each plain text."""
    count, left = Counter(texts), []
    for part, text in zip(parts, plain_parts, strict=True):
        count[text] -= 1
        if count[text] < 0:
            left.append(part)
    return left


_COMMA, _COLON = re.compile(r"[,;]"), re.compile(r":")
_ORDERED = {"tuple", "ratio", "congruence"}


def split_top(text: str, separator: re.Pattern[str]) -> tuple[str, ...]:
    """The pieces between separators that stand outside of all brackets; one piece where there are none."""
    pieces, start, at, depth = [], 0, 0, 0
    while at < len(text):
        if text[at] == "\\" and at + 1 < len(text) and text[at + 1] in "{}":
            depth += 1 if text[at + 1] == "{" else -1
            at += 2
        elif depth == 0 and (found := separator.match(text, at)):
            pieces.append(text[start:at])
            start = at = found.end()
        else:
            depth += (text[at] in "([{") - (text[at] in ")]}")
            at += 1
    return tuple(piece.strip() for piece in (*pieces, text[start:]) if piece.strip())


def _enclosed(text: str, opening: str, closing: str) -> str | None:
    """What stands between these brackets if they are a pair around all of the text."""
    if not (text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening) + len(closing)):
        return None
    inside = text[len(opening) : len(text) - len(closing)]
    depth = 0
    for bracket in re.findall(r"[()\[\]{}]", inside):
        depth += 1 if bracket in _PAIRS else -1
        if depth < 0:
            return None
    return inside.strip() if depth == 0 else None


def _interval(text: str) -> CompositeAnswer | None:
    """An inequality in one letter as the interval it says."""
    low, high = r"-\infty", r"\infty"
    if match := _CHAIN_UP.fullmatch(text):
        return _between(match[1], match[2], match[4], match[3])
    if match := _CHAIN_DOWN.fullmatch(text):
        return _between(match[4], match[3], match[1], match[2])
    if match := _NAME_FIRST.fullmatch(text):
        sign, end = match[1], match[2]
        upwards = re.match(_MORE, sign) is not None
    elif match := _NAME_LAST.fullmatch(text):
        sign, end = match[2], match[1]
        upwards = re.match(_LESS, sign) is not None
    else:
        return None
    if split_top(end, re.compile(rf"[,;]|{_LESS}|{_MORE}")) != (end.strip(),) or _AND.search(end):
        return None
    return _between(end, sign, high, "<") if upwards else _between(low, "<", end, sign)


def _between(low: str, low_sign: str, high: str, high_sign: str) -> CompositeAnswer | None:
    if any(split_top(end, re.compile(rf"[,;]|{_LESS}|{_MORE}")) != (end.strip(),) for end in (low, high)):
        return None
    closed = [r"\leq" in sign or r"\geq" in sign for sign in (low_sign, high_sign)]
    return CompositeAnswer("tuple", (low.strip(), high.strip()), "(["[closed[0]] + ")]"[closed[1]])


def _tidy(text: str) -> str:
    """As one way of writing: infinity without a plus, brackets without sizes, no spaces for looks."""
    text = text.replace("{,}", ",").replace(r"\$", "").replace("$", "").replace("\u2212", "-")
    text = " ".join(SPACES.sub(" ", text).split())
    text = re.sub(r"\+\s*\\infty|\\infty|∞", r"\\infty", text)
    text = text.replace(r"\langle", "(").replace(r"\rangle", ")")
    text = re.sub(r"\\lbrace(?![a-zA-Z])", r"\\{", re.sub(r"\\rbrace(?![a-zA-Z])", r"\\}", text))
    text = re.sub(r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big)(?![a-zA-Z])", "", text)
    text = re.sub(r"\\(?:leqslant|leq|le)(?![a-zA-Z])|≤", r"\\leq ", text)
    return re.sub(r"\\(?:geqslant|geq|ge)(?![a-zA-Z])|≥", r"\\geq ", text).strip().removesuffix(".")
