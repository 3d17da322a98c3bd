"""Settings of the kind that their field says: TRL and transformers would find out late, or never."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import Field
from numbers import Integral
from typing import Any

from leanthink.utils.errors import UsageError

TOLD = {"bool": "true or false", "int": "a number, whole and of at most 64 bits", "float": "a number", "str": "text"}
WIDER = ("scale_rewards", "fsdp")  # take truth values, too, which their fields do not say


def of_kind(field: Field[Any], value: Any) -> Any:
    """The value of a field that is a truth value, a number, text, or one of these or None; others are left alone.

    A number may be text, as YAML reads 1e-6 as such, and a whole number may end in .0; a path is text.

    Raises:
        UsageError: it is of another kind, or no number (NaN).
    """
    told = field.type.__name__ if isinstance(field.type, type) else str(field.type)
    kinds = told.split(" | ")
    kind = next((one for one in kinds if one != "None"), "")
    if kind not in TOLD or not {*kinds} <= {kind, "None"} or field.name in WIDER:
        return value
    if value is None and (field.default is None or "None" in kinds):
        return None
    found = _KINDS[kind](value)
    if found is None:
        raise UsageError(f"{field.name}={value!r}: must be {TOLD[kind]}")
    return found


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, float):
        return None if math.isnan(value) else value
    return _whole(value)


def _whole(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    return int(value) if is_whole and -(2**63) <= value < 2**63 else None


def _text(value: Any) -> str | None:
    return os.fspath(value) if isinstance(value, str | os.PathLike) else None


_KINDS = {"bool": _truth, "int": _whole, "float": _number, "str": _text}
