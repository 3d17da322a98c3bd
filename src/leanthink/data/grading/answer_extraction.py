r"""Finds the answer in a generated text: after the thought, in the last box or boxes, else where the text states it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from operator import itemgetter
from typing import NamedTuple

from leanthink.data.grading.answer_normalisation import as_number, first_number, last_number, plain
from leanthink.data.grading.multiple_choice import is_letter, stated_letter

END_OF_THOUGHT = "</think>"
MOST_CHARACTERS = 10_000  # of a text without a box: the answer is looked for in the last ones

_BRACE = re.compile(r"\\f?boxed\s*\{|\\fbox\s*\{|\\[\\{}](?!f?boxed|fbox)|[{}]")
# What may stand between two boxes of one answer: `, `, `and`, `or`, with the name of the next: `$ or $x=`.
_BETWEEN = re.compile(
    r"(?:[\s$]|\\[,;:!\[\]() ]|\\q?quad(?![A-Za-z]))*"
    r"(?:[,;]\s*(?:and|or)?|and|or|\\text\s*\{\s*,?\s*(?:and|or)\s*\})"
    r"(?:[\s$]|\\[,;:!\[\]() ]|\\q?quad(?![A-Za-z]))*"
    r"(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?\s*=\s*\$?\s*)?"
)
_MOST_BETWEEN = 60
_STATEMENT = re.compile(r"####|(?i:\banswers?(?:\s+is|\s+are|\**\s*[:=]))")
_MATHS = re.compile(
    r"\$\$(.{1,1000}?)\$\$|\\\[(.{1,1000}?)\\\]|\\\((.{1,1000}?)\\\)|(?<![\\$])\$(?!\s)([^$\n]{1,1000}?)(?<![\s\\])\$(?!\d)",
    re.DOTALL,
)
_SENTENCE = re.compile(r"(?:[^.\n]|\.(?!\s|$|\*))*")


class Piece(NamedTuple):
    """A box or a formula of a text: where it starts and ends, and where in the text what it holds does.

    Not what it holds itself: of boxes in boxes that would be as much as the square of the text.
    """

    start: int
    end: int
    content: slice


def answer_section(text: str, *, think_tags: bool) -> str | None:
    """What follows the last `</think>`, the part that may be graded; None for a thought that never ended."""
    _, closed, answer = text.rpartition(END_OF_THOUGHT)
    if closed:
        return answer
    return None if think_tags else text


def given_answer(section: str, gold: str) -> str | None:
    """What is compared with the gold: the boxes, or what stands for them in a text without; None: nothing does."""
    if boxes := _boxes(section):
        return _together(section, boxes)
    section = section.strip()[-MOST_CHARACTERS:]
    if is_letter(gold):
        return stated_letter(section) or stated_answer(section, is_number=False)
    return stated_answer(section, is_number=as_number(gold) is not None)


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete \boxed{...} or \fbox{...}, braces balanced; None where there is none."""
    boxes = _boxes(text)
    return text[boxes[-1].content] if boxes else None


def stated_answer(text: str, *, is_number: bool) -> str | None:
    """The answer that a text without a box states.

    It follows the last "answer is" or ####: the formula that stands there, or the sentence. A text that says neither
    gives its last formula, or a number that comes after that. `is_number`: the gold is a number, so what has no
    digit is passed over and a number in a sentence is enough; None where there is none.
    """
    ends = [told.end() for told in _STATEMENT.finditer(text)]
    if ends and text[ends[-1] :].strip(" *:$\n."):
        start = len(text) - len(text[ends[-1] :].lstrip(" *:\n"))
        pieces = _maths(text, start)
        if pieces and pieces[0].start == start and (not is_number or re.search(r"\d", text[pieces[0].content])):
            return _together(text, pieces, is_first=True)
        sentence = _SENTENCE.match(text, start)
        assert sentence is not None
        told_first = first_number(sentence[0]) if is_number else None
        return told_first or _in_sentence(sentence[0].strip(" *"), is_number=is_number)
    return _in_sentence(text, is_number=is_number)


def _in_sentence(text: str, *, is_number: bool) -> str | None:
    if is_number and as_number(text) is not None:
        return text
    pieces = [piece for piece in _maths(text, 0) if not is_number or re.search(r"\d", text[piece.content])]
    number = last_number(text[pieces[-1].end if pieces else 0 :]) if is_number else None
    if pieces and number is None:
        return _together(text, pieces)
    return number if is_number else text


def _maths(text: str, start: int) -> list[Piece]:
    """The formulas from `start` on, in dollars or LaTeX's brackets."""
    found = _MATHS.finditer(text, start)
    return [Piece(one.start(), one.end(), slice(*one.span(one.lastindex or 0))) for one in found]


def _boxes(text: str) -> list[Piece]:
    """All complete boxes, by their start; one pass."""
    boxes: list[Piece] = []
    open_at: list[tuple[int, int] | None] = []  # start of box and content; None for another brace
    for found in _BRACE.finditer(text):
        if found[0].startswith("\\") and found[0].endswith("{") and len(found[0]) > 2:
            open_at.append((found.start(), found.end()))
        elif found[0] == "{":
            open_at.append(None)
        elif found[0] == "}" and open_at and (box := open_at.pop()) is not None:
            boxes.append(Piece(box[0], found.end(), slice(box[1], found.start())))
    return sorted(boxes, key=itemgetter(0))


def _together(text: str, pieces: Sequence[Piece], *, is_first: bool = False) -> str:
    """The last piece (or the first) with those that only a comma, `and` or `or` stands between: they are one answer."""
    ordered = list(pieces) if is_first else list(reversed(pieces))
    kept = [ordered[0]]
    for piece in ordered[1:]:
        before, after = (kept[-1], piece) if is_first else (piece, kept[-1])
        between = text[before.end : after.start]
        if before.end > after.start or len(between) > _MOST_BETWEEN or not _BETWEEN.fullmatch(between):
            break
        kept.append(piece)
    return ", ".join(_without_repeats([text[piece.content] for piece in (kept if is_first else reversed(kept))]))


def _without_repeats(contents: Sequence[str]) -> list[str]:
    r"""One of each value: `\boxed{\frac12}` or `\boxed{0.5}` is one answer, written twice."""
    return list({_value(content): content for content in reversed(contents)}.values())[::-1]


def _value(content: str) -> Fraction | str:
    number = as_number(content)
    return plain(content) if number is None else number
