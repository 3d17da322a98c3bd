"""Classes whose fields were renamed: the old names still work as keywords and attributes, and say what they are now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

from leanthink.utils.deprecated import warn_renamed
from leanthink.utils.errors import UsageError

T = TypeVar("T")


def renamed_fields(**new_names: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: each old name stands for the field of its new name, where a keyword or an attribute is meant.

    Where both names are given, as `dataclasses.replace` does with an old one, the old name counts.
    """

    def decorate(kind: type[T]) -> type[T]:
        init = kind.__init__

        @wraps(init)
        def __init__(self: T, *positional: Any, **given: Any) -> None:
            for old, new in new_names.items():
                if old in given:
                    warn_renamed(f"{kind.__name__}({old}=)", f"{kind.__name__}({new}=)", stacklevel=2)
                    given[new] = given.pop(old)
            init(self, *positional, **given)

        kind.__init__ = __init__  # type: ignore[method-assign, assignment]
        for old, new in new_names.items():
            setattr(kind, old, property(_reading(kind.__name__, old, new)))
        return kind

    return decorate


def _reading(kind: str, old: str, new: str) -> Callable[[Any], Any]:
    def read(self: Any) -> Any:
        warn_renamed(f"{kind}.{old}", f"{kind}.{new}", stacklevel=2)
        return getattr(self, new)

    read.__doc__ = f"The old name of `{new}`."
    return read


def new_keys(what: str, given: Mapping[str, Any], new_names: Mapping[str, str]) -> dict[str, Any]:
    """Settings by their new names; an old one is said once. Raises UsageError where both names are given.

    Args:
        what: where the settings stand, in words.
        given: by old or new names, and any others.
        new_names: the new name of each old one.
    """
    found = dict(given)
    for old, new in new_names.items():
        if old not in given:
            continue
        if new in given:
            raise UsageError(f"{what}: {old} and {new} are one thing: give {new} alone")
        warn_renamed(f"{old} in {what}", f"{new} there")
        found[new] = found.pop(old)
    return found
