"""Decode attention on a GPU: one query token per row over exactly the slots that its row holds.

N rows   H kv heads   G query heads per kv head   D head dim   T slots
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MIN_DOT = 16  # the smallest side of a tensor-core product: G is padded to it
BLOCK_BYTES = 16384  # of keys per step: larger blocks of wide float32 heads outgrow the shared memory


@triton.jit  # type: ignore[untyped-decorator]
def _decode(  # type: ignore[no-untyped-def]
    q, k, v, last, out, scale, q_row, q_head, q_group, k_row, k_head, k_slot, v_row, v_head, v_slot, out_row, out_head,
    G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row and kv head: softmax accumulated block by block (online softmax, arXiv 1805.02867)."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    g, d = tl.arange(0, GP), tl.arange(0, DP)
    held = tl.load(last + row) + 1
    query = tl.load(
        q + row * q_row + head * q_head + g[:, None] * q_group + d[None, :],
        mask=(g[:, None] < G) & (d[None, :] < D),
        other=0.0,
    )
    highest = tl.full([GP], -float("inf"), tl.float32)
    total = tl.zeros([GP], tl.float32)
    mean = tl.zeros([GP, DP], tl.float32)
    for start in range(0, held, BLOCK):
        t = start + tl.arange(0, BLOCK)
        inside = (t[:, None] < held) & (d[None, :] < D)
        keys = tl.load(k + row * k_row + head * k_head + t[:, None] * k_slot + d[None, :], mask=inside, other=0.0)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(t[None, :] < held, scores, -float("inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - new_highest[:, None])
        shrink = tl.exp(highest - new_highest)
        values = tl.load(v + row * v_row + head * v_head + t[:, None] * v_slot + d[None, :], mask=inside, other=0.0)
        mean = mean * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        total = total * shrink + tl.sum(weights, 1)
        highest = new_highest
    tl.store(
        out + row * out_row + head * out_head + g[:, None] * D + d[None, :],
        (mean / total[:, None]).to(out.dtype.element_ty),
        mask=(g[:, None] < G) & (d[None, :] < D),
    )


def decode_attention(q_NHGD: Tensor, keys_NHTD: Tensor, values_NHTD: Tensor, last_N: Tensor, scaling: float) -> Tensor:
    """Attention of row i over slots 0..last_N[i], [N, H, G, D]; a row's result does not depend on the other rows.

    Reads held slots only, each once for the whole group of query heads; no mask and no longest row are involved.
    """
    N, H, G, D = q_NHGD.shape
    assert q_NHGD.stride(-1) == keys_NHTD.stride(-1) == values_NHTD.stride(-1) == 1
    out_NHGD = torch.empty((N, H, G, D), dtype=q_NHGD.dtype, device=q_NHGD.device)
    launch: Any = _decode[(N, H)]
    DP = max(MIN_DOT, triton.next_power_of_2(D))
    block = max(MIN_DOT, min(64, BLOCK_BYTES // (DP * keys_NHTD.element_size())))
    launch(
        q_NHGD, keys_NHTD, values_NHTD, last_N, out_NHGD, scaling,
        *q_NHGD.stride()[:3], *keys_NHTD.stride()[:3], *values_NHTD.stride()[:3], *out_NHGD.stride()[:2],
        G=G, GP=max(MIN_DOT, triton.next_power_of_2(G)), D=D, DP=DP, BLOCK=block,
    )  # fmt: skip
    return out_NHGD
