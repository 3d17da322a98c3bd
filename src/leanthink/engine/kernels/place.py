"""What happens between a layer's product of queries, keys and values and its attention, in one launch.

N rows   A query heads   H kv heads   D head dim   T slots of the cache   X = (A + 2 H) D
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from leanthink.engine.kernels.fp8 import as_e4m3
from leanthink.engine.quantized_kv import OfLayer


@triton.jit
def _product(a, b):  # type: ignore[no-untyped-def]
    """The product of two numbers of a's dtype as that dtype holds it."""
    return (a.to(tl.float32) * b.to(tl.float32)).to(a.dtype).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _turned(  # type: ignore[no-untyped-def]
    x, target, weight, cos, sin, eps, offsets, kv_scale,
    HALF: tl.constexpr, HALFP: tl.constexpr, NORM: tl.constexpr, ROTATE: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """One head of one row, normed and rotated; its two halves are the coordinates of HALF points."""
    d = tl.arange(0, HALFP)
    inside = d < HALF
    a, b = tl.load(x + d, mask=inside, other=0.0), tl.load(x + HALF + d, mask=inside, other=0.0)
    if NORM:
        wide_a, wide_b = a.to(tl.float32), b.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide_a * wide_a + wide_b * wide_b, 0) / (2 * HALF) + eps)
        weight_a, weight_b = tl.load(weight + d, mask=inside), tl.load(weight + HALF + d, mask=inside)
        a = _product((wide_a * scale).to(a.dtype), weight_a).to(a.dtype)
        b = _product((wide_b * scale).to(b.dtype), weight_b).to(b.dtype)
    if ROTATE:
        cos_a, cos_b = tl.load(cos + d, mask=inside), tl.load(cos + HALF + d, mask=inside)
        sin_a, sin_b = tl.load(sin + d, mask=inside), tl.load(sin + HALF + d, mask=inside)
        turned_a = (_product(a, cos_a) - _product(b, sin_a)).to(a.dtype)
        b = (_product(b, cos_b) + _product(a, sin_b)).to(b.dtype)
        a = turned_a
    if FP8:
        a = as_e4m3(a, offsets + d, kv_scale, inside)
        b = as_e4m3(b, offsets + HALF + d, kv_scale, inside)
    tl.store(target + d, a, mask=inside)
    tl.store(target + HALF + d, b, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _place(  # type: ignore[no-untyped-def]
    qkv, q_out, keys, values, q_weight, k_weight, cos, sin, write, offsets, scales, eps, A, H,
    qkv_row, cos_row, keys_head, keys_slot, values_head, values_slot,
    HALF: tl.constexpr, HALFP: tl.constexpr, NORM: tl.constexpr, ROTATE: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """One program per row and head: first the query heads, then those of the keys, then those of the values."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    source = qkv + row * qkv_row + head * 2 * HALF
    cos += row * cos_row
    sin += row * cos_row
    slot = tl.load(write + row)
    offset, scale = offsets + (head - A) * 2 * HALF, scales + (head - A)
    if head < A:
        query = q_out + (row * A + head) * 2 * HALF  # a name of its own: a target has one type, and a cache may be FP8
        _turned(source, query, q_weight, cos, sin, eps, offset, scale, HALF, HALFP, NORM, ROTATE, False)
    elif head < A + H:
        target = keys + (head - A) * keys_head + slot * keys_slot
        _turned(source, target, k_weight, cos, sin, eps, offset, scale, HALF, HALFP, NORM, ROTATE, FP8)
    else:
        target = values + (head - A - H) * values_head + slot * values_slot
        _turned(source, target, k_weight, cos, sin, eps, offset, scale, HALF, HALFP, False, False, FP8)


def place(
    qkv_NX: Tensor,
    keys_HTD: Tensor,
    values_HTD: Tensor,
    write_N: Tensor,
    *,
    norms: tuple[Tensor, Tensor] | None,
    angles: tuple[Tensor, Tensor] | None,
    eps: float,
    fp8: OfLayer | None = None,
) -> Tensor:
    """Norm and rotate queries and keys, write keys and values into their slots; returns the queries [N, A, D].

    Rounded where transformers' modules round. A CUDA graph may capture it. Rows that share a slot leave any one of
    their values in it.

    Args:
        qkv_NX: the query heads, the key heads and the value heads of each row, side by side.
        keys_HTD: one layer's keys, of all rows.
        values_HTD: and its values.
        write_N: int64, the slot of the cache that each row writes.
        norms: weights [D] of the RMS norms of queries and keys, for families that have them.
        angles: cosines and sines [N, D] of the positions, as of `rotate_half`; None for a layer that does not rotate.
        eps: of the norms.
        fp8: what a cache in FP8 holds them by.
    """
    H, _, D = keys_HTD.shape
    N, A = len(qkv_NX), qkv_NX.shape[1] // D - 2 * H
    q_weight, k_weight = norms or (qkv_NX, qkv_NX)
    cos_ND, sin_ND = angles or (qkv_NX, qkv_NX)
    offsets_PHD, scales_PH = fp8 or (qkv_NX, qkv_NX)
    for tensor in (keys_HTD, values_HTD, q_weight, k_weight, cos_ND, sin_ND):
        assert tensor.dtype == qkv_NX.dtype or fp8 is not None
        assert tensor.stride(-1) == 1
    assert qkv_NX.stride(-1) == 1
    assert cos_ND.stride() == sin_ND.stride()
    assert angles is None or cos_ND.shape == (N, D)
    assert write_N.is_contiguous()
    q_NAD = torch.empty((N, A, D), dtype=qkv_NX.dtype, device=qkv_NX.device)
    launch: Any = _place[(N, A + 2 * H)]
    launch(
        qkv_NX, q_NAD, keys_HTD, values_HTD, q_weight, k_weight, cos_ND, sin_ND, write_N, offsets_PHD, scales_PH,
        eps, A, H, qkv_NX.stride(0), cos_ND.stride(0), *keys_HTD.stride()[:2], *values_HTD.stride()[:2],
        HALF=D // 2, HALFP=triton.next_power_of_2(D // 2), NORM=norms is not None, ROTATE=angles is not None,
        FP8=fp8 is not None, num_warps=1,
        enable_fp_fusion=False,  # a fused product and sum would not be rounded in between
    )  # fmt: skip
    return q_NAD
