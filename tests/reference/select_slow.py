"""`select` of one row in plain Python: the reference implementation that says what the fast one must return."""

from __future__ import annotations


def select_slow(scores: list[float], ages: list[int], pinned: list[bool], *, slots: int, window: int) -> list[int]:
    youngest_first = sorted((age, index) for index, age in enumerate(ages) if not pinned[index])
    free = [index for _, index in youngest_first]
    kept = [index for index, is_pinned in enumerate(pinned) if is_pinned]
    kept += free[:window]
    rest = sorted(free[window:], key=lambda index: (-scores[index], ages[index]))
    room = max(0, min(slots, len(free)) - len(free[:window]))
    return sorted(kept + rest[:room])
