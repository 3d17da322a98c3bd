"""The MLP of few rows: its weights are read once and little is computed, so what surrounds the reading counts.

N rows   M model width   F features between the two products
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear
from triton.tools.tensor_descriptor import TensorDescriptor

from leanthink.engine.kernels.elementwise import silu_mul

HALF = (torch.bfloat16, torch.float16)
HOPPER = 9  # major compute capability
FEATURES = 64  # of a block
SPLIT_K, MOST_SPLIT_ROWS = 2, 256  # of `down`, and up to how many rows it pays
WELL_FILLED = 0.8  # share of the SMs at work, over all waves of programs


@dataclass(frozen=True)
class Tile:
    """What a program of `_gate_up` computes: rows, how much of M a step takes, warps, steps in flight."""

    rows: int
    step: int
    warps: int
    stages: int


@triton.jit  # type: ignore[untyped-decorator]
def _gate_up(x, weight, out, M, F, ROWS: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program per block of rows and of features, its gates beside its ups; rounded where separate operations round.

    Weights stand to the left of the product: its left side has at least 64 rows on Hopper, its right one as few as 8.
    """
    row, feature = tl.program_id(0) * ROWS, tl.program_id(1) * BLOCK
    gate = tl.zeros([BLOCK, ROWS], tl.float32)
    up = tl.zeros([BLOCK, ROWS], tl.float32)
    for start in tl.range(0, M, STEP):
        numbers = x.load([row, start]).T
        gate = tl.dot(weight.load([feature, start]), numbers, gate)
        up = tl.dot(weight.load([F + feature, start]), numbers, up)
    wide = gate.to(out.dtype).to(tl.float32)
    opened = (wide / (1 + tl.exp(-wide))).to(out.dtype).to(tl.float32)
    out.store([row, feature], (opened * up.to(out.dtype).to(tl.float32)).to(out.dtype).T)


def gate_up(x_NM: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """silu(x W_gate) * (x W_up), [N, F]: in one kernel where that is faster, else a product and a kernel.

    Args:
        x_NM: contiguous.
        weight: the gates' rows and then the ups', [2F, M], contiguous.
        bias: of both, [2F].
    """
    tile = _tile(x_NM, weight) if bias is None else None
    if tile is None:
        return silu_mul(*linear(x_NM, weight, bias).chunk(2, dim=-1))
    return fused_gate_up(x_NM, weight, tile)


def fused_gate_up(x_NM: Tensor, weight: Tensor, tile: Tile) -> Tensor:
    """The same without a bias, in one kernel."""
    (N, M), F = x_NM.shape, len(weight) // 2
    assert x_NM.is_contiguous()
    assert weight.is_contiguous()
    out_NF = x_NM.new_empty(N, F)
    launch: Any = _gate_up[(triton.cdiv(N, tile.rows), triton.cdiv(F, FEATURES))]
    launch(
        TensorDescriptor.from_tensor(x_NM, [tile.rows, tile.step]),
        TensorDescriptor.from_tensor(weight, [FEATURES, tile.step]),
        TensorDescriptor.from_tensor(out_NF, [tile.rows, FEATURES]),
        M, F, ROWS=tile.rows, STEP=tile.step, BLOCK=FEATURES, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out_NF


def _tile(x_NM: Tensor, weight: Tensor) -> Tile | None:
    """How the fused kernel is to be run; None where it cannot be, or is slower than cuBLAS and a kernel.

    It loads blocks by Hopper's tensor memory accelerator, which wants rows of whole 16 bytes.
    """
    aligned = x_NM.shape[1] % 8 == 0 and len(weight) % 16 == 0 and weight.data_ptr() % 16 == 0
    if not _half_on_gpu(x_NM) or not aligned:
        return None
    major, sms = _device(x_NM.device)
    return tile_for(len(x_NM), len(weight) // 2, sms) if major == HOPPER else None


def tile_for(rows: int, features: int, sms: int) -> Tile | None:
    """The tile for a shape, None where cuBLAS and a kernel are faster: on an H100, for six shapes of 1.5B to 14B.

    On an H200 it was faster for 7B and 8B, within 1 us of them for the others, and slower at 224 rows (of 8B).
    """
    blocks = triton.cdiv(features, FEATURES)
    if rows <= 64:
        return Tile(rows=max(16, triton.next_power_of_2(rows)), step=128, warps=4, stages=4)
    if rows <= 128:  # two programs an SM, which must all run at once
        return Tile(rows=128, step=64, warps=4, stages=3) if blocks <= 2 * sms else None
    waves = triton.cdiv(blocks, sms)
    if 224 < rows <= 256 and blocks >= WELL_FILLED * waves * sms:
        return Tile(rows=256, step=64, warps=8, stages=4)
    return None


def _half_on_gpu(x: Tensor) -> bool:
    return x.is_cuda and x.dtype in HALF


@cache
def _device(device: torch.device) -> tuple[int, int]:
    """Major compute capability of CUDA, and SMs."""
    properties = torch.cuda.get_device_properties(device)
    return 0 if torch.version.hip else properties.major, properties.multi_processor_count


def down(x_NF: Tensor, weight_MF: Tensor, bias: Tensor | None) -> Tensor:
    """The product with W_down, [N, M]; of few rows in parts still to be added (split-K), float32 [SPLIT_K, N, M].

    Few rows and outputs make too few blocks for all SMs unless the sums are split; the norm that follows adds the
    parts. Measured on an H100 with five shapes of 1.5B to 14B.

    Args:
        x_NF: contiguous.
        weight_MF: contiguous.
        bias: [M]; with one nothing is split.
    """
    (N, F), M = x_NF.shape, len(weight_MF)
    splits = _half_on_gpu(x_NF) and N <= MOST_SPLIT_ROWS and F % (8 * SPLIT_K) == 0
    if bias is not None or not splits:
        return linear(x_NF, weight_MF, bias)
    x_SNE = x_NF.view(N, SPLIT_K, -1).transpose(0, 1)
    weight_SEM = weight_MF.view(M, SPLIT_K, -1).permute(1, 2, 0)
    return torch.bmm(x_SNE, weight_SEM, out_dtype=torch.float32)
