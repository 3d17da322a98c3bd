"""DecodeBatch attention on a GPU: one query token per row over exactly the slots that its row holds.

N rows   H kv heads   G query heads per kv head   D head dim   T slots of the cache   S splits
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from leanthink.engine.kernels.fp8 import query_and_scale
from leanthink.engine.quantized_kv import OfLayer

MIN_DOT = 16  # the smallest side of a tensor-core product: G is padded to it
BLOCK_BYTES = 8192  # of keys per step
STAGES, WARPS = 3, 2  # steps whose loads are in flight, and warps of a program
PROGRAMS_PER_SM, FP8_PROGRAMS_PER_SM = 4, 16  # rows of unequal length want some to share them
MIN_SPLIT = 128  # slots: a shorter split costs more to merge than it saves
MAX_SPLITS = 64


def splits_for(rows_times_heads: int, slots: int, sms: int, *, fp8: bool = False) -> int:
    """Into how many splits to cut rows of up to `slots` slots, for so many programs per SM."""
    programs = (FP8_PROGRAMS_PER_SM if fp8 else PROGRAMS_PER_SM) * sms
    return max(1, min(programs // rows_times_heads, slots // MIN_SPLIT, MAX_SPLITS))


@triton.jit  # type: ignore[untyped-decorator]
def _slots_per_split(last, row, splits, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """(Slots that the row holds, slots of each of its splits): whole blocks, so that only the last one is ragged."""
    held = (tl.load(last + row) + 1).to(tl.int32)
    return held, tl.cdiv(tl.cdiv(held, BLOCK), splits) * BLOCK


@triton.jit  # type: ignore[untyped-decorator]
def _every_fourth(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Columns 0, 4, 8, ...; those from 1; from 2; and from 3.

    In a product a thread takes single columns. Those side by side are in four products, so that it loads and converts
    four numbers of FP8 at a time.
    """
    even, odd = tl.split(tl.reshape(x, (ROWS, COLUMNS // 2, 2)))
    x0, x2 = tl.split(tl.reshape(even, (ROWS, COLUMNS // 4, 2)))
    x1, x3 = tl.split(tl.reshape(odd, (ROWS, COLUMNS // 4, 2)))
    return x0, x1, x2, x3


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    q, k, v, starts, last, sinks, out, highests, totals, scales, scale, splits,
    q_row, q_head, q_group, k_head, k_slot, v_head, v_slot,
    DIRECT: tl.constexpr, G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    FP8: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """One program per row, kv head and split: softmax accumulated block by block (online softmax, arXiv 1805.02867).

    DIRECT (one split): `out` is the output. Else it takes sums that are still to be merged and divided, and
    `highests` and `totals` take what that needs; a split without slots writes nothing. With SINKS the first split
    begins with the sink of each query head: a logit without a value.
    """
    row, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    held, per_split = _slots_per_split(last, row, splits, BLOCK)
    begin = split * per_split
    end = tl.minimum(begin + per_split, held)
    if begin >= end:
        return
    g, d, t = tl.arange(0, GP), tl.arange(0, DP), tl.arange(0, BLOCK)
    real = (g[:, None] < G) & (d[None, :] < D)
    query = tl.load(q + row * q_row + head * q_head + g[:, None] * q_group + d[None, :], mask=real, other=0.0)
    first = tl.load(starts + row)
    if FP8:
        query, scale = query_and_scale(query, scale * tl.load(scales + head))
    highest = tl.full([GP], -float("inf"), tl.float32)
    total = tl.zeros([GP], tl.float32)
    weighted = tl.zeros([GP, DP // 4 if FP8 else DP], tl.float32)
    weighted1, weighted2, weighted3 = weighted, weighted, weighted  # with FP8, and `weighted` is of columns 0, 4, ...
    if SINKS:  # noqa: SIM102 (decided when it is compiled, the other when it runs)
        if split == 0:
            highest = tl.load(sinks + head * G + g, mask=g < G, other=0.0).to(tl.float32)
            total += 1.0
    for block in range(begin, end, BLOCK):
        left = end - block
        inside = (t[:, None] < left) & (d[None, :] < D)
        slot = first + block  # 64-bit, as its products must be: a cache may have more than 2^31 numbers
        k_block, v_block = k + head * k_head + slot * k_slot, v + head * v_head + slot * v_slot
        keys = tl.load(k_block + t[:, None] * k_slot + d[None, :], mask=inside, other=0.0).to(query.dtype)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(t[None, :] < left, scores, -float("inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - new_highest[:, None])
        shrink = tl.exp(highest - new_highest)
        values = tl.load(v_block + t[:, None] * v_slot + d[None, :], mask=inside, other=0.0).to(query.dtype)
        weights_of, shrink_of = weights.to(values.dtype), shrink[:, None]
        if FP8:
            values, values1, values2, values3 = _every_fourth(values, BLOCK, DP)
            weighted1 = weighted1 * shrink_of + tl.dot(weights_of, values1, input_precision="ieee")
            weighted2 = weighted2 * shrink_of + tl.dot(weights_of, values2, input_precision="ieee")
            weighted3 = weighted3 * shrink_of + tl.dot(weights_of, values3, input_precision="ieee")
        weighted = weighted * shrink_of + tl.dot(weights_of, values, input_precision="ieee")
        total = total * shrink + tl.sum(weights, 1)
        highest = new_highest
    if FP8:
        weighted = tl.interleave(tl.interleave(weighted, weighted2), tl.interleave(weighted1, weighted3))
        weighted *= tl.load(scales + tl.num_programs(1) + head)
    at = ((row * tl.num_programs(1) + head) * splits + split) * G + g
    if DIRECT:
        weighted = weighted / total[:, None]
    else:
        tl.store(highests + at, highest, mask=g < G)
        tl.store(totals + at, total, mask=g < G)
    tl.store(out + at[:, None] * D + d[None, :], weighted.to(out.dtype.element_ty), mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def _merge(  # type: ignore[no-untyped-def]
    sums, highests, totals, last, out, splits,
    G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, SP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row, kv head and query head: the splits that had slots, weighted by their share."""
    row, head, group = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    held, per_split = _slots_per_split(last, row, splits, BLOCK)
    s, d = tl.arange(0, SP), tl.arange(0, DP)
    written = s < tl.cdiv(held, per_split)
    row_head = row * tl.num_programs(1) + head
    at = (row_head * splits + s) * G + group
    highest = tl.load(highests + at, mask=written, other=-float("inf"))
    share = tl.exp(highest - tl.max(highest, 0))
    total = tl.sum(share * tl.load(totals + at, mask=written, other=0.0), 0)
    split_sums = tl.load(sums + at[:, None] * D + d[None, :], mask=written[:, None] & (d[None, :] < D), other=0.0)
    merged = tl.sum(share[:, None] * split_sums, 0) / total
    tl.store(out + (row_head * G + group) * D + d, merged.to(out.dtype.element_ty), mask=d < D)


def decode_attention(
    q_NHGD: Tensor,
    keys_HTD: Tensor,
    values_HTD: Tensor,
    starts_N: Tensor,
    last_N: Tensor,
    scaling: float,
    *,
    splits: int,
    fp8: OfLayer | None = None,
    sinks_HG: Tensor | None = None,
) -> Tensor:
    """Attention of row n over slots starts_N[n], ..., starts_N[n] + last_N[n] of the cache, [N, H, G, D].

    Reads held slots only, each once for the whole group of query heads. Nothing waits for the device and all shapes
    are those of the arguments, so a CUDA graph may capture it, and replay it with other starts and lengths.

    Args:
        q_NHGD: one query per row and query head.
        keys_HTD: one layer's keys, of all rows.
        values_HTD: and its values.
        starts_N: int64, each row's first slot.
        last_N: int64, its last slot, counted from the first: 0 or more.
        scaling: factor on the dot products.
        splits: how many programs share a row (`splits_for`); the result depends on it by rounding only.
        fp8: what keys and values in FP8 are held by.
        sinks_HG: a logit of each query head that takes part in its softmax and has no value; None: there are none.
            Not beside FP8, whose products are shifted.
    """
    N, H, G, D = q_NHGD.shape
    assert keys_HTD.dtype == values_HTD.dtype == (q_NHGD.dtype if fp8 is None else torch.float8_e4m3fn)
    assert q_NHGD.stride(-1) == keys_HTD.stride(-1) == values_HTD.stride(-1) == 1
    assert starts_N.is_contiguous()
    assert last_N.is_contiguous()
    assert sinks_HG is None or (sinks_HG.is_contiguous() and fp8 is None)
    out_NHGD = torch.empty((N, H, G, D), dtype=q_NHGD.dtype, device=q_NHGD.device)
    sums_NHSGD, highests_NHSG, totals_NHSG = out_NHGD, out_NHGD, out_NHGD
    if splits > 1:
        sums_NHSGD = torch.empty((N, H, splits, G, D), dtype=torch.float32, device=q_NHGD.device)
        highests_NHSG, totals_NHSG = (torch.empty_like(sums_NHSGD[..., 0]) for _ in range(2))
    DP = max(MIN_DOT, triton.next_power_of_2(D))
    block = max(MIN_DOT, min(64, BLOCK_BYTES // (DP * keys_HTD.element_size())))
    attend: Any = _attend[(N, H, splits)]
    attend(
        q_NHGD, keys_HTD, values_HTD, starts_N, last_N, q_NHGD if sinks_HG is None else sinks_HG,
        sums_NHSGD, highests_NHSG, totals_NHSG, q_NHGD if fp8 is None else fp8.scales_PH, scaling, splits,
        *q_NHGD.stride()[:3], *keys_HTD.stride()[:2], *values_HTD.stride()[:2],
        DIRECT=splits == 1, G=G, GP=max(MIN_DOT, triton.next_power_of_2(G)), D=D, DP=DP, BLOCK=block,
        FP8=fp8 is not None, SINKS=sinks_HG is not None, num_stages=STAGES, num_warps=WARPS,
    )  # fmt: skip
    if splits > 1:
        merge: Any = _merge[(N, H, G)]
        merge(
            sums_NHSGD, highests_NHSG, totals_NHSG, last_N, out_NHGD, splits,
            G=G, D=D, DP=DP, SP=triton.next_power_of_2(splits), BLOCK=block,
        )  # fmt: skip
    return out_NHGD
