"""What the kernels that write FP8 keys and values share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def as_e4m3(numbers, offsets, scale, mask):  # type: ignore[no-untyped-def]
    """(Number - offset) / scale, at most e4m3's largest; nan stays nan, so that whoever brought it is told."""
    shifted = numbers.to(tl.float32) - tl.load(offsets, mask=mask, other=0.0)
    scaled = tl.div_rn(shifted, scale)  # exact, as the scale is a power of two
    return tl.clamp(scaled, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL).to(tl.float8e4nv)
