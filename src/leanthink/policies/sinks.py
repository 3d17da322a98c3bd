"""The policy that keeps the first few thought tokens and the youngest ones (StreamingLLM, arXiv 2309.17453)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from leanthink.policies.policy import Policy, Slots
from leanthink.utils.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Sinks(Policy):
    """Keep the first `num_sinks` tokens of the thought, then the youngest.

    The paper's sinks are the first tokens of the sequence. Here those are the prompt's, which always stay, so the
    sinks are counted from the start of the thought.

    Attributes:
        num_sinks: how many.
        pins_prompt: False: as published, counted from the start of the sequence.
    """

    name: ClassVar[str] = "sinks"
    num_sinks: int = 4
    pins_prompt: bool = True

    def __post_init__(self) -> None:
        if self.num_sinks < 0:
            raise UsageError(f"Sinks: num_sinks must be at least 0, got {self.num_sinks}")

    def score(self, slots: Slots) -> Tensor:
        """Minus the age, and above 0 for a sink, the first highest: [R, S]."""
        index_RS = slots.positions - slots.prompt_tokens[:, None] if self.pins_prompt else slots.positions
        sink_RS = index_RS < self.num_sinks
        return torch.where(sink_RS, self.num_sinks - index_RS, -slots.ages).float()
