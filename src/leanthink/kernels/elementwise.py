"""Chains of small operations of transformers' modules, each in one launch, rounded where the modules round.

B rows   H heads   S tokens   D head dim   F features (the last dim)   M all leading dims together
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

SILU_BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _rms_norm(  # type: ignore[no-untyped-def]
    x, added, weight, total, out, x_row, added_row, eps, F: tl.constexpr, FP: tl.constexpr, ADD: tl.constexpr
):
    row, f = tl.program_id(0).to(tl.int64), tl.arange(0, FP)
    numbers = tl.load(x + row * x_row + f, mask=f < F, other=0.0)
    if ADD:
        more = tl.load(added + row * added_row + f, mask=f < F, other=0.0)
        numbers = (numbers.to(tl.float32) + more.to(tl.float32)).to(numbers.dtype)
        tl.store(total + row * F + f, numbers, mask=f < F)
    wide = numbers.to(tl.float32)
    normed = (wide * tl.rsqrt(tl.sum(wide * wide, 0) / F + eps)).to(numbers.dtype)
    scaled = normed.to(tl.float32) * tl.load(weight + f, mask=f < F, other=0.0).to(tl.float32)
    tl.store(out + row * F + f, scaled.to(out.dtype.element_ty), mask=f < F)


def _launch_rms_norm(x: Tensor, added: Tensor, weight: Tensor, total: Tensor, eps: float, *, add: bool) -> Tensor:
    F = x.shape[-1]
    x_MF, added_MF = x.reshape(-1, F), added.reshape(-1, F)
    assert x_MF.stride(-1) == added_MF.stride(-1) == weight.stride(-1) == 1
    out = torch.empty(x.shape, dtype=torch.result_type(x, weight), device=x.device)
    FP = triton.next_power_of_2(F)
    launch: Any = _rms_norm[(len(x_MF),)]
    launch(
        x_MF, added_MF, weight, total, out, x_MF.stride(0), added_MF.stride(0), eps,
        F=F, FP=FP, ADD=add, num_warps=max(1, min(16, FP // 512)),
    )  # fmt: skip
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """LlamaRMSNorm over the last dim: normalised in float32, rounded to x's dtype, then multiplied by the weight."""
    return _launch_rms_norm(x, x, weight, x, eps, add=False)


def add_rms_norm(x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of both, and its `rms_norm`."""
    assert x.shape == added.shape
    assert x.dtype == added.dtype
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return total, _launch_rms_norm(x, added, weight, total, eps, add=True)


@triton.jit
def _product(a, b):  # type: ignore[no-untyped-def]
    """The product of two numbers of x's dtype as that dtype holds it."""
    return (a.to(tl.float32) * b.to(tl.float32)).to(a.dtype).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _rotate(x, out, cos, sin, HALF: tl.constexpr, HALFP: tl.constexpr):  # type: ignore[no-untyped-def]
    """One head of one token; its two halves are the coordinates of HALF points."""
    d = tl.arange(0, HALFP)
    inside = d < HALF
    a, b = tl.load(x + d, mask=inside), tl.load(x + HALF + d, mask=inside)
    cos_a, cos_b = tl.load(cos + d, mask=inside), tl.load(cos + HALF + d, mask=inside)
    sin_a, sin_b = tl.load(sin + d, mask=inside), tl.load(sin + HALF + d, mask=inside)
    tl.store(out + d, (_product(a, cos_a) - _product(b, sin_a)).to(a.dtype), mask=inside)
    tl.store(out + HALF + d, (_product(b, cos_b) + _product(a, sin_b)).to(a.dtype), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _rope(  # type: ignore[no-untyped-def]
    q, k, cos, sin, q_out, k_out, q_heads, k_heads, q_row, q_head, q_token, k_row, k_head, k_token, cos_row, cos_token,
    HALF: tl.constexpr, HALFP: tl.constexpr,
):  # fmt: skip
    """One program per token, row and head, the key heads behind the query heads; outputs are [B, S, H, D]."""
    token, row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    cos += row * cos_row + token * cos_token
    sin += row * cos_row + token * cos_token
    place = row * tl.num_programs(0) + token
    if head < q_heads:
        target = q_out + (place * q_heads + head) * 2 * HALF
        _rotate(q + row * q_row + head * q_head + token * q_token, target, cos, sin, HALF, HALFP)
    else:
        head -= q_heads
        target = k_out + (place * k_heads + head) * 2 * HALF
        _rotate(k + row * k_row + head * k_head + token * k_token, target, cos, sin, HALF, HALFP)


def rope(q_BHSD: Tensor, k_BHSD: Tensor, cos_BSD: Tensor, sin_BSD: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys rotated as by transformers' `apply_rotary_pos_emb` (the `rotate_half` convention).

    Each token's numbers lie together in memory, [B, S, H, D], whatever they did before. Cosines and sines of one row
    serve all rows; both span the whole head.
    """
    B, q_heads, S, D = q_BHSD.shape
    k_heads = k_BHSD.shape[1]
    assert q_BHSD.dtype == k_BHSD.dtype == cos_BSD.dtype == sin_BSD.dtype
    assert q_BHSD.stride(-1) == k_BHSD.stride(-1) == cos_BSD.stride(-1) == 1
    assert cos_BSD.shape[-1] == D
    cos_BSD, sin_BSD = cos_BSD.expand(B, S, D), sin_BSD.expand(B, S, D)
    assert cos_BSD.stride() == sin_BSD.stride()
    q_out, k_out = (
        torch.empty((B, S, heads, D), dtype=q_BHSD.dtype, device=q_BHSD.device) for heads in (q_heads, k_heads)
    )
    launch: Any = _rope[(S, B, q_heads + k_heads)]
    launch(
        q_BHSD, k_BHSD, cos_BSD, sin_BSD, q_out, k_out, q_heads, k_heads, *q_BHSD.stride()[:3], *k_BHSD.stride()[:3],
        *cos_BSD.stride()[:2], HALF=D // 2, HALFP=triton.next_power_of_2(D // 2), num_warps=1,
        enable_fp_fusion=False,  # a fused product and sum is not rounded in between
    )  # fmt: skip
    return q_out.transpose(1, 2), k_out.transpose(1, 2)


@triton.jit  # type: ignore[untyped-decorator]
def _silu_mul(gate, up, out, gate_row, up_row, F, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row, f = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    closed = tl.load(gate + row * gate_row + f, mask=f < F)
    wide = closed.to(tl.float32)
    opened = (wide / (1 + tl.exp(-wide))).to(closed.dtype)
    product = opened.to(tl.float32) * tl.load(up + row * up_row + f, mask=f < F).to(tl.float32)
    tl.store(out + row * F + f, product.to(out.dtype.element_ty), mask=f < F)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up; both may be halves of one tensor."""
    F = gate.shape[-1]
    gate_MF, up_MF = gate.reshape(-1, F), up.reshape(-1, F)
    assert gate.shape == up.shape
    assert gate_MF.stride(-1) == up_MF.stride(-1) == 1
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    launch: Any = _silu_mul[(len(gate_MF), triton.cdiv(F, SILU_BLOCK))]
    launch(gate_MF, up_MF, out, gate_MF.stride(0), up_MF.stride(0), F, BLOCK=SILU_BLOCK)
    return out
