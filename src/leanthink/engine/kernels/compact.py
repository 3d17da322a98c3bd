"""Moves the kept slots of some rows together, in place: the memory traffic of an eviction.

R chosen rows   L layers   P = 2: keys, values   H kv heads   K kept slots   D head dim   T slots of the cache
What else belongs to a slot has a P of 1, and its numbers as D: its position, or its token scores.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

BLOCK_BYTES = 16384  # moved per step


@triton.jit  # type: ignore[untyped-decorator]
def _compact(  # type: ignore[no-untyped-def]
    kv, first, kept, H, K, kv_layer, kv_part, kv_head, kv_slot, kept_row, kept_layer, kept_head,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row, layer, and head of the keys or of the values.

    A source never lies below its target, so with ascending blocks no source is overwritten before its block is read;
    within a block the barrier sees to that.
    """
    row, layer = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    part, head = tl.program_id(2).to(tl.int64) // H, tl.program_id(2).to(tl.int64) % H
    kv += layer * kv_layer + part * kv_part + head * kv_head + tl.load(first + row) * kv_slot
    kept += row * kept_row + layer * kept_layer + head * kept_head
    d = tl.arange(0, DP)
    for start in range(0, K, BLOCK):
        target = start + tl.arange(0, BLOCK).to(tl.int64)
        source = tl.load(kept + target, mask=target < K, other=0)
        moves = source > target
        if tl.max(moves.to(tl.int32), 0) > 0:  # the first slots often stay where they are
            inside = moves[:, None] & (d[None, :] < D)
            slots = tl.load(kv + source[:, None] * kv_slot + d[None, :], mask=inside)
            tl.debug_barrier()
            tl.store(kv + target[:, None] * kv_slot + d[None, :], slots, mask=inside)


def compact(kv_LPHTD: Tensor, first_R: Tensor, kept: Tensor) -> None:
    """Move slot first_R[r] + kept[..., i] to first_R[r] + i for every i, in place.

    Args:
        kv_LPHTD: keys and values of all layers; or anything else that a slot has in each layer and head.
        first_R: int64, where each row's kept slots are to begin.
        kept: int64, ascending and distinct: [R, K] for all layers and heads, or [R, L, H, K].
    """
    L, P, H, _, D = kv_LPHTD.shape
    R, K = kept.shape[0], kept.shape[-1]
    assert kept.dim() == 2 or kept.shape[1:3] == (L, H)
    assert kv_LPHTD.stride(-1) == 1
    assert K == 1 or kept.stride(-1) == 1
    assert first_R.is_contiguous()
    kept_RLH = kept.stride()[:3] if kept.dim() == 4 else (kept.stride(0), 0, 0)
    DP = triton.next_power_of_2(D)
    launch: Any = _compact[(R, L, P * H)]
    launch(
        kv_LPHTD, first_R, kept, H, K, *kv_LPHTD.stride()[:4], *kept_RLH,
        D=D, DP=DP, BLOCK=max(1, BLOCK_BYTES // (DP * kv_LPHTD.element_size())),
        num_stages=1,  # loads and stores stay in the order written
    )  # fmt: skip
