"""The policy that keeps a random set for each layer and head (Random Attention, arXiv 2609.03430)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from leanthink.policies.policy import Policy, Slots
from leanthink.policies.random import uniform_per_head


@dataclass(frozen=True, kw_only=True)
class RandomHeads(Policy):
    """Keep a uniformly random set per layer and kv head, drawn anew at every eviction from the request's seed.

    With sets drawn apart, a token that one head has lost is likely to be still there for another.
    """

    name: ClassVar[str] = "random-heads"
    per_head: ClassVar[bool] = True

    def score(self, slots: Slots) -> Tensor:
        """A uniform number in [0, 1) for each (seed, next position, layer, head, position), [R, H, S]."""
        return uniform_per_head(slots)
