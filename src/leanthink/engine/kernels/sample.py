"""The likeliest token, and one drawn at a temperature alone: the logits are read once, nothing as large is written.

N rows   V vocabulary   C tokens of a block of it   B blocks
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
ARGMAX_BLOCK = 8192


@triton.jit  # type: ignore[untyped-decorator]
def _argmax(logits, ids, logits_row, V, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program per row, whose every lane keeps the first of its largest."""
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], -float("inf"), tl.float32)
    place = lane
    for start in range(0, V, BLOCK):
        token = start + lane
        logit = tl.load(logits + row * logits_row + token, mask=token < V, other=-float("inf")).to(tl.float32)
        logit = tl.where(logit == logit, logit, float("inf"))
        place = tl.where(logit > largest, token, place)
        largest = tl.maximum(logit, largest)
    first = tl.min(tl.where(largest == tl.max(largest, 0), place, V - 1), 0)
    tl.store(ids + row, first.to(tl.int64))


def argmax(logits_NV: Tensor) -> Tensor:
    """The first of the largest logits of each row, [N] int64: of 64 rows in 9 us, where PyTorch takes 28 on an H100.

    What is NaN counts as infinite. Not for float64.
    """
    N, V = logits_NV.shape
    assert logits_NV.stride(1) == 1
    assert logits_NV.dtype != torch.float64
    ids_N = torch.empty(N, dtype=torch.int64, device=logits_NV.device)
    launch: Any = _argmax[(N,)]
    launch(logits_NV, ids_N, logits_NV.stride(0), V, BLOCK=min(ARGMAX_BLOCK, triton.next_power_of_2(V)), num_warps=8)
    return ids_N


@triton.jit  # type: ignore[untyped-decorator]
def _block_sums(logits, largest, temperature, sums, logits_row, B, V, C: tl.constexpr):  # type: ignore[no-untyped-def]
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = block * C + tl.arange(0, C)
    logit = tl.load(logits + row * logits_row + token, mask=token < V, other=-float("inf")).to(tl.float32)
    below = logit - tl.load(largest + row).to(tl.float32)
    weight = tl.exp(below / tl.load(temperature + row))
    tl.store(sums + row * B + block, tl.sum(weight.to(tl.float64), 0))


def block_sums(logits_NV: Tensor, largest_N1: Tensor, temperature_N: Tensor) -> Tensor:
    """Sums of exp((logit - largest) / temperature) over each block of `BLOCK` tokens, float64 [N, B]."""
    N, V = logits_NV.shape
    B = triton.cdiv(V, BLOCK)
    assert logits_NV.stride(1) == largest_N1.stride(0) == temperature_N.stride(0) == 1
    sums_NB = torch.empty(N, B, dtype=torch.float64, device=logits_NV.device)
    launch: Any = _block_sums[(N, B)]
    launch(logits_NV, largest_N1, temperature_N, sums_NB, logits_NV.stride(0), B, V, C=BLOCK, num_warps=4)
    return sums_NB


def draw(logits_NV: Tensor, largest_N1: Tensor, temperature_N: Tensor, uniforms_N: Tensor) -> Tensor:
    """What `leanthink.engine.sampling.draw` draws, up to rounding: first the block of the vocabulary, then the token.

    Args:
        logits_NV: in any dtype.
        largest_N1: the largest of each row.
        temperature_N: float32, above 0.
        uniforms_N: in [0, 1), float64.

    Returns:
        Token ids, [N]; of a row with a logit that is NaN, some token.
    """
    V = logits_NV.shape[1]
    ends_NB = block_sums(logits_NV, largest_N1, temperature_N).cumsum(dim=1)
    target_N1 = uniforms_N[:, None] * ends_NB[:, -1:]  # below the total, as a uniform is at most 1 - 2**-53
    block_N1 = torch.searchsorted(ends_NB, target_N1, right=True).clamp(max=ends_NB.shape[1] - 1)
    ids_NC = block_N1 * BLOCK + torch.arange(BLOCK, device=logits_NV.device)
    logits_NC = logits_NV.gather(1, ids_NC.clamp(max=V - 1)).float().masked_fill(ids_NC >= V, -torch.inf)
    weights_NC = ((logits_NC - largest_N1.float()) / temperature_N[:, None]).exp()
    inside_NC = weights_NC.double().cumsum(dim=1)
    rest_N1 = target_N1 - F.pad(ends_NB, (1, 0)).gather(1, block_N1)
    # The block's sum in another order differs in its last bits: a rest above all of it would be nobody's.
    rest_N1 = torch.minimum(rest_N1, inside_NC[:, -1:] * (1 - 2.0**-53))
    place_N1 = torch.searchsorted(inside_NC, rest_N1, right=True).clamp(max=BLOCK - 1)
    return (block_N1 * BLOCK + place_N1)[:, 0].clamp(max=V - 1)
