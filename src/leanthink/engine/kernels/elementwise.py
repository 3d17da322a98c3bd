"""Chains of small operations of transformers' modules, each in one launch, rounded where the modules round.

F features (the last dim)   M all leading dims together   P parts of a sum
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
    x, added, weight, total, out, x_row, added_row, added_part, eps,
    F: tl.constexpr, FP: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    row, f = tl.program_id(0).to(tl.int64), tl.arange(0, FP)
    numbers = tl.load(x + row * x_row + f, mask=f < F, other=0.0)
    if PARTS > 0:
        more = tl.load(added + row * added_row + f, mask=f < F, other=0.0).to(tl.float32)
        for part in tl.static_range(1, PARTS):
            more += tl.load(added + part * added_part + row * added_row + f, mask=f < F, other=0.0).to(tl.float32)
        numbers = (numbers.to(tl.float32) + more.to(numbers.dtype).to(tl.float32)).to(numbers.dtype)
        tl.store(total + row * F + f, numbers, mask=f < F)
    wide = numbers.to(tl.float32)
    normed = (wide * tl.rsqrt(tl.sum(wide * wide, 0) / F + eps)).to(numbers.dtype)
    scaled = normed.to(tl.float32) * tl.load(weight + f, mask=f < F, other=0.0).to(tl.float32)
    tl.store(out + row * F + f, scaled.to(out.dtype.element_ty), mask=f < F)


def _launch_rms_norm(x: Tensor, added: Tensor, weight: Tensor, total: Tensor, eps: float, *, parts: int) -> Tensor:
    F = x.shape[-1]
    x_MF, added_PMF = x.reshape(-1, F), added.reshape(max(1, parts), -1, F)
    assert x_MF.stride(-1) == added_PMF.stride(-1) == weight.stride(-1) == 1
    out = torch.empty(x.shape, dtype=torch.result_type(x, weight), device=x.device)
    FP = triton.next_power_of_2(F)
    launch: Any = _rms_norm[(len(x_MF),)]
    launch(
        x_MF, added_PMF, weight, total, out, x_MF.stride(0), added_PMF.stride(1), added_PMF.stride(0), eps,
        F=F, FP=FP, PARTS=parts, num_warps=max(1, min(16, FP // 512)),
    )  # fmt: skip
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """LlamaRMSNorm over the last dim: normalised in float32, rounded to x's dtype, then multiplied by the weight."""
    return _launch_rms_norm(x, x, weight, x, eps, parts=0)


def add_rms_norm(x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of both, and its `rms_norm`.

    Args:
        x: any shape.
        added: of the same; or parts of it in float32, in one more dim in front, to be added and rounded to x's dtype.
        weight: of the last dim.
        eps: of the norm.
    """
    parts = len(added) if added.dim() > x.dim() else 1
    assert added.shape[-x.dim() :] == x.shape
    assert added.dtype == (x.dtype if added.dim() == x.dim() else torch.float32)
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return total, _launch_rms_norm(x, added, weight, total, eps, parts=parts)


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
