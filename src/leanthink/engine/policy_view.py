"""What a policy is shown of the cache: the thought slots of some rows, as `Slots`.

R rows   L layers   H kv heads   X index sets   S thought slots   C score dimensions   M = R L   T slots of the cache
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leanthink.engine import attention_sums, gather
from leanthink.policies import Policy, Slots

if TYPE_CHECKING:
    from leanthink.engine.cache import SlotCache


def policy_view(
    cache: SlotCache,
    rows_R: Tensor,
    count: int,
    seeds_N: Tensor,
    policy: Policy,
    *,
    first: int = 0,
    layers: range | None = None,
) -> Slots:
    """The `count` thought slots of each of these rows, oldest first, as the policy sees them.

    Args:
        cache: that holds them.
        rows_R: rows that hold prompt and thought, and no answer yet.
        count: thought slots of each.
        seeds_N: the seeds of all requests, by row.
        policy: who looks.
        first: the first of its columns among the token scores.
        layers: which of them, for a policy per head: each of them of each row is then a row of its own, those of one
            row next to each other.
    """
    if layers is not None:
        return _view_of_layers(cache, rows_R, count, seeds_N[rows_R], policy, layers)
    if rows_R.is_cuda and not policy.texts:
        return view_in_one_launch(cache, rows_R, count, seeds_N, policy, first)
    slots_RS = _thought_slots(cache, rows_R, count)
    next_R = cache.next_positions[rows_R]
    facts: dict[str, Any] = {
        "next_position": next_R,
        "prompt_tokens": cache.prompt_lengths[rows_R],
        "seeds": seeds_N[rows_R],
    }
    if policy.num_sets > 1:
        positions_RXS = _positions_of_sets(cache, policy.num_sets)[:, slots_RS].transpose(0, 1)
        if policy.score_dims:
            facts["token_scores"] = cache.token_scores_of(policy, first)[slots_RS].transpose(1, 2).float()
        return Slots(ages=next_R[:, None, None] - 1 - positions_RXS, positions=positions_RXS, **facts)
    positions_RS = _positions_of_sets(cache, 1)[0, slots_RS]
    if policy.score_dims:
        facts["token_scores"] = cache.token_scores[slots_RS, first : first + policy.score_dims].float()
    if policy.texts:
        facts["token_ids"] = cache.token_ids[slots_RS]
    return Slots(ages=next_R[:, None] - 1 - positions_RS, positions=positions_RS, **facts)


def view_in_one_launch(
    cache: SlotCache, rows_R: Tensor, count: int, seeds_N: Tensor, policy: Policy, first: int
) -> Slots:
    """The same on a GPU, for a policy that ranks by ages, positions and token scores."""
    from leanthink.engine.kernels.view import view

    X, C = policy.num_sets, policy.score_dims
    of_rows, positions_XT = (cache.next_positions, cache.prompt_lengths, seeds_N), _positions_of_sets(cache, X)
    of_rows_R, shown, token_scores = view(
        rows_R, count, cache.starts, cache.pinned, of_rows, positions_XT, cache.token_scores, first, C
    )
    if X == 1:
        shown, token_scores = shown[:, :, 0], token_scores[:, 0]
    (next_R, prompts_R, seeds_R), (positions, ages) = of_rows_R.unbind(0), shown.unbind(0)
    return Slots(
        ages=ages,
        positions=positions,
        next_position=next_R,
        prompt_tokens=prompts_R,
        seeds=seeds_R,
        token_scores=token_scores if C else None,
    )


def _view_of_layers(
    cache: SlotCache, rows_R: Tensor, count: int, seeds_R: Tensor, policy: Policy, layers: range
) -> Slots:
    """The slots of some layers as a policy per head sees them: M rows, one for each layer of each row."""
    slots_RS, H = _thought_slots(cache, rows_R, count), cache.shape.kv_heads
    positions_MHS = gather.positions_held(cache, layers, slots_RS).flatten(0, 1)
    next_M = _for_each(layers, cache.next_positions[rows_R])
    facts: dict[str, Any] = {}
    if policy.num_queries:
        queries_RLHGWD = gather.latest_queries(cache, layers, rows_R, policy.num_queries)
        facts["queries"] = queries_RLHGWD.flatten(0, 1)
        log_sums_RLHGW = attention_sums.pinned_log_sums(cache, layers, rows_R, queries_RLHGWD)
        facts["pinned_log_sums"] = log_sums_RLHGW.flatten(0, 1)
    if policy.accumulates:
        attention_RLHS = gather.of_slots(cache.accumulated_attention_LHT, layers, range(H), slots_RS)
        facts["accumulated_attention"] = attention_RLHS.flatten(0, 1)
    return Slots(
        ages=next_M[:, None, None] - 1 - positions_MHS,
        positions=positions_MHS,
        next_position=next_M,
        prompt_tokens=_for_each(layers, cache.prompt_lengths[rows_R]),
        seeds=_for_each(layers, seeds_R),
        layer=gather.numbers(layers, rows_R.device).expand(len(rows_R), -1).flatten(),
        keys=gather.keys_held(cache, layers, slots_RS).flatten(0, 1),
        values=gather.values_held(cache, layers, slots_RS).flatten(0, 1),
        scaling=cache.scaling,
        **facts,
    )


def _positions_of_sets(cache: SlotCache, num_sets: int) -> Tensor:
    """Positions of the tokens that each index set holds, [X, T + 1]."""
    if num_sets == 1:
        return cache.positions[0, :1]
    if num_sets == cache.shape.layers:
        return cache.positions[:, 0]
    assert num_sets == cache.shape.layers * cache.shape.kv_heads
    return cache.positions.flatten(0, 1)


def _thought_slots(cache: SlotCache, rows_R: Tensor, count: int) -> Tensor:
    """Slots [R, count] of the cache that follow each row's pinned ones."""
    first_R = cache.starts[rows_R] + cache.pinned[rows_R]
    return first_R[:, None] + torch.arange(count, device=first_R.device)


def _for_each(layers: range, facts_R: Tensor) -> Tensor:
    """A number of each row once for each of these layers, [R L]."""
    return facts_R[:, None].expand(-1, len(layers)).flatten()
