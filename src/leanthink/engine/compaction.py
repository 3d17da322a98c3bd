"""Moves what belongs to slots: to the kept ones together, in place and in their old order, or all of an allocation.

R rows   L layers   P kinds of facts, such as keys and values   H kv heads   T slots of the cache   D numbers
K kept slots
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from leanthink.engine.cache import SlotCache


def compact(facts_LPHTD: Tensor, first_R: Tensor, kept: Tensor) -> None:
    """Move what belongs to the kept slots together, from `first_R` on; arguments as of `engine.kernels.compact`."""
    if first_R.is_cuda:
        from leanthink.engine.kernels.compact import compact as compact_on_gpu

        compact_on_gpu(facts_LPHTD, first_R, kept)
        return
    to_RK = first_R[:, None] + torch.arange(kept.shape[-1])
    for layer, facts_PHTD in enumerate(facts_LPHTD):
        if kept.dim() == 2:
            facts_PHTD[:, :, to_RK] = facts_PHTD[:, :, first_R[:, None] + kept]
            continue
        for head in range(facts_PHTD.shape[1]):
            facts_PHTD[:, head, to_RK] = facts_PHTD[:, head, first_R[:, None] + kept[:, layer, head]]


def move(cache: SlotCache, from_T: slice, to_T: slice) -> None:
    """Everything that belongs to some slots goes to others."""
    cache.kv_LPHTD[:, :, :, to_T] = cache.kv_LPHTD[:, :, :, from_T]
    cache.positions[:, :, to_T] = cache.positions[:, :, from_T]
    cache.token_scores[to_T] = cache.token_scores[from_T]
    if cache.requirements.token_ids:
        cache.token_ids[to_T] = cache.token_ids[from_T]
    if cache.requirements.accumulated_attention:
        cache.accumulated_attention_LHT[:, :, to_T] = cache.accumulated_attention_LHT[:, :, from_T]
