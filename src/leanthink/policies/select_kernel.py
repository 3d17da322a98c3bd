"""Chooses the slots that stay, for every index set at once: the counting of an eviction, in one launch.

M index sets of all rows   S slots of each, oldest first   K kept slots
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_SLOTS = 65536  # that one program holds at a time
SLOTS_PER_WARP = 512


@triton.jit  # type: ignore[untyped-decorator]
def _select(scores, kept, S, K, window, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program per index set, which finds the K-th highest score bit by bit, from the highest bit on."""
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, BLOCK)
    score = tl.load(scores + row * S + s, mask=s < S, other=0.0)
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)  # -0.0 equals 0.0
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the scores
    order = tl.where(s >= S - window, 0x7FFFFFFF, order)
    order = tl.where(s < S, order, -0x80000000)
    threshold = tl.where(tl.sum((order >= 0).to(tl.int32), 0) >= K, 0, -0x80000000)
    for i in range(31):
        higher = threshold | (1 << (30 - i))
        threshold = tl.where(tl.sum((order >= higher).to(tl.int32), 0) >= K, higher, threshold)
    above = order > threshold
    ties = ((order == threshold) & (s < S)).to(tl.int32)
    room = K - tl.sum(above.to(tl.int32), 0)
    youngest_ties = tl.cumsum(ties, 0) > tl.sum(ties, 0) - room
    stays = above | ((ties > 0) & youngest_ties)
    at = tl.cumsum(stays.to(tl.int32), 0) - 1
    tl.store(kept + row * K + at, s.to(tl.int64), mask=stays)


def select_in_order(scores_MS: Tensor, num_kept: int, window: int) -> Tensor:
    """`leanthink.policies.budget.top_k_oldest_first` on a GPU, [M, K] int64, for scores of at most 32 bits."""
    M, S = scores_MS.shape
    assert 0 < num_kept <= S <= MAX_SLOTS
    kept_MK = torch.empty(M, num_kept, dtype=torch.int64, device=scores_MS.device)
    BLOCK = triton.next_power_of_2(S)
    launch: Any = _select[(M,)]
    launch(
        scores_MS.float().contiguous(), kept_MK, S, num_kept, window,
        BLOCK=BLOCK, num_warps=max(1, min(32, BLOCK // SLOTS_PER_WARP)),
    )  # fmt: skip
    return kept_MK
