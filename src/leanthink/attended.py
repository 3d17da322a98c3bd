"""The attention that each slot gets, added up exactly, for policies that rank by it.

Queries wait in the cache's ring until it is full or an eviction is due. Nothing is evicted between, so the slots held
then are those that each of them saw, but for younger ones.

R rows   H kv heads   G query heads of one kv head   Q = G * W queries   W of the latest tokens   S slots   D head width
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leanthink.policies.observed import products

if TYPE_CHECKING:
    from leanthink.cache import SlotCache
    from leanthink.feeds import Segment

SCRATCH_BYTES = 1 << 30  # about what ranking per head, or adding attention up, may take on a GPU at one time
PROMPT_QUERIES = 128  # of a prompt whose attention is added up at one time


def pinned_log_sums(cache: SlotCache, layer: int, rows_R: Tensor, queries_RHGWD: Tensor) -> Tensor:
    """Logarithm of each query's sum of exp(scaled product) with the keys of the pinned slots, [R, H, G, W].

    On a CPU row by row, for the sake of equal rounding (see `leanthink.policies.observed.products`).
    """
    assert cache.scaling is not None
    if not rows_R.is_cuda and len(rows_R) > 1:
        parts = zip(torch.split(rows_R, 1), torch.split(queries_RHGWD, 1), strict=True)
        return torch.cat([pinned_log_sums(cache, layer, row_1, queries) for row_1, queries in parts])
    host_pinned = cache.host_pinned[: cache.active] if rows_R.is_cuda else cache.host_pinned[rows_R]
    behind_S = torch.arange(int(host_pinned.max()), device=rows_R.device)
    keys_RHSD = cache.keys(layer)[:, (cache.starts[rows_R, None] + behind_S).clamp(max=cache.slots)].transpose(0, 1)
    logits_RHQS = products(queries_RHGWD.float().flatten(2, 3), keys_RHSD.float()) * cache.scaling
    logits_RHQS = logits_RHQS.masked_fill(behind_S >= cache.pinned[rows_R, None, None, None], -torch.inf)
    return logits_RHQS.logsumexp(dim=-1).view(queries_RHGWD.shape[:-1])


def add(cache: SlotCache, rows: Sequence[int], most: int) -> None:
    """Add to each slot of these rows the attention of the queries that wait, `most` of each row or fewer.

    Exact: since they were asked nothing was evicted, so the slots held are those that they saw. To be called
    before anything is. On a CPU row by row, for the sake of equal rounding.
    """
    rows_R, seen = cache.indices(rows), int(cache.host_lengths[list(rows)].max())
    per_row = 3 * 4 * cache.shape.kv_heads * seen * (cache.shape.group * most + cache.shape.head_dim)
    for part_R in torch.split(rows_R, max(1, SCRATCH_BYTES // per_row) if rows_R.is_cuda else 1):
        size = seen if rows_R.is_cuda else int(cache.host_lengths[part_R])
        for layer in range(cache.shape.layers):
            _add(cache, layer, part_R, size, most)
    cache.added[rows_R] = cache.next_positions[rows_R]
    cache.host_waiting[list(rows)] = 0


def _add(cache: SlotCache, layer: int, rows_R: Tensor, size: int, most: int) -> None:
    """The same for one layer and rows that hold at most `size` slots."""
    place_S = torch.arange(size, device=rows_R.device)
    # What lies behind a row's slots is not its own: the spare slot stands in for it.
    held_RS = place_S < cache.lengths[rows_R, None]
    slots_RS = torch.where(held_RS, cache.starts[rows_R, None] + place_S, cache.slots)
    age_W = torch.arange(most - 1, -1, -1, device=rows_R.device)
    asked_RW = cache.next_positions[rows_R, None] - 1 - age_W
    positions_RHS = cache.positions[layer][:, slots_RS].transpose(0, 1)
    seen_RHWS = held_RS[:, None, None] & (positions_RHS[:, :, None] <= asked_RW[:, None, :, None])
    seen_RHWS = seen_RHWS & (asked_RW >= cache.added[rows_R, None])[:, None, :, None]
    queries_RHGWD = cache.latest_queries(layer, rows_R, most)
    keys_RHSD = cache.keys(layer)[:, slots_RS].transpose(0, 1)
    sums_RHS = _sums(cache, queries_RHGWD, keys_RHSD, seen_RHWS)
    cache.attended_LHT[layer][:, slots_RS] += sums_RHS.transpose(0, 1)


def add_prompt(cache: SlotCache, layer: int, piece: Segment, queries_AWD: Tensor) -> None:
    """Add the attention of a piece of a prompt, whose keys are written, to the slots that it saw."""
    start, end = piece.region.start, piece.region.start + piece.done + piece.tokens
    attended_HS = cache.attended_LHT[layer][:, start:end]
    attended_HS[:, piece.done :] = 0.0  # of the slots' former tokens
    keys_1HSD = cache.keys(layer)[None, :, start:end]
    queries_1HGWD = queries_AWD.view(1, cache.shape.kv_heads, cache.shape.group, *queries_AWD.shape[1:])
    position_S = torch.arange(end - start, device=keys_1HSD.device)
    for at in range(0, piece.tokens, PROMPT_QUERIES):
        asked_1HGWD = queries_1HGWD[..., at : at + PROMPT_QUERIES, :]
        asked_W = piece.done + at + torch.arange(asked_1HGWD.shape[3], device=position_S.device)
        seen_WS = position_S <= asked_W[:, None]
        attended_HS += _sums(cache, asked_1HGWD, keys_1HSD, seen_WS)[0]


def _sums(cache: SlotCache, queries_RHGWD: Tensor, keys_RHSD: Tensor, seen: Tensor) -> Tensor:
    """Softmax over what each query saw, added up over queries and the query heads of each kv head, [R, H, S].

    `seen` is bool, [W, S] or [R, H, W, S]; a query that saw nothing adds nothing.
    """
    assert cache.scaling is not None
    logits_RHQS = products(queries_RHGWD.float().flatten(2, 3), keys_RHSD.float()) * cache.scaling
    logits_RHGWS = logits_RHQS.view(*queries_RHGWD.shape[:-1], -1)
    unseen = ~(seen[:, :, None] if seen.dim() == 4 else seen)
    shares_RHGWS = logits_RHGWS.masked_fill(unseen, torch.finfo(torch.float32).min).softmax(dim=-1)
    return shares_RHGWS.masked_fill(unseen, 0.0).sum(dim=(2, 3))
