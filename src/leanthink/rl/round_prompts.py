"""Which prompts the rounds of dynamic sampling generate: none twice, as long as there are others.

Everything follows from the run's seed, the optimiser step and the generation batch, so it is the same on any number of
ranks and in a run that is resumed: what is counted here begins anew with each step, and checkpoints lie between steps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

Row = dict[str, Any]


class RoundPrompts:
    """Prompts for the rounds of one generation batch after the other.

    Rows with the same prompt count as one. Each generation batch has an order of its own of all prompts: the batch
    itself, the others at random, and last what earlier generation batches of the same optimiser step took. Its rounds
    take one prompt after the other, and begin again where all have been taken.

    Args:
        dataset: all rows, each with a `prompt`.
        seed: the run's.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self._dataset, self._seed = dataset, seed
        self._step, self._batches = -1, 0  # the latest optimiser step, generation batches in it so far
        self._taken: set[str] = set()  # keys of prompts that this step took
        self._order: list[Row | int] = []  # rows of the batch, then numbers of rows of the data set
        self._next = 0

    def begin(self, step: int, batch: Sequence[Row]) -> None:
        """A generation batch of this optimiser step, one row a group, of all ranks."""
        if step != self._step:
            self._step, self._batches, self._taken = step, 0, set()
        digest = hashlib.sha256(f"{self._seed}/{step}/{self._batches}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:6]))
        drawn = torch.randperm(len(self._dataset), generator=generator).tolist()
        own = {_key(row["prompt"]) for row in batch}
        others: dict[str, int] = {}
        for row in drawn:
            others.setdefault(self._keys[row], row)
        fresh = [row for key, row in others.items() if key not in own and key not in self._taken]
        taken = [row for key, row in others.items() if key not in own and key in self._taken]
        self._order, self._next = [*batch, *fresh, *taken], 0
        self._batches += 1

    def take(self, count: int) -> list[Row]:
        """The next so many prompts, one row each; the first round begins with the batch itself."""
        places = [place % len(self._order) for place in range(self._next, self._next + count)]
        self._next += count
        chosen = [self._order[place] for place in places]
        rows = [self._dataset[row] if isinstance(row, int) else row for row in chosen]
        self._taken.update(_key(row["prompt"]) for row in rows)
        return rows

    @cached_property
    def _keys(self) -> list[str]:
        return [_key(prompt) for prompt in self._dataset["prompt"]]


def _key(prompt: Any) -> str:
    """The same for equal prompts, and short."""
    return hashlib.sha256(json.dumps(prompt, sort_keys=True, default=str).encode()).hexdigest()[:24]
