r"""Letters of multiple choice, alone or before what they stand for: `(B)`, `C. 12 m/s`, `\textbf{(B)}\ 12`."""

from __future__ import annotations

import re

from leanthink.data.grading.answer_normalisation import SPACES, plain
from leanthink.data.grading.units import TEXT

_TEXT_COMMAND = re.compile(rf"{TEXT}\{{([^{{}}]*)\}}")
_CHOICE = re.compile(
    r"(?:option|choice|answer)?[\s:]*\(?([A-K])(?:\)(?:[\s.:].*)?|[.:](?:\s.*)?|\s+[-–—]\s.*)?",
    re.IGNORECASE | re.DOTALL,
)
_WITH_VALUE = re.compile(r"(?:\(\s*([A-K])\s*\)\s*[.:]?|([A-K])\s*[.:)]\s)\s*(\S.*)", re.DOTALL)
_STATED = re.compile(
    r"(?i:answer|option|choice)(?i:\s+is)?\s*[:=]?\s*(?i:option|choice)?\s*[*$({\\\s]*(?:text\{)?\(?([A-K])\b(?!['’])"
)


def is_letter(gold: str) -> bool:
    """Whether the gold is the letter of a choice."""
    return re.fullmatch(r"[A-K]", plain(gold)) is not None


def letter_of(text: str) -> str | None:
    """The letter of an answer such as `(C) 12 m` or `C. 12 m`, in upper case; None for any other text."""
    found = _CHOICE.fullmatch(_bare(text))
    return found[1].upper() if found else None


def letter_and_value(text: str) -> tuple[str, str] | None:
    r"""The letter and what stands after it, as contests print it: `\textbf{(B)}\ 12`; None for any other text."""
    found = _WITH_VALUE.fullmatch(_bare(text))
    if found is None or _WITH_VALUE.fullmatch(found[3]):  # (A) (B) (C) is a list
        return None
    return found[1] or found[2], found[3]


def stated_letter(text: str) -> str | None:
    """The last letter that a text says is the answer."""
    found = _STATED.findall(text)
    return found[-1] if found else None


def _bare(text: str) -> str:
    # Only letters in brackets lose their \text{}: what stands after them may be a formula with units.
    text = re.sub(rf"^\s*{TEXT}\{{\s*(\(?[A-Ka-k]\)?[.:]?)\s*\}}", r"\1 ", SPACES.sub(" ", text.strip().strip("$*")))
    text = text if _WITH_VALUE.fullmatch(text.strip()) else _TEXT_COMMAND.sub(r"\1", text)
    return text.strip().strip("$*").strip()
