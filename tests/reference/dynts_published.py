"""The selection rule of DynTS as its authors run it at batch 1 (arXiv 2601.18383), in plain Python.

State: one score for each slot of the cache, prompt included. When the cache held `cache` slots or more at the end of
the step before, the last `window` slots stay, and of the others the int(ratio * count) with the highest scores. Prompt
tokens have an infinite score, and are counted. Of equal scores any may stay there; here, the younger do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def evicted_at_published(
    scores: Sequence[float], *, prompt: int, cache: int, window: int, ratio: float
) -> tuple[list[int | None], int]:
    """For each generated token the count of tokens fed when it went, None if it stays; and how many of the prompt went.

    `scores` are those of the generated tokens that were fed, in their order.
    """
    held = [(math.inf, -1 - index) for index in range(prompt)]
    gone: dict[int, int] = {}
    for fed, score in enumerate(scores, start=1):
        is_due = len(held) >= cache
        held.append((score, fed - 1))
        if is_due:
            older, young = held[:-window], held[-window:]
            quota = int(len(older) * ratio)
            best = sorted(range(len(older)), key=lambda index: (older[index][0], index), reverse=True)[:quota]
            gone |= {older[index][1]: fed for index in range(len(older)) if index not in best}
            held = [older[index] for index in sorted(best)] + young
    return [gone.get(token) for token in range(len(scores))], sum(token < 0 for token in gone)
