"""Reads what a policy is shown of some rows' thought slots, in one launch.

R chosen rows of N   X index sets   S thought slots   C score dimensions   T slots of the cache
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256  # slots of one program


@triton.jit(do_not_specialize=["S", "first"])  # type: ignore[untyped-decorator]
def _view(  # type: ignore[no-untyped-def]
    rows, starts, pinned, next_positions, prompt_lengths, seeds, positions, scores, of_rows, shown, shown_scores,
    S, first, positions_set, scores_slot, C: tl.constexpr, CP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row, index set and block of slots."""
    R, X = tl.num_programs(0), tl.num_programs(1)
    at, x = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows + at)
    next_position = tl.load(next_positions + row)
    if (x == 0) & (tl.program_id(2) == 0):
        tl.store(of_rows + at, next_position)
        tl.store(of_rows + R + at, tl.load(prompt_lengths + row))
        tl.store(of_rows + 2 * R + at, tl.load(seeds + row))
    s = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(starts + row) + tl.load(pinned + row) + s
    place = (at.to(tl.int64) * X + x) * S + s
    position = tl.load(positions + x.to(tl.int64) * positions_set + slot, mask=s < S)
    tl.store(shown + place, position, mask=s < S)
    tl.store(shown + R.to(tl.int64) * X * S + place, next_position - 1 - position, mask=s < S)
    if C > 0:
        c = tl.arange(0, CP)
        inside = (s < S)[:, None] & (c < C)[None, :]
        score = tl.load(scores + slot[:, None] * scores_slot + first + x * C + c[None, :], mask=inside)
        tl.store(shown_scores + place[:, None] * C + c[None, :], score.to(tl.float32), mask=inside)


def view(
    rows_R: Tensor,
    count: int,
    starts_N: Tensor,
    pinned_N: Tensor,
    of_rows: tuple[Tensor, Tensor, Tensor],
    positions_XT: Tensor,
    token_scores: Tensor,
    first: int,
    score_dims: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """What lies in the S = `count` slots behind the pinned ones of each row.

    Args:
        rows_R: which rows, int64.
        count: S.
        starts_N: the first slot of each row, int64.
        pinned_N: how many of its slots are not shown, int64.
        of_rows: next positions, prompt lengths and seeds, int64 [N] each.
        positions_XT: of what each index set holds, int64.
        token_scores: [T, columns]; those of set x begin at column `first` + x C.
        first: see there.
        score_dims: C, or 0.

    Returns:
        The numbers `of_rows` of these rows [3, R], positions and ages [2, R, X, S], token scores in float32
        [R, X, S, C].
    """
    R, X, C = len(rows_R), len(positions_XT), score_dims
    of_rows_R = rows_R.new_empty(3, R)
    shown = rows_R.new_empty(2, R, X, count)
    scores_RXSC = rows_R.new_empty(R, X, count, C, dtype=torch.float32)
    launch: Any = _view[(R, X, triton.cdiv(count, BLOCK))]
    launch(
        rows_R, starts_N, pinned_N, *of_rows, positions_XT, token_scores, of_rows_R, shown, scores_RXSC,
        count, first, positions_XT.stride(0), token_scores.stride(0),
        C=C, CP=triton.next_power_of_2(C) if C else 1, BLOCK=BLOCK,
    )  # fmt: skip
    return of_rows_R, shown, scores_RXSC
