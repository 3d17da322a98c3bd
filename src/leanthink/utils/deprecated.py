"""Names that were changed: an old one still works, and says once in each process what it is called now."""

from __future__ import annotations

import warnings

_told: set[str] = set()


def warn_renamed(old: str, new: str, *, stacklevel: int = 2) -> None:
    """Say once in this process what `old` is called now, by a FutureWarning: Python shows these to users.

    Args:
        old: as the user wrote it, such as "Engine.cut" or "--interval".
        new: as it is to be written.
        stacklevel: whose line the warning names, counted as by `warnings.warn`: 2 for the caller of the function that
            calls this one.
    """
    if old in _told:
        return
    warnings.warn(f"{old} is called {new} now: use that name", FutureWarning, stacklevel=stacklevel + 1)
    _told.add(old)
