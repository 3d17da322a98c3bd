"""Names that were changed: an old one still works, and says once in each process what it is called now."""

from __future__ import annotations

import warnings

from leanthink.utils.errors import LeanThinkWarning

_told: set[str] = set()


class RenamedWarning(LeanThinkWarning, FutureWarning):
    """A name was used that is called otherwise now; the message says how."""


def warn_renamed(old: str, new: str, *, stacklevel: int = 2) -> None:
    """Say once in this process what `old` is called now, by a RenamedWarning: Python shows these to users.

    Args:
        old: as the user wrote it, such as "Engine.cut" or "--interval".
        new: as it is to be written.
        stacklevel: whose line the warning names, counted as by `warnings.warn`: 2 for the caller of the function that
            calls this one.
    """
    if old in _told:
        return
    warnings.warn(f"{old} is called {new} now: use that name", RenamedWarning, stacklevel=stacklevel + 1)
    _told.add(old)
