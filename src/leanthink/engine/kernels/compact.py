"""Moves the kept slots of some rows together, in place: the memory traffic of an eviction, in one launch.

R chosen rows of N   L layers   H kv heads   K kept slots   T slots of the cache   D numbers of a slot in one set
A sets of a layer that are moved alike: H heads of keys and H of values; or what else a slot has, of each head or of all
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

BLOCK_BYTES = 16384  # moved per step
MOST_FACTS = 3  # of one launch


@triton.jit  # type: ignore[untyped-decorator]
def _move(facts, slot_stride, kept, K, D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of one set of one row, whose first slot `facts` points to.

    A source never lies below its target, so with ascending blocks no source is overwritten before its block is read;
    within a block the barrier sees to that.
    """
    d = tl.arange(0, DP)
    for start in range(0, K, BLOCK):
        target = start + tl.arange(0, BLOCK).to(tl.int64)
        source = tl.load(kept + target, mask=target < K, other=0)
        moves = source > target
        if tl.max(moves.to(tl.int32), 0) > 0:  # the first slots often stay where they are
            inside = moves[:, None] & (d[None, :] < D)
            slots = tl.load(facts + source[:, None] * slot_stride + d[None, :], mask=inside)
            tl.debug_barrier()
            tl.store(facts + target[:, None] * slot_stride + d[None, :], slots, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _compact(  # type: ignore[no-untyped-def]
    rows, starts, pinned, lengths, kept, K, H, kept_row, kept_layer, kept_head,
    facts0, L0, A0, layer0, set0, slot0, facts1, L1, A1, layer1, set1, slot1, facts2, L2, A2, layer2, set2, slot2,
    D0: tl.constexpr, DP0: tl.constexpr, BLOCK0: tl.constexpr, D1: tl.constexpr, DP1: tl.constexpr,
    BLOCK1: tl.constexpr, D2: tl.constexpr, DP2: tl.constexpr, BLOCK2: tl.constexpr,
):  # fmt: skip
    """One program per row, layer, and set of any of the facts."""
    row, layer, place = tl.load(rows + tl.program_id(0)), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    behind = tl.load(pinned + row)
    first = tl.load(starts + row) + behind
    if (layer == 0) & (place == 0):
        tl.store(lengths + row, behind + K)
    kept += tl.program_id(0).to(tl.int64) * kept_row + layer * kept_layer
    if place < A0:
        if layer < L0:
            own = facts0 + layer * layer0 + place * set0 + first * slot0
            _move(own, slot0, kept + place % H * kept_head, K, D0, DP0, BLOCK0)
    elif place < A0 + A1:
        if layer < L1:
            own = facts1 + layer * layer1 + (place - A0) * set1 + first * slot1
            _move(own, slot1, kept + (place - A0) % H * kept_head, K, D1, DP1, BLOCK1)
    elif layer < L2:
        own = facts2 + layer * layer2 + (place - A0 - A1) * set2 + first * slot2
        _move(own, slot2, kept + (place - A0 - A1) % H * kept_head, K, D2, DP2, BLOCK2)


def compact(
    facts: Sequence[Tensor], kept: Tensor, rows_R: Tensor, starts_N: Tensor, pinned_N: Tensor, lengths_N: Tensor
) -> None:
    """Move slot first + kept[..., i] of each row to first + i for every i, in place; first = its start + its pinned.

    Args:
        facts: at most MOST_FACTS of [L, A, T, D]: keys and values of all layers, or anything else that a slot has in
            each layer and head, or once. Set a of a layer is moved as its head a % H.
        kept: int64, ascending and distinct: [R, K] for all layers and heads, or [R, L, H, K].
        rows_R: which rows, int64.
        starts_N: the first slot of each row, int64.
        pinned_N: how many of its slots stay in front, int64.
        lengths_N: becomes pinned + K.
    """
    K, H = kept.shape[-1], kept.shape[2] if kept.dim() == 4 else 1
    assert 0 < len(facts) <= MOST_FACTS
    assert K == 1 or kept.stride(-1) == 1
    kept_RLH = kept.stride()[:3] if kept.dim() == 4 else (kept.stride(0), 0, 0)
    numbers: list[Any] = []
    sizes: dict[str, int] = {}
    for i in range(MOST_FACTS):
        facts_LATD = facts[min(i, len(facts) - 1)]
        L, A, _, D = facts_LATD.shape
        assert facts_LATD.stride(-1) == 1 or D == 1
        assert kept.dim() == 2 or kept.shape[1] == L
        numbers += [facts_LATD, L, A if i < len(facts) else 0, *facts_LATD.stride()[:3]]
        sizes[f"D{i}"], sizes[f"DP{i}"] = D, triton.next_power_of_2(D)
        sizes[f"BLOCK{i}"] = max(1, BLOCK_BYTES // (sizes[f"DP{i}"] * facts_LATD.element_size()))
    layers, places = max(numbers[1::6]), sum(numbers[2::6])
    launch: Any = _compact[(len(rows_R), layers, places)]
    launch(
        rows_R, starts_N, pinned_N, lengths_N, kept, K, H, *kept_RLH, *numbers, **sizes,
        num_stages=1,  # loads and stores stay in the order written
    )  # fmt: skip
