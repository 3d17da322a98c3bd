"""The policy of R-KV (arXiv 2505.24133): keep, per head, what is attended to and does not repeat what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, normalize

from leanthink.policies.observed import observed_logits, products
from leanthink.policies.policy import OUTRANKS, Policy, Slots, check_at_least
from leanthink.utils.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class RKV(Policy):
    """Rank a slot by `mix` * importance - (1 - `mix`) * redundancy; the youngest `observation` slots always stay.

    Importance: the largest logit of the group's query heads, softmax over the older slots, mean over the observing
    queries, maximum over `kernel` neighbours. Redundancy: softmax of the mean cosine of a key with all others, where
    for each key the youngest that is more alike than `alike` is left out, so that of several like keys the youngest
    does not count as repeated. Prompt slots are pinned and take no part in either. The public code leaves out the
    first slot of all where no key is alike; here then none is left out.

    Attributes:
        mix: lambda of the paper.
        observation: alpha of the paper, how many of the latest queries vote.
        kernel: slots, an odd number, over which the maximum is taken.
        alike: cosine above which two keys say the same.
        pins_prompt: False: as published.
    """

    name: ClassVar[str] = "r-kv"
    per_head: ClassVar[bool] = True
    mix: float = 0.1
    observation: int = 8
    kernel: int = 7
    alike: float = 0.5
    pins_prompt: bool = True

    def __post_init__(self) -> None:
        check_at_least("RKV", 1, observation=self.observation, kernel=self.kernel)
        if self.kernel % 2 == 0 or not 0 <= self.mix <= 1 or not -1 <= self.alike <= 1:
            raise UsageError(f"RKV: kernel must be odd, mix lie in [0, 1] and alike in [-1, 1], got {self}")

    @property
    def num_queries(self) -> int:
        """The observing ones."""
        return self.observation

    def score(self, slots: Slots) -> Tensor:
        """Importance and redundancy mixed, [R, H, S]."""
        assert slots.keys is not None, "a policy per head sees the keys of its layer"
        young_RHS = slots.ages < self.observation
        importance_RHS = max_pool1d(self._votes(slots, young_RHS), self.kernel, stride=1, padding=self.kernel // 2)
        mixed_RHS = self.mix * importance_RHS - (1 - self.mix) * self._redundancy(slots.keys)
        return torch.where(young_RHS, OUTRANKS - slots.ages, mixed_RHS)

    def _votes(self, slots: Slots, young_RHS: Tensor) -> Tensor:
        logits_RHGWS, unseen_RH1WS = observed_logits(slots, self.observation)
        unseen_RHWS = unseen_RH1WS[:, :, 0] | young_RHS[:, :, None]
        shares_RHWS = logits_RHGWS.amax(dim=2).masked_fill(unseen_RHWS, torch.finfo(torch.float32).min).softmax(dim=-1)
        return shares_RHWS.masked_fill(unseen_RHWS, 0.0).mean(dim=2)

    def _redundancy(self, keys_RHSD: Tensor) -> Tensor:
        directions_RHSD = normalize(keys_RHSD.float(), dim=-1)
        cosines_RHSS = products(directions_RHSD, directions_RHSD)
        cosines_RHSS.diagonal(dim1=-2, dim2=-1).zero_()
        slots_S = torch.arange(cosines_RHSS.shape[-1], device=cosines_RHSS.device, dtype=torch.int32)
        youngest_RHS1 = torch.where(cosines_RHSS > self.alike, slots_S, -1).amax(dim=-1, keepdim=True)
        counted_RHSS = cosines_RHSS.masked_fill(slots_S == youngest_RHS1, 0.0)
        return counted_RHSS.mean(dim=-2).softmax(dim=-1)
