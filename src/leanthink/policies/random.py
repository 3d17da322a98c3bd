"""The policy that keeps a random set, shared by all layers and heads: what any ranking must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from leanthink.policies.counter_rng import STEP, mix, shift_right
from leanthink.policies.policy import Policy, Slots


@dataclass(frozen=True, kw_only=True)
class Random(Policy):
    """Keep a uniformly random set, drawn anew at every eviction from the request's seed."""

    name: ClassVar[str] = "random"

    def score(self, slots: Slots) -> Tensor:
        """A uniform number in [0, 1) for each (seed, next position, position), [R, S]."""
        return uniform(slots.seeds[:, None], slots.next_position[:, None], slots.positions)


def uniform_per_head(slots: Slots) -> Tensor:
    """A uniform number in [0, 1) for each (seed, next position, layer, head, position), [R, H, S]."""
    assert slots.layer is not None, "a policy per head is told the layer of each row"
    heads_H1 = torch.arange(slots.ages.shape[1], device=slots.ages.device)[:, None]
    of_rows = (of_row[:, None, None] for of_row in (slots.next_position, slots.layer))
    return uniform(slots.seeds[:, None, None], *of_rows, heads_H1, slots.positions)


def uniform(first: Tensor, *others: Tensor | int) -> Tensor:
    """A float32 in [0, 1) that is a pure function of the counters: int64 tensors, which broadcast, or integers.

    A hash and not a generator: the same on every device, in any batch, and in any order of requests.
    """
    mixed = mix(first + STEP)
    for counter in others:
        mixed = mix(mixed * STEP + counter + STEP)
    return shift_right(mixed, 40).float() * 2.0**-24
