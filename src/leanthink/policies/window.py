"""The policy that keeps the youngest thought slots and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from leanthink.policies.policy import Policy, Slots


@dataclass(frozen=True, kw_only=True)
class Window(Policy):
    """Keep the youngest: the sliding window that every other policy has to beat."""

    name: ClassVar[str] = "window"

    def score(self, slots: Slots) -> Tensor:
        """Minus the age, [R, S]."""
        return -slots.ages.float()
