"""What files may hold: JSON with one error, fields of their kinds, and the errors of parsers told in a sentence.

Everything that is read from a file goes through here, so that nothing in it is a traceback.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from leanthink.utils.errors import DamagedFile, LeanThinkError, UsageError

MOST_SHOWN = 80  # characters of a value in a message
MOST_TOKEN_ID = 2**31 - 1
DEEPEST = 100  # brackets in brackets in JSON; whatever else walks through what was read may go as deep


class WrongField(UsageError):
    """A field is missing, or not of its kind."""


@dataclass(frozen=True)
class Kind:
    """What a field may be: in words, and whether a value is it."""

    told: str
    holds: Callable[[Any], bool]

    def or_null(self) -> Kind:
        """The same, or null."""
        return Kind(f"{self.told} or null", lambda value: value is None or self.holds(value))

    def listed(self, told: str) -> Kind:
        """A list of such values; what that is in words."""
        return Kind(told, lambda value: isinstance(value, list | tuple) and all(map(self.holds, value)))


def is_int(value: object) -> bool:
    """Whether it is a whole number of 64 bits, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def is_number(value: object) -> bool:
    """Whether it is a number that a float can hold, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_text(value: object) -> bool:
    """Whether it is a string that can be sent and stored: JSON can hold half of a surrogate pair, UTF-8 cannot."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


TEXT = Kind("a string without half of a surrogate pair", is_text)
STRING = Kind("a string", lambda value: isinstance(value, str))
BOOLEAN = Kind("true or false", lambda value: isinstance(value, bool))
INTEGER = Kind("an integer of 64 bits", is_int)
COUNT = Kind("an integer >= 0 and below 2^63", lambda value: is_int(value) and value >= 0)
SIZE = Kind("an integer from 1 to 2^31 - 1", lambda value: is_int(value) and 1 <= value <= MOST_TOKEN_ID)
NOT_NEGATIVE = Kind("a number >= 0", lambda value: is_number(value) and value >= 0)
OBJECT = Kind("an object", lambda value: isinstance(value, Mapping))
COUNTS = COUNT.listed("a list of integers >= 0")
TOKEN_IDS = Kind("", lambda value: is_int(value) and 0 <= value <= MOST_TOKEN_ID).listed(
    "a list of integers from 0 to 2^31 - 1"
)


def check_kinds(values: Mapping[str, object], kinds: Mapping[str, Kind]) -> None:
    """Raise WrongField, naming field, value and what it must be, unless each of these fields is of its kind."""
    for name, kind in kinds.items():
        if name not in values:
            raise WrongField(f"the field {name!r} is missing: it must be {kind.told}")
        if not kind.holds(values[name]):
            raise WrongField(f"{name} must be {kind.told}, got {str(values[name])[:MOST_SHOWN]!r}")


def parse_json(text: str | bytes, **options: Any) -> Any:
    """As `json.loads`, with `options` for it. Whatever is wrong with the text is a ValueError.

    That also goes for NaN, infinity and for more than DEEPEST brackets in brackets.
    """
    try:
        found = json.loads(text, **({"parse_constant": _no_number, "parse_float": _finite} | options))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _brackets(text) > DEEPEST and _is_deep(found):
        raise ValueError("it is nested too deeply")
    return found


def _brackets(text: str | bytes) -> int:
    return text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")


def _is_deep(found: Any) -> bool:
    level = [found]
    for _ in range(DEEPEST):
        containers = [one for one in level if isinstance(one, list | dict)]
        level = [part for one in containers for part in (one.values() if isinstance(one, dict) else one)]
    return any(isinstance(one, list | dict) for one in level)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"the number {digits[:MOST_SHOWN]} is too large")
    return number


@contextmanager
def reading(what: object, kind: str, cure: str) -> Iterator[None]:
    """Whatever a parser makes of the content of `what`, a file of this `kind`, is one DamagedFile, which tells a cure.

    Our own errors are let through, but that a wrong field is told with the file's name; so are those of the system that
    have a number: they say it already.
    """
    try:
        yield
    except WrongField as error:
        raise DamagedFile(f"{what} cannot be read, {error}: {cure}") from None
    except LeanThinkError:
        raise
    except Exception as error:  # parsers of other packages raise anything, from struct.error to AttributeError
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DamagedFile(f"{what} cannot be read, it is truncated or no {kind} ({said(error)}): {cure}") from error


def said(error: Exception) -> str:
    """What an error of another package says, in a line; its name where it says nothing."""
    told = " ".join(str(error).split())[: 5 * MOST_SHOWN]
    return f"{type(error).__name__}: {told}" if told else type(error).__name__
