"""The reference implementation of what policies per head are shown and keep: one layer of one row after the other."""

from __future__ import annotations

import torch

from leanthink.engine.cache import SlotCache
from leanthink.policies import Policy, Slots
from leanthink.policies.budget import Budget
from reference.select_slow import select_slow


def show_slow(cache: SlotCache, row: int, count: int, seed: int, policy: Policy, layer: int) -> Slots:
    """The `count` thought slots of a row in one layer."""
    start, pinned, next_position = int(cache.starts[row]), int(cache.pinned[row]), int(cache.next_positions[row])
    held = slice(start + pinned, start + pinned + count)
    queries = sums = None
    if policy.num_queries:
        latest = range(next_position - policy.num_queries, next_position)
        ring_HGWD = cache.queries[row, layer]
        queries = torch.stack([ring_HGWD[:, :, position % cache.requirements.queries] for position in latest], dim=2)
        keys_HPD = cache.layer(layer).keys_HTD[:, start : start + pinned].float()
        logits_HQP = queries.float().flatten(1, 2) @ keys_HPD.mT * cache.scaling
        sums = logits_HQP.logsumexp(dim=-1).view(queries.shape[:-1])
    positions = cache.positions[layer, :, held]
    return Slots(
        ages=(next_position - 1 - positions)[None],
        positions=positions[None],
        next_position=torch.tensor([next_position]),
        prompt_tokens=cache.prompt_lengths[row, None],
        seeds=torch.tensor([seed]),
        layer=torch.tensor([layer]),
        keys=cache.layer(layer).keys_HTD[None, :, held],
        values=cache.layer(layer).values_HTD[None, :, held],
        queries=None if queries is None else queries[None],
        scaling=cache.scaling,
        pinned_log_sums=None if sums is None else sums[None],
        accumulated_attention=cache.accumulated_attention_LHT[layer, None, :, held] if policy.accumulates else None,
    )


def kept_slow(cache: SlotCache, row: int, count: int, seed: int, policy: Policy, budget: Budget) -> list[list[int]]:
    """The slots that each head of each layer of a row keeps, [L H, K], layer by layer."""
    kept = []
    for layer in range(cache.shape.layers):
        slots = show_slow(cache, row, count, seed, policy, layer)
        for scores_S, ages_S in zip(policy.score(slots)[0], slots.ages[0], strict=True):
            scores, ages, pinned = scores_S.tolist(), ages_S.tolist(), [False] * count
            kept.append(select_slow(scores, ages, pinned, slots=budget.slots, window=budget.recent_window))
    return kept
