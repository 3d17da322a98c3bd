"""Settings of the kind that their field says: TRL and transformers would find out late, or never."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import Field
from numbers import Integral
from typing import Any

from leanthink.utils.errors import LeanThinkError, UsageError
from leanthink.utils.file_reading import is_int, said

TOLD = {
    "bool": "true or false",
    "int": "a number, whole and of at most 64 bits",
    "float": "a number, and finite",
    "str": "text",
    "dict": "a mapping",
    "list": "a list",
}
WIDER = ("scale_rewards", "fsdp", "accelerator_config")  # take more than their fields say
OWN_WORDS = ("all_correct_weight", "rollout_budget")  # are refused later, and more is said


def of_kind(field: Field[Any], value: Any) -> Any:
    """The value of a field, if its type is made of those in TOLD and of None; others are left alone.

    A number may be text, as YAML reads 1e-6 as such, and a whole number may end in .0; a path is text.

    Raises:
        UsageError: it is of another kind, or no finite number.
    """
    told = field.type.__name__ if isinstance(field.type, type) else str(field.type)
    kinds = [kind.partition("[")[0] for kind in told.split(" | ") if kind != "None"]
    if not {*kinds} <= {*TOLD} or field.name in WIDER:
        return value
    if value is None and (field.default is None or "None" in told):
        return None
    for kind in kinds:
        found = _FOUND[kind](value)
        if found is not None:
            return found
    if field.name in OWN_WORDS:
        return value
    raise UsageError(f"{field.name}={value!r}: must be {' or '.join(TOLD[kind] for kind in kinds)}")


@contextmanager
def refused_settings() -> Iterator[None]:
    """What TRL and transformers raise of settings is one UsageError; they check some values and trip over others."""
    try:
        yield
    except LeanThinkError:
        raise
    except (ArithmeticError, AttributeError, ImportError, LookupError, OSError, TypeError, ValueError) as error:
        raise UsageError(f"TRL and transformers refuse these settings ({said(error)})") from error


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _whole(value)


def _whole(value: Any) -> int | None:
    is_whole = value.is_integer() if isinstance(value, float) else isinstance(value, Integral)
    if is_whole and not isinstance(value, bool):
        value = int(value)
    return value if is_int(value) else None


def _text(value: Any) -> str | None:
    return os.fspath(value) if isinstance(value, str | os.PathLike) else None


def _mapping(value: Any) -> Any:
    return value if isinstance(value, Mapping) else None


def _list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else None


_FOUND = {"bool": _truth, "int": _whole, "float": _number, "str": _text, "dict": _mapping, "list": _list}
