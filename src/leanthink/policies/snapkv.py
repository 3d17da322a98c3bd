"""The policy of SnapKV (arXiv 2404.14469) in its decoding form: keep, per head, what recent queries attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import max_pool1d

from leanthink.policies.observed import observed_attention
from leanthink.policies.policy import Policy, Slots
from leanthink.utils.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class SnapKV(Policy):
    """Rank a thought slot by the attention of the last `observation` queries, pooled over its neighbours.

    The paper compresses a prompt once, after the prefill. Like the adaptation in R-KV's public code this one ranks
    what was generated, again at every eviction, with that code's 8 queries and pool of 7. It differs from it in three
    points: the softmax runs over all that a query saw, as in the paper, where that code leaves the youngest slots
    out; the query heads of a kv head vote by the mean of their attention, where it takes the maximum of their
    logits; and the slots that always stay are the budget's window, the pool covers all.

    Attributes:
        observation: how many of the latest queries vote. Each votes on slots at least as old as itself.
        kernel: slots, an odd number, over which the maximum is taken so that a kept token brings its neighbours.
        pins_prompt: False: as published.
    """

    name: ClassVar[str] = "snapkv"
    per_head: ClassVar[bool] = True
    observation: int = 8
    kernel: int = 7
    pins_prompt: bool = True

    def __post_init__(self) -> None:
        if self.observation < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise UsageError(f"SnapKV: observation must be at least 1 and kernel odd and at least 1, got {self}")

    @property
    def num_queries(self) -> int:
        """The observation window."""
        return self.observation

    def score(self, slots: Slots) -> Tensor:
        """Mean attention over queries and the group's query heads, then max-pooled along the slots, [R, H, S]."""
        votes_RHS = observed_attention(slots, self.observation).mean(dim=(2, 3))
        return max_pool1d(votes_RHS, self.kernel, stride=1, padding=self.kernel // 2)
