"""Writes one token's keys and values of every row into the cache, in one launch.

N rows   H kv heads   D head dim   T slots of the cache
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from leanthink.engine.kernels.fp8 import as_e4m3
from leanthink.engine.quantized_kv import OfLayer


@triton.jit  # type: ignore[untyped-decorator]
def _append(  # type: ignore[no-untyped-def]
    keys, values, write, key, value, offsets, scales, keys_head, keys_slot, values_head, values_slot,
    key_row, key_head, value_row, value_head, D: tl.constexpr, DP: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """One program per row and kv head."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    slot = tl.load(write + row)
    d = tl.arange(0, DP)
    new_key = tl.load(key + row * key_row + head * key_head + d, mask=d < D)
    new_value = tl.load(value + row * value_row + head * value_head + d, mask=d < D)
    if FP8:
        of_value = tl.num_programs(1) + head
        new_key = as_e4m3(new_key, offsets + head * D + d, tl.load(scales + head), d < D)
        new_value = as_e4m3(new_value, offsets + of_value * D + d, tl.load(scales + of_value), d < D)
    tl.store(keys + head * keys_head + slot * keys_slot + d, new_key, mask=d < D)
    tl.store(values + head * values_head + slot * values_slot + d, new_value, mask=d < D)


def append(
    keys_HTD: Tensor,
    values_HTD: Tensor,
    write_N: Tensor,
    key_NHD: Tensor,
    value_NHD: Tensor,
    fp8: OfLayer | None = None,
) -> None:
    """Write row n's key and value into slot write_N[n] (int64) of the cache; a CUDA graph may capture it.

    Rows that share a slot leave any one of their values in it. A cache in FP8 is told by `fp8` what it holds them by.
    """
    N, H, D = key_NHD.shape
    assert keys_HTD.stride(-1) == values_HTD.stride(-1) == key_NHD.stride(-1) == value_NHD.stride(-1) == 1
    assert write_N.is_contiguous()
    offsets_PHD, scales_PH = fp8 or (key_NHD, key_NHD)
    launch: Any = _append[(N, H)]
    launch(
        keys_HTD, values_HTD, write_N, key_NHD, value_NHD, offsets_PHD, scales_PH, *keys_HTD.stride()[:2],
        *values_HTD.stride()[:2], *key_NHD.stride()[:2], *value_NHD.stride()[:2],
        D=D, DP=triton.next_power_of_2(D), FP8=fp8 is not None, num_warps=1,
    )  # fmt: skip
