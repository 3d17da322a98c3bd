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

FEW_HEADS = 4096  # up to so many, of all rows together, each has a program of one warp: a GPU runs them all at once
POINTS, WARPS = 1024, 4  # of a program where there are more: eight points a thread, 16 bytes of each half in bfloat16


@triton.jit
def _product(a, b):  # type: ignore[no-untyped-def]
    """The product of two numbers of a's dtype as that dtype holds it."""
    return (a.to(tl.float32) * b.to(tl.float32)).to(a.dtype).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _sums(x, BLOCK: tl.constexpr, HALFP: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of each head, [BLOCK, 1], in an order that no layout changes: a head's norm is the same in any block.

    It is the order of one warp that holds one head: neighbours first, then halves.
    """
    LEFT: tl.constexpr = min(HALFP, 32)
    x = tl.sum(tl.reshape(x, (BLOCK, LEFT, HALFP // LEFT)), 2)
    for i in tl.static_range(LEFT.bit_length() - 1):
        x = tl.sum(tl.reshape(x, (BLOCK, 2, LEFT >> (i + 1))), 1)
    return x


@triton.jit  # type: ignore[untyped-decorator]
def _turned(  # type: ignore[no-untyped-def]
    block, qkv, target, write, weight, cos, sin, offsets, scales, eps, N, qkv_row, cos_row, target_head, target_slot,
    HEADS: tl.constexpr, HALF: tl.constexpr, HALFP: tl.constexpr, BLOCK: tl.constexpr,
    NORM: tl.constexpr, ROTATE: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """A block of one kind's heads, normed and rotated; a head's two halves are the coordinates of HALF points."""
    head = block * BLOCK + tl.arange(0, BLOCK)
    row, head = (head // HEADS).to(tl.int64), (head % HEADS).to(tl.int64)
    slot = row if write is None else tl.load(write + row, mask=row < N, other=0)
    scale = tl.load(scales + head)[:, None] if FP8 else None
    row, head, slot, d = row[:, None], head[:, None], slot[:, None], tl.arange(0, HALFP)[None, :]
    inside = (row < N) & (d < HALF)
    x = qkv + row * qkv_row + head * 2 * HALF + d
    a, b = tl.load(x, mask=inside, other=0.0), tl.load(x + HALF, mask=inside, other=0.0)
    if NORM:
        wide_a, wide_b = a.to(tl.float32), b.to(tl.float32)
        inverse = tl.rsqrt(_sums(wide_a * wide_a + wide_b * wide_b, BLOCK, HALFP) / (2 * HALF) + eps)
        weight += tl.broadcast_to(d, (BLOCK, HALFP))
        weight_a, weight_b = tl.load(weight, mask=inside), tl.load(weight + HALF, mask=inside)
        a = _product((wide_a * inverse).to(a.dtype), weight_a).to(a.dtype)
        b = _product((wide_b * inverse).to(b.dtype), weight_b).to(b.dtype)
    if ROTATE:
        angle = row * cos_row + d
        cos_a, cos_b = tl.load(cos + angle, mask=inside), tl.load(cos + HALF + angle, mask=inside)
        sin_a, sin_b = tl.load(sin + angle, mask=inside), tl.load(sin + HALF + angle, mask=inside)
        turned_a = (_product(a, cos_a) - _product(b, sin_a)).to(a.dtype)
        b = (_product(b, cos_b) + _product(a, sin_b)).to(b.dtype)
        a = turned_a
    if FP8:
        offset = offsets + head * 2 * HALF + d
        a, b = as_e4m3(a, offset, scale, inside), as_e4m3(b, offset + HALF, scale, inside)
    target += head * target_head + slot * target_slot + d
    tl.store(target, a, mask=inside)
    tl.store(target + HALF, b, mask=inside)


@triton.jit(do_not_specialize=["N"])  # type: ignore[untyped-decorator]
def _place(  # type: ignore[no-untyped-def]
    qkv, q_out, keys, values, q_weight, k_weight, cos, sin, write, offsets, scales, eps, N,
    qkv_row, cos_row, keys_head, keys_slot, values_head, values_slot, A: tl.constexpr, H: tl.constexpr,
    HALF: tl.constexpr, HALFP: tl.constexpr, BLOCK: tl.constexpr,
    NORM: tl.constexpr, ROTATE: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """BLOCK heads of one kind per program, row by row: first those of the queries, then of the keys, of the values."""
    block, of_queries, of_keys = tl.program_id(0), tl.cdiv(N * A, BLOCK), tl.cdiv(N * H, BLOCK)
    D: tl.constexpr = 2 * HALF
    if block < of_queries:
        _turned(
            block, qkv, q_out, None, q_weight, cos, sin, offsets, scales, eps, N, qkv_row, cos_row,
            D, A * D, A, HALF, HALFP, BLOCK, NORM, ROTATE, False,
        )  # fmt: skip
    elif block < of_queries + of_keys:
        _turned(
            block - of_queries, qkv + A * D, keys, write, k_weight, cos, sin, offsets, scales, eps, N, qkv_row, cos_row,
            keys_head, keys_slot, H, HALF, HALFP, BLOCK, NORM, ROTATE, FP8,
        )  # fmt: skip
    else:
        _turned(
            block - of_queries - of_keys, qkv + (A + H) * D, values, write, k_weight, cos, sin, offsets + H * D,
            scales + H, eps, N, qkv_row, cos_row, values_head, values_slot, H, HALF, HALFP, BLOCK, False, False, FP8,
        )  # fmt: skip


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
    HALFP = triton.next_power_of_2(D // 2)
    BLOCK, num_warps = (1, 1) if N * (A + 2 * H) <= FEW_HEADS else (max(1, POINTS // HALFP), WARPS)
    launch: Any = _place[(triton.cdiv(N * A, BLOCK) + 2 * triton.cdiv(N * H, BLOCK),)]
    launch(
        qkv_NX, q_NAD, keys_HTD, values_HTD, q_weight, k_weight, cos_ND, sin_ND, write_N, offsets_PHD, scales_PH,
        eps, N, qkv_NX.stride(0), cos_ND.stride(0), *keys_HTD.stride()[:2], *values_HTD.stride()[:2],
        A=A, H=H, HALF=D // 2, HALFP=HALFP, BLOCK=BLOCK,
        NORM=norms is not None, ROTATE=angles is not None, FP8=fp8 is not None, num_warps=num_warps,
        enable_fp_fusion=False,  # a fused product and sum would not be rounded in between
    )  # fmt: skip
    return q_NAD
