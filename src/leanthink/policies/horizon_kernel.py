"""The score of every slot under `horizon`, in one launch.

N slots of all rows and index sets   C horizons
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512  # slots of one program


@triton.jit(do_not_specialize=["N", "younger_than"])  # type: ignore[untyped-decorator]
def _horizon(  # type: ignore[no-untyped-def]
    ages, token_scores, bounds, scores, N, younger_than, outranks,
    C: tl.constexpr, RIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per block of slots; the index of a slot's horizon is how many of the C - 1 bounds its age reaches."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    age = tl.load(ages + n, mask=n < N, other=0)
    index = tl.zeros((BLOCK,), tl.int32)
    for c in range(C - 1):
        bound = tl.load(bounds + c)
        index += ((bound <= age) if RIGHT else (bound < age)).to(tl.int32)
    score = tl.load(token_scores + n * C + index, mask=n < N)
    tl.store(scores + n, tl.where(age < younger_than, outranks - age.to(tl.float32), score), mask=n < N)


def horizon_scores(
    ages: Tensor, token_scores: Tensor, bounds: Tensor, younger_than: int, outranks: float, *, right: bool
) -> Tensor:
    """`Horizon.score` on a GPU, of the shape of `ages`.

    Args:
        ages: [...] int64.
        token_scores: [..., C] float32.
        bounds: at least C - 1, ascending, int64; the first C - 1 count.
        younger_than: a slot of a lower age gets `outranks` - age.
        outranks: see there.
        right: whether an age reaches a bound that it equals.
    """
    C = token_scores.shape[-1]
    scores = torch.empty_like(ages, dtype=torch.float32, memory_format=torch.contiguous_format)
    launch: Any = _horizon[(triton.cdiv(ages.numel(), BLOCK),)]
    launch(
        ages.contiguous(), token_scores.contiguous(), bounds, scores, ages.numel(), younger_than, outranks,
        C=C, RIGHT=right, BLOCK=BLOCK,
    )  # fmt: skip
    return scores
