"""Advantages that keep the length signal of mastered problems and cannot blow it up: ours, beside the published ones.

Published (and TRL's default): each group's rewards less their mean, over the group's own standard deviation. In a group
that is all right only lengths differ, and whatever small difference they make is divided by itself: length alone would
decide, as strongly as correctness does elsewhere. So the published method drops these groups, and what a model has
mastered is never shortened. Here the deviation is that of the whole batch, and at least `floor`, so that the length
reward of at most alpha moves an advantage by at most alpha / floor, in proportion to what β makes of it.

B groups of G responses
"""

from __future__ import annotations

import torch
from torch import Tensor

from leanthink.errors import UsageError


def batch_scaled(rewards_BG: Tensor, floor: float) -> Tensor:
    """Rewards less their group's mean, over the batch's standard deviation or `floor`, whichever is larger, [B, G].

    NaN rewards stay out of mean and deviation and get the advantage 0.

    Raises:
        UsageError: the floor is not above 0.
    """
    if not floor > 0:
        raise UsageError(f"floor={floor}: must be above 0, or a batch of equal rewards would be divided by nothing")
    known = rewards_BG[~rewards_BG.isnan()]
    deviation = known.std() if len(known) > 1 else known.new_zeros(())
    centred_BG = rewards_BG - rewards_BG.nanmean(dim=1, keepdim=True)
    return torch.nan_to_num(centred_BG / deviation.clamp(min=floor))
