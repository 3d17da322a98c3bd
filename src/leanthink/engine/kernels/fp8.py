"""What the kernels that write and read FP8 keys and values share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def as_e4m3(numbers, offsets, scale, mask):  # type: ignore[no-untyped-def]
    """(Number - offset) / scale, at most e4m3's largest; nan stays nan, so that whoever brought it is told."""
    shifted = numbers.to(tl.float32) - tl.load(offsets, mask=mask, other=0.0)
    scaled = tl.div_rn(shifted, scale)  # exact, as the scale is a power of two
    return tl.clamp(scaled, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL).to(tl.float8e4nv)


@triton.jit
def query_and_scale(query, scale):  # type: ignore[no-untyped-def]
    """Queries in a type whose products with keys in FP8 are exact and fast, and the factor on these products.

    A GPU turns two numbers of e4m3 into float16 in one instruction, without rounding; into bfloat16 it takes several.
    Queries in bfloat16 may be above the largest float16, 65504: a sixteenth of them is not, as they stay below 2^20.
    That rounds only what is below 2^-10 of them, by 2^-21 at most.
    """
    if query.dtype == tl.bfloat16:
        # Not times 1/16: LLVM would make that a product in float16, of what float16 may not hold.
        query = tl.div_rn(query.to(tl.float32), 16.0).to(tl.float16)
        scale *= 16.0
    return query, scale
