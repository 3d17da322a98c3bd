"""The policy that keeps everything: the baseline that all others are measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from leanthink.policies.policy import Policy, Slots


@dataclass(frozen=True, kw_only=True)
class Full(Policy):
    """Keep every slot. It runs without a budget, so it is never asked to rank."""

    name: ClassVar[str] = "full"

    def score(self, slots: Slots) -> Tensor:
        """Never called: no eviction is ever due without a budget."""
        raise AssertionError("policy 'full' has no budget and evicts nothing, so nothing may ask it to rank")
