"""The policy that keeps a random set for each layer and head (Random Attention, arXiv 2609.03430)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from leanthink.policies.policy import Policy, Slots
from leanthink.policies.random import uniform


@dataclass(frozen=True, kw_only=True)
class RandomHeads(Policy):
    """Keep a uniformly random set per layer and kv head, drawn anew at every eviction from the request's seed.

    With sets drawn apart, a token that one head has lost is likely to be still there for another.
    """

    name: ClassVar[str] = "random-heads"
    per_head: ClassVar[bool] = True

    def score(self, slots: Slots) -> Tensor:
        """A uniform number in [0, 1) for each (seed, next position, layer, head, position), [R, H, S]."""
        assert slots.layer is not None, "a policy per head is asked once per layer"
        heads_H1 = torch.arange(slots.ages.shape[1], device=slots.ages.device)[:, None]
        return uniform(
            slots.seeds[:, None, None], slots.next_position[:, None, None], slots.layer, heads_H1, slots.positions
        )
