"""Attention of prompts on a GPU: all chunks of a step in one launch, each over its own slots up to themselves.

Online softmax, block by block, in powers of two (FlashAttention-2, arXiv 2307.08691). The query heads of a kv head lie
side by side in a block: row r of a chunk is query head r % G of its token r // G, so that keys are read once for all.

S tokens of all chunks together   A query heads (H * G)   H kv heads   G query heads per kv head   D head dim
T slots of the cache
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from leanthink.engine.forward_batch import PrefillBatch
from leanthink.engine.kernels.fp8 import query_and_scale
from leanthink.engine.kernels.prefill_blocks import block_shape
from leanthink.engine.quantized_kv import OfLayer

LOG2_E = 1.4426950408889634


@triton.jit  # type: ignore[untyped-decorator]
def _over(  # type: ignore[no-untyped-def]
    query, k, v, weighted, total, highest, position, begin, end, stop, scale, k_slot, v_slot,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The sums after the slots from `begin` to `end`, whole blocks; MASKED: of which a row sees those up to its own."""
    t, d = tl.arange(0, BLOCK), tl.arange(0, DP)
    for block in range(begin, end, BLOCK):
        at = tl.cast(block, tl.int64)
        k_block = k + at * k_slot + t[:, None] * k_slot + d[None, :]
        v_block = v + at * v_slot + t[:, None] * v_slot + d[None, :]
        if MASKED:
            held = (block + t[:, None] < stop) & (d[None, :] < D)  # what lies behind may be nan
            keys, values = tl.load(k_block, mask=held, other=0.0), tl.load(v_block, mask=held, other=0.0)
        elif D == DP:
            keys, values = tl.load(k_block), tl.load(v_block)
        else:
            keys = tl.load(k_block, mask=d[None, :] < D, other=0.0)
            values = tl.load(v_block, mask=d[None, :] < D, other=0.0)
        keys, values = keys.to(query.dtype), values.to(query.dtype)  # out of FP8
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee")
        if MASKED:
            seen = (block + t[None, :] <= position[:, None]) & (block + t[None, :] < stop)
            scores = tl.where(seen, scores, -float("inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - new_highest[:, None])
        shrink = tl.exp2(highest - new_highest)
        total = total * shrink + tl.sum(weights, 1)
        weighted = weighted * shrink[:, None]
        weighted = tl.dot(weights.to(values.dtype), values, weighted, input_precision="ieee")
        highest = new_highest
    return weighted, total, highest


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    q, k, v, chunks, blocks, out, scales, scale, q_token, q_head, out_token, out_head, k_head, k_slot, v_head, v_slot,
    G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """One program per block of rows and kv head."""
    pair = blocks + 2 * tl.program_id(0)
    head, chunk, first_row = tl.program_id(1).to(tl.int64), chunks + 4 * tl.load(pair), tl.load(pair + 1).to(tl.int32)
    first, start = tl.load(chunk), tl.load(chunk + 2)
    tokens, done = tl.load(chunk + 1).to(tl.int32), tl.load(chunk + 3).to(tl.int32)
    row, d = first_row + tl.arange(0, ROWS), tl.arange(0, DP)
    token, of_head = row // G, head * G + row % G
    real = (token[:, None] < tokens) & (d[None, :] < D)
    packed = first + token  # 64-bit, as its products must be, and those of slots
    query = tl.load(q + packed[:, None] * q_token + of_head[:, None] * q_head + d[None, :], mask=real, other=0.0)
    if FP8:
        query, scale = query_and_scale(query, scale * tl.load(scales + head))
    k += head * k_head + start * k_slot
    v += head * v_head + start * v_slot
    weighted = tl.zeros([ROWS, DP], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    highest = tl.full([ROWS], -float("inf"), tl.float32)
    position = done + token
    # Whole blocks that every row sees; as all see the next slot too, no row of the first masked block is without any.
    whole = (done + first_row // G) // BLOCK * BLOCK
    stop = done + tl.minimum((first_row + ROWS - 1) // G + 1, tokens)
    # The masked blocks first: in the other order ptxas has all products of tensor cores on Hopper wait for one another
    # (its warning C7515).
    weighted, total, highest = _over(
        query, k, v, weighted, total, highest, position, whole, stop, stop, scale, k_slot, v_slot, D, DP, BLOCK, True
    )
    weighted, total, highest = _over(
        query, k, v, weighted, total, highest, position, 0, whole, stop, scale, k_slot, v_slot, D, DP, BLOCK, False
    )
    if FP8:
        weighted *= tl.load(scales + tl.num_programs(1) + head)
    result = (weighted / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + packed[:, None] * out_token + of_head[:, None] * out_head + d[None, :], result, mask=real)


def prefill_attention(
    q_SAD: Tensor,
    keys_HTD: Tensor,
    values_HTD: Tensor,
    batch: PrefillBatch,
    scaling: float,
    fp8: OfLayer | None = None,
) -> Tensor:
    """Attention of each chunk's tokens over the slots of its own allocation up to themselves, [S, A, D].

    Nothing waits for the device.

    Args:
        q_SAD: the queries of all chunks, one after the other.
        keys_HTD: one layer's keys, those of these chunks written already.
        values_HTD: and its values.
        batch: the chunks, with tables for this kernel.
        scaling: factor on the dot products, above 0.
        fp8: what keys and values in FP8 are held by.
    """
    (S, A, D), H = q_SAD.shape, len(keys_HTD)
    assert keys_HTD.dtype == values_HTD.dtype == (q_SAD.dtype if fp8 is None else torch.float8_e4m3fn)
    assert q_SAD.stride(-1) == keys_HTD.stride(-1) == values_HTD.stride(-1) == 1
    assert batch.chunks_C4 is not None
    assert batch.blocks_B2 is not None
    assert scaling > 0
    out_SAD = torch.empty((S, A, D), dtype=q_SAD.dtype, device=q_SAD.device)
    shape = block_shape(D, q_SAD.dtype)
    launch: Any = _attend[(len(batch.blocks_B2), H)]
    launch(
        q_SAD, keys_HTD, values_HTD, batch.chunks_C4, batch.blocks_B2, out_SAD,
        q_SAD if fp8 is None else fp8.scales_PH, scaling * LOG2_E,
        *q_SAD.stride()[:2], *out_SAD.stride()[:2], *keys_HTD.stride()[:2], *values_HTD.stride()[:2],
        G=A // H, D=D, DP=max(16, triton.next_power_of_2(D)), ROWS=shape.rows, BLOCK=shape.slots,
        FP8=fp8 is not None, num_warps=shape.warps, num_stages=shape.stages,
    )  # fmt: skip
    return out_SAD
