"""The policy of KeyDiff (arXiv 2504.15364): keep, per head, the keys that are least like all the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from leanthink.policies.policy import Policy, Slots


@dataclass(frozen=True, kw_only=True)
class KeyDiff(Policy):
    """Rank a slot by how far its key points away from the mean direction of the keys that are ranked.

    The anchor is the mean of the normalised keys (equation 5 and algorithm 1 of the paper), rotated to their
    positions as they lie in the cache. The paper works block by block through a prompt; here a block is an interval.

    Attributes:
        pins_prompt: False: as published; the prompt's keys then belong to the anchor, too.
    """

    name: ClassVar[str] = "keydiff"
    per_head: ClassVar[bool] = True
    pins_prompt: bool = True

    def score(self, slots: Slots) -> Tensor:
        """Minus the cosine of key and anchor, [R, H, S]."""
        assert slots.keys is not None, "a policy per head sees the keys of its layer"
        keys_RHSD = slots.keys.float()
        anchor_RH1D = normalize(keys_RHSD, dim=-1).mean(dim=2, keepdim=True)
        return -cosine_similarity(keys_RHSD, anchor_RH1D, dim=-1)
