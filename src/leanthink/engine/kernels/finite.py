"""Notes of which rows a score is not finite, in one launch.

R chosen rows of N   M scores of each
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # scores of one program


@triton.jit(do_not_specialize=["M"])  # type: ignore[untyped-decorator]
def _note_finite(scores, rows, finite, M, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program per row and block of scores; those of one row write the same, if any."""
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    score = tl.load(scores + tl.program_id(0).to(tl.int64) * M + at, mask=at < M, other=0.0)
    is_finite = tl.abs(score) < float("inf")  # False for NaN
    if tl.min(is_finite.to(tl.int32), 0) == 0:
        tl.store(finite + tl.load(rows + tl.program_id(0)), False)


def note_finite(scores_RM: Tensor, rows_R: Tensor, finite_N: Tensor) -> None:
    """`finite_N` (bool) becomes False for those of these rows (int64) of which a score is NaN or infinite."""
    R, M = scores_RM.shape
    launch: Any = _note_finite[(R, triton.cdiv(M, BLOCK))]
    launch(scores_RM.contiguous(), rows_R, finite_N, M, BLOCK=BLOCK)
