"""Moves what belongs to slots: to the kept ones together, in place and in their old order, or all of an allocation.

R rows   L layers   H kv heads   T slots of the cache   D numbers   K kept slots   X index sets
A sets of a layer that are moved alike: H heads of keys and H of values; or of what else a slot has, H or 1
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leanthink.policies import Policy

if TYPE_CHECKING:
    from leanthink.engine.cache import SlotCache


def evict_slots(cache: SlotCache, rows_R: Tensor, kept: Tensor, policy: Policy | None, first: int) -> None:
    """The device's part of `SlotCache.evict`, whose arguments these are: slots and lengths."""
    facts, kept = facts_of_slots(cache, kept, policy, first)
    if rows_R.is_cuda:
        from leanthink.engine.kernels.compact import MOST_FACTS
        from leanthink.engine.kernels.compact import compact as compact_on_gpu

        for start in range(0, len(facts), MOST_FACTS):
            some = facts[start : start + MOST_FACTS]
            compact_on_gpu(some, kept, rows_R, cache.starts, cache.pinned, cache.lengths)
        return
    first_R = cache.starts[rows_R] + cache.pinned[rows_R]
    for facts_LATD in facts:
        compact(facts_LATD, first_R, kept)
    cache.lengths[rows_R] = cache.pinned[rows_R] + kept.shape[-1]


def facts_of_slots(cache: SlotCache, kept: Tensor, policy: Policy | None, first: int) -> tuple[list[Tensor], Tensor]:
    """All that is moved with slots, [L or 1, A, T + 1, D] each, and what is kept, as [R, K] or [R, L, H, K]."""
    if kept.dim() == 3:
        kept = kept.view(len(kept), cache.shape.layers, -1, kept.shape[-1])  # of each layer, or of each of its heads
    facts = [cache.kv_LPHTD.flatten(1, 2), cache.positions[..., None]]
    if policy is not None or kept.dim() == 2:
        scores_TXC = cache.token_scores[:, None] if policy is None else cache.token_scores_of(policy, first)
        if scores_TXC.shape[2]:
            sets = kept.shape[1:3] if kept.dim() == 4 else (1, 1)
            facts.append(scores_TXC.view(cache.slots + 1, *sets, -1).permute(1, 2, 0, 3))
    if cache.requirements.accumulated_attention:
        facts.append(cache.accumulated_attention_LHT[..., None])
    if cache.requirements.token_ids and kept.dim() == 2:
        facts.append(cache.token_ids[None, None, :, None])
    return facts, kept if kept.dim() == 2 else kept.expand(-1, -1, cache.shape.kv_heads, -1)


def compact(facts_LATD: Tensor, first_R: Tensor, kept: Tensor) -> None:
    """Move what belongs to the kept slots together, from `first_R` on; arguments as of `engine.kernels.compact`."""
    to_RK = first_R[:, None] + torch.arange(kept.shape[-1])
    for layer, facts_ATD in enumerate(facts_LATD):
        if kept.dim() == 2:
            facts_ATD[:, to_RK] = facts_ATD[:, first_R[:, None] + kept]
            continue
        for place, facts_TD in enumerate(facts_ATD):
            facts_TD[to_RK] = facts_TD[first_R[:, None] + kept[:, layer, place % kept.shape[2]]]


def move(cache: SlotCache, from_T: slice, to_T: slice) -> None:
    """Everything that belongs to some slots goes to others."""
    cache.kv_LPHTD[:, :, :, to_T] = cache.kv_LPHTD[:, :, :, from_T]
    cache.positions[:, :, to_T] = cache.positions[:, :, from_T]
    cache.token_scores[to_T] = cache.token_scores[from_T]
    if cache.requirements.token_ids:
        cache.token_ids[to_T] = cache.token_ids[from_T]
    if cache.requirements.accumulated_attention:
        cache.accumulated_attention_LHT[:, :, to_T] = cache.accumulated_attention_LHT[:, :, from_T]
