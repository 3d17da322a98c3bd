"""Reads what the cache holds of chosen rows: positions, keys, values and latest queries, of some layers and all heads.

R rows   L layers   H kv heads   G query heads per kv head   D head dim   S slots of each row   T slots of the cache
W latest queries   X heads of one kind, keys and values side by side
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from leanthink.engine.cache import SlotCache


def positions_held(cache: SlotCache, layers: range, slots_RS: Tensor) -> Tensor:
    """Positions of what the heads of these layers hold in these slots, [R, L, H, S]."""
    return of_slots(cache.positions, layers, range(cache.shape.kv_heads), slots_RS)


def keys_held(cache: SlotCache, layers: range, slots_RS: Tensor) -> Tensor:
    """Keys that the heads of these layers hold in these slots, [R, L, H, S, D]."""
    return _numbers(cache, layers, 0, slots_RS)


def values_held(cache: SlotCache, layers: range, slots_RS: Tensor) -> Tensor:
    """Values that the heads of these layers hold in these slots, [R, L, H, S, D]."""
    return _numbers(cache, layers, 1, slots_RS)


def _numbers(cache: SlotCache, layers: range, part: int, slots_RS: Tensor) -> Tensor:
    """Keys (part 0) or values (1); of those in FP8, what they stand for."""
    H = cache.shape.kv_heads
    held = of_slots(cache.kv_LPHTD.flatten(1, 2), layers, range(part * H, part * H + H), slots_RS)
    return held if cache.quantization is None else cache.quantization.numbers(held, layers, part, cache.queries.dtype)


def latest_queries(cache: SlotCache, layers: range, rows_R: Tensor, count: int) -> Tensor:
    """The last W = `count` queries of each row, oldest first, [R, L, H, G, W, D]; zeros for the prompt's tokens."""
    age = torch.arange(count, 0, -1, device=cache.lengths.device)
    ring_RW = (cache.next_positions[rows_R, None] - age) % cache.requirements.queries
    _, L, H, G, _, D = cache.queries.shape
    layer_RL = rows_R[:, None] * L + numbers(layers, rows_R.device)
    head_RLA = layer_RL[..., None] * (H * G) + torch.arange(H * G, device=rows_R.device)
    at_RLAW = head_RLA[..., None] * cache.requirements.queries + ring_RW[:, None, None]
    return _select(cache.queries.view(-1, D), at_RLAW).view(*layer_RL.shape, H, G, count, D)


def of_slots(facts_LXT: Tensor, layers: range, heads: range, slots_RS: Tensor) -> Tensor:
    """What belongs to these slots in some heads of some layers, [R, L, H, S, ...], of facts [L, X, T + 1, ...]."""
    _, X, T = facts_LXT.shape[:3]
    head_LH = numbers(layers, slots_RS.device)[:, None] * X + numbers(heads, slots_RS.device)
    return _select(facts_LXT.view(-1, *facts_LXT.shape[3:]), head_LH[..., None] * T + slots_RS[:, None, None])


def numbers(given: range, device: torch.device) -> Tensor:
    """These numbers on the device."""
    return torch.arange(given.start, given.stop, device=device)


def _select(facts_N: Tensor, at: Tensor) -> Tensor:
    """Facts [N, ...] at an index of any shape; by one index, as several would be looked up for each number."""
    return facts_N.index_select(0, at.flatten()).view(*at.shape, *facts_N.shape[1:])
