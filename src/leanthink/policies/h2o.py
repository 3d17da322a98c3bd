"""The policy of H2O (arXiv 2306.14048): keep, per head, the heavy hitters, to which most attention was paid so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from leanthink.policies.policy import Policy, Slots, check_at_least


@dataclass(frozen=True, kw_only=True)
class H2O(Policy):
    """Rank a slot by the attention that all queries since it was written have paid it, added up (section 4.2).

    The sum is exact: the queries of up to `waiting` tokens are kept and their attention is added before anything is
    evicted, so that each is attended with what it saw. Query heads that share a kv head add up, where the public code,
    made for models without shared heads, keeps a set for each query head. The paper splits the budget in halves of
    heavy hitters and youngest tokens: that is the budget's window.

    Attributes:
        waiting: most queries that wait; decides speed and memory, and no score.
        pins_prompt: False: as published, the prompt is ranked with the attention that its own queries paid it, too.
    """

    name: ClassVar[str] = "h2o"
    per_head: ClassVar[bool] = True
    accumulates: ClassVar[bool] = True
    waiting: int = 32
    pins_prompt: bool = True

    def __post_init__(self) -> None:
        check_at_least("H2O", 1, waiting=self.waiting)

    @property
    def num_queries(self) -> int:
        """Those that wait."""
        return self.waiting

    def score(self, slots: Slots) -> Tensor:
        """The attention so far, [R, H, S]."""
        assert slots.accumulated_attention is not None, "the cache adds up the attention for a policy that accumulates"
        return slots.accumulated_attention
