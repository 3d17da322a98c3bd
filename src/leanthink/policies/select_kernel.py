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


@triton.jit
def _stays(score, s, S, K, window):  # type: ignore[no-untyped-def]
    """Which of S slots are the K that stay: finds the K-th highest score bit by bit, from the highest bit on."""
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
    return above | ((ties > 0) & youngest_ties)


@triton.jit  # type: ignore[untyped-decorator]
def _select(scores, kept, S, K, window, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program per index set."""
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, BLOCK)
    score = tl.load(scores + row * S + s, mask=s < S, other=0.0)
    stays = _stays(score, s, S, K, window)
    at = tl.cumsum(stays.to(tl.int32), 0) - 1
    tl.store(kept + row * K + at, s.to(tl.int64), mask=stays)


@triton.jit(do_not_specialize=["slots", "interval", "window", "most", "most_kept"])  # type: ignore[untyped-decorator]
def _select_ragged(scores, kept, slots, interval, window, most, most_kept, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program per request and index set."""
    row, place = tl.program_id(0), tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    K = tl.load(slots + row).to(tl.int32)
    S = K + tl.load(interval + row).to(tl.int32)
    s = tl.arange(0, BLOCK)
    score = tl.load(scores + place * most + s, mask=s < S, other=0.0)
    stays = _stays(score, s, S, K, tl.load(window + row).to(tl.int32))
    at = tl.cumsum(stays.to(tl.int32), 0) - 1
    tl.store(kept + place * most_kept + at, s.to(tl.int64), mask=stays)


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


def select_ragged(scores_gXS: Tensor, slots_g: Tensor, interval_g: Tensor, window_g: Tensor, most_kept: int) -> Tensor:
    """The same for requests that hold and keep different numbers, [g, X, most_kept]; what pads them is not written.

    Args:
        scores_gXS: of the first slots_g[i] + interval_g[i] slots of request i; the rest is not looked at.
        slots_g: how many stay, int64.
        interval_g: how many go.
        window_g: the youngest so many stay.
        most_kept: the largest of `slots_g`.
    """
    g, X, S = scores_gXS.shape
    assert 0 < most_kept <= S <= MAX_SLOTS
    kept_gXK = torch.empty(g, X, most_kept, dtype=torch.int64, device=scores_gXS.device)
    BLOCK = max(SLOTS_PER_WARP, triton.next_power_of_2(S))
    launch: Any = _select_ragged[(g, X)]
    launch(
        scores_gXS.float().contiguous(), kept_gXK, slots_g, interval_g, window_g, S, most_kept,
        BLOCK=BLOCK, num_warps=min(32, BLOCK // SLOTS_PER_WARP),
    )  # fmt: skip
    return kept_gXK
