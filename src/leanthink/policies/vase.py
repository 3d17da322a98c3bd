"""The policy of VaSE (arXiv 2606.03928): keep, per head, slots with large values, and draw the others by attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from leanthink.policies.observed import observed_logits
from leanthink.policies.policy import OUTRANKS, Policy, Slots, check_at_least
from leanthink.policies.random import uniform_per_head
from leanthink.utils.errors import UsageError

SINKS_OUTRANK, LARGE_OUTRANKS = 2.0**22, 2.0**21
MIN_CHANCE = 1e-30  # its logarithm is finite


@dataclass(frozen=True, kw_only=True)
class VaSE(Policy):
    """Protect the slots whose values range widest, and draw the rest without replacement, weighted by attention.

    The youngest `observation` slots always stay, and the first tokens of the sequence. Of the others the share `large`
    with the widest range (largest minus smallest number of the value) is protected; the rest is drawn with the
    softmax, over the older slots, of the observing queries' logits as weights, smoothed over `kernel` neighbours and
    averaged over queries and query heads. Drawing without replacement is ranking by log weight + Gumbel noise, and
    the noise is a hash of the request's seed and the slot. Where the public code protects a number of slots (1024 of
    a budget of 4096), here it is the same share of those that are ranked.

    Attributes:
        large: share of the slots that is protected for its values.
        observation: how many of the latest queries vote.
        kernel: slots, an odd number, over which weights are averaged.
        num_sinks: first tokens of the sequence, which stay; without effect while the prompt is pinned.
        pins_prompt: False: as published.
    """

    name: ClassVar[str] = "vase"
    per_head: ClassVar[bool] = True
    large: float = 0.25
    observation: int = 64
    kernel: int = 5
    num_sinks: int = 4
    pins_prompt: bool = True

    def __post_init__(self) -> None:
        check_at_least("VaSE", 1, observation=self.observation, kernel=self.kernel)
        check_at_least("VaSE", 0, num_sinks=self.num_sinks)
        if self.kernel % 2 == 0 or not 0 <= self.large <= 1:
            raise UsageError(f"VaSE: kernel must be odd and large lie in [0, 1], got {self}")

    @property
    def num_queries(self) -> int:
        """The observing ones."""
        return self.observation

    def score(self, slots: Slots) -> Tensor:
        """Young slots first, then sinks, then those with large values, then the others as drawn, [R, H, S]."""
        assert slots.values is not None, "a policy per head sees the values of its layer"
        young_RHS = slots.ages < self.observation
        values_RHSD = slots.values.float()
        range_RHS = (values_RHSD.amax(dim=-1) - values_RHSD.amin(dim=-1)).masked_fill(young_RHS, -1.0)
        # The younger of two equal ranges is the larger one.
        rank_RHS = range_RHS.flip(-1).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1).flip(-1)
        is_large_RHS = rank_RHS < int(self.large * slots.ages.shape[-1])
        score_RHS = torch.where(is_large_RHS, LARGE_OUTRANKS - rank_RHS, self._drawn(slots, young_RHS))
        score_RHS = torch.where(slots.positions < self.num_sinks, SINKS_OUTRANK - slots.positions, score_RHS)
        return torch.where(young_RHS, OUTRANKS - slots.ages, score_RHS)

    def _drawn(self, slots: Slots, young_RHS: Tensor) -> Tensor:
        """Logarithm of each slot's weight plus Gumbel noise of its own."""
        logits_RHGWS, unseen_RH1WS = observed_logits(slots, self.observation)
        unseen_RH1WS = unseen_RH1WS | young_RHS[:, :, None, None]
        shares_RHGWS = logits_RHGWS.masked_fill(unseen_RH1WS, torch.finfo(torch.float32).min).softmax(dim=-1)
        shares_RHGS = shares_RHGWS.masked_fill(unseen_RH1WS, 0.0).mean(dim=3)
        smooth_RHGS = avg_pool1d(shares_RHGS.flatten(1, 2), self.kernel, stride=1, padding=self.kernel // 2)
        weights_RHS = smooth_RHGS.view_as(shares_RHGS).mean(dim=2)
        # A draw is a multiple of 2^-24 below 1. It may be 0, and anything added to the largest would round it to 1.
        gumbel_RHS = -torch.log(-torch.log(uniform_per_head(slots).clamp(min=2.0**-25)))
        return weights_RHS.clamp(min=MIN_CHANCE).log() + gumbel_RHS
