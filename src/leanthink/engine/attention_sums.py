"""The attention that each slot gets, added up exactly, for policies that rank by it.

Queries wait in the cache's ring until it is full or an eviction is due. Nothing is evicted between, so the slots held
then are those that each of them saw, but for younger ones.

R rows   L layers   H kv heads   G query heads of one kv head   Q = G * W queries   W of the latest tokens
S slots   D head width   M = R L
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leanthink.engine.causal_attention import beside_sinks
from leanthink.engine.gather import keys_held, latest_queries, positions_held
from leanthink.policies.observed import products

if TYPE_CHECKING:
    from leanthink.engine.cache import SlotCache
    from leanthink.engine.forward_batch import PrefillBatch, PromptChunk

SCRATCH_BYTES = 1 << 30  # about what ranking per head, or adding attention up, may take at one time
CACHED_BYTES = 1 << 20  # about what stays in the caches of a CPU meanwhile
PROMPT_QUERIES = 128  # of a prompt whose attention is added up at one time


def at_a_time(cache: SlotCache, bytes_of_one: int, num_rows: int) -> tuple[int, int]:
    """Of how many of these rows, and how many of their layers, each at least 1, to work on at one time.

    The more layers, the fewer launches. On a CPU, where these cost little, no more than stay in its caches.

    Args:
        cache: whose layers they are.
        bytes_of_one: what the work on one layer of one row takes.
        num_rows: of these rows.
    """
    rows = max(1, min(num_rows, SCRATCH_BYTES // bytes_of_one))
    together = SCRATCH_BYTES if cache.starts.is_cuda else min(SCRATCH_BYTES, CACHED_BYTES)
    return rows, max(1, min(cache.shape.layers, together // (rows * bytes_of_one)))


def layers_in_parts(cache: SlotCache, num_layers: int) -> list[range]:
    """All layers, `num_layers` of them or fewer at a time."""
    layers = range(cache.shape.layers)
    return [layers[first : first + num_layers] for first in layers[::num_layers]]


def pinned_bytes(cache: SlotCache, num_queries: int) -> int:
    """What `pinned_log_sums` of one layer of one row takes, at most."""
    shape, pinned = cache.shape, int(cache.host_pinned[: cache.active].max())
    return 4 * shape.kv_heads * pinned * (2 * shape.head_dim + 3 * shape.group * num_queries)


def pinned_log_sums(cache: SlotCache, layers: range, rows_R: Tensor, queries_RLHGWD: Tensor) -> Tensor:
    """Logarithm of each query's sum of exp(scaled product) with the keys of the pinned slots, [R, L, H, G, W].

    A sink (see `leanthink.engine.causal_attention`) takes its share of the attention as they do, and counts among them.

    On a CPU row by row, for the sake of equal rounding (see `leanthink.policies.observed.products`).
    """
    assert cache.scaling is not None
    if not rows_R.is_cuda and len(rows_R) > 1:
        parts = zip(torch.split(rows_R, 1), torch.split(queries_RLHGWD, 1), strict=True)
        return torch.cat([pinned_log_sums(cache, layers, row_1, queries) for row_1, queries in parts])
    host_pinned = cache.host_pinned[: cache.active] if rows_R.is_cuda else cache.host_pinned[rows_R]
    behind_S = torch.arange(int(host_pinned.max()), device=rows_R.device)
    keys_RLHSD = keys_held(cache, layers, (cache.starts[rows_R, None] + behind_S).clamp(max=cache.slots))
    logits_RLHQS = _logits(cache, queries_RLHGWD, keys_RLHSD)
    unpinned_RS = behind_S >= cache.pinned[rows_R, None]
    logits_RLHQS = logits_RLHQS.masked_fill(unpinned_RS[:, None, None, None], -torch.inf)
    log_sums_RLHGW = logits_RLHQS.logsumexp(dim=-1).view(queries_RLHGWD.shape[:-1])
    sinks_LHG1 = _sinks(cache, layers)
    return log_sums_RLHGW if sinks_LHG1 is None else torch.logaddexp(log_sums_RLHGW, sinks_LHG1)


def add(cache: SlotCache, rows: Sequence[int], num_queries: int) -> None:
    """Add to each slot of these rows the attention of the queries that wait, `num_queries` of each row or fewer.

    Exact: since they were asked nothing was evicted, so the slots held are those that they saw. To be called
    before anything is. On a CPU row by row, for the sake of equal rounding. Whatever raises on the way, rows that still
    wait have got nothing.
    """
    rows_R, seen = cache.indices(rows), int(cache.host_lengths[list(rows)].max())
    bytes_of_one = 3 * 4 * cache.shape.kv_heads * seen * (cache.shape.group * num_queries + cache.shape.head_dim)
    num_rows, num_layers = at_a_time(cache, bytes_of_one, len(rows) if rows_R.is_cuda else 1)
    for first in range(0, len(rows), num_rows):
        part, part_R = list(rows[first : first + num_rows]), rows_R[first : first + num_rows]
        place_S = torch.arange(seen if rows_R.is_cuda else int(cache.host_lengths[part].max()), device=rows_R.device)
        # What lies behind a row's slots is not its own: the spare slot stands in for it.
        held_RS = place_S < cache.lengths[part_R, None]
        slots_RS = torch.where(held_RS, cache.starts[part_R, None] + place_S, cache.slots)
        parts = [
            _of_waiting(cache, layers, part_R, held_RS, slots_RS, num_queries)
            for layers in layers_in_parts(cache, num_layers)
        ]
        cache.accumulated_attention_LHT[:, :, slots_RS] += torch.cat(parts, dim=1).permute(1, 2, 0, 3)
        cache.added[part_R] = cache.next_positions[part_R]
        cache.host_waiting[part] = 0


def _of_waiting(
    cache: SlotCache, layers: range, rows_R: Tensor, held_RS: Tensor, slots_RS: Tensor, num_queries: int
) -> Tensor:
    """The attention of the queries that wait, in some layers, to these slots where they are held, [R, L, H, S]."""
    age_W = torch.arange(num_queries - 1, -1, -1, device=rows_R.device)
    asked_RW = cache.next_positions[rows_R, None] - 1 - age_W
    positions_RLHS = positions_held(cache, layers, slots_RS)
    may_RWS = held_RS[:, None] & (asked_RW >= cache.added[rows_R, None])[..., None]
    seen_RLHWS = (positions_RLHS[..., None, :] <= asked_RW[:, None, None, :, None]) & may_RWS[:, None, None]
    queries_RLHGWD = latest_queries(cache, layers, rows_R, num_queries)
    sinks_LHG1 = _sinks(cache, layers)
    return _sums(cache, queries_RLHGWD, keys_held(cache, layers, slots_RS), seen_RLHWS, sinks_LHG1)


def add_prompts(cache: SlotCache, layer: int, batch: PrefillBatch, queries_SAD: Tensor) -> None:
    """Add the attention of the tokens of all chunks, whose keys are written, to the slots that they saw."""
    for chunk, (_, fed) in zip(batch.chunks, batch.spans, strict=True):
        add_prompt(cache, layer, chunk, queries_SAD[fed].transpose(0, 1))


def add_prompt(cache: SlotCache, layer: int, chunk: PromptChunk, queries_AWD: Tensor) -> None:
    """Add the attention of a chunk of a prompt, whose keys are written, to the slots that it saw."""
    start, end = chunk.allocation.start, chunk.allocation.start + chunk.done + chunk.tokens
    accumulated_HS = cache.accumulated_attention_LHT[layer][:, start:end]
    accumulated_HS[:, chunk.done :] = 0.0  # of the slots' former tokens
    keys_11HSD = cache.layer(layer).attended(cache.kv_LPHTD[layer, :1, :, start:end], cache.queries.dtype)[None]
    queries_11HGWD = queries_AWD.view(1, 1, cache.shape.kv_heads, cache.shape.group, *queries_AWD.shape[1:])
    position_S = torch.arange(end - start, device=keys_11HSD.device)
    sinks_1HG1 = _sinks(cache, range(layer, layer + 1))
    for at in range(0, chunk.tokens, PROMPT_QUERIES):
        asked_11HGWD = queries_11HGWD[..., at : at + PROMPT_QUERIES, :]
        asked_W = chunk.done + at + torch.arange(asked_11HGWD.shape[4], device=position_S.device)
        seen_WS = position_S <= asked_W[:, None]
        accumulated_HS += _sums(cache, asked_11HGWD, keys_11HSD, seen_WS, sinks_1HG1)[0, 0]


def _sinks(cache: SlotCache, layers: range) -> Tensor | None:
    """The sinks of the query heads of these layers, float32 [L, H, G, 1]; None for a model without."""
    if not cache.sinks:
        return None
    sinks_LA = torch.stack([cache.sinks[layer] for layer in layers]).float()
    return sinks_LA.view(len(layers), cache.shape.kv_heads, -1, 1)


def _sums(
    cache: SlotCache, queries_RLHGWD: Tensor, keys_RLHSD: Tensor, seen: Tensor, sinks_LHG1: Tensor | None
) -> Tensor:
    """Softmax over what each query saw, added up over queries and the query heads of each kv head, [R, L, H, S].

    `seen` is bool, [W, S] or [R, L, H, W, S]; a query that saw nothing adds nothing.
    """
    logits_RLHGWS = _logits(cache, queries_RLHGWD, keys_RLHSD).view(*queries_RLHGWD.shape[:-1], -1)
    unseen = ~(seen[:, :, :, None] if seen.dim() == 5 else seen)
    logits_RLHGWS = logits_RLHGWS.masked_fill(unseen, torch.finfo(torch.float32).min)
    shares_RLHGWS = logits_RLHGWS.softmax(dim=-1) if sinks_LHG1 is None else beside_sinks(logits_RLHGWS, sinks_LHG1)
    return shares_RLHGWS.masked_fill(unseen, 0.0).sum(dim=(3, 4))


def _logits(cache: SlotCache, queries_RLHGWD: Tensor, keys_RLHSD: Tensor) -> Tensor:
    """Scaled products, [R, L, H, Q, S]."""
    assert cache.scaling is not None
    queries_MHQD = queries_RLHGWD.float().flatten(3, 4).flatten(0, 1)
    logits_MHQS = products(queries_MHQD, keys_RLHSD.float().flatten(0, 1)) * cache.scaling
    return logits_MHQS.view(*keys_RLHSD.shape[:2], *logits_MHQS.shape[1:])
