"""Chains of small operations of transformers' modules, each in one launch, rounded where the modules round.

F features (the last dim)   M all leading dims together
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
