"""Writes one token's keys and values of every row into the cache, in one launch.

N rows   H kv heads   D head dim   T slots of the cache
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _append(  # type: ignore[no-untyped-def]
    keys, values, write, key, value, keys_head, keys_slot, values_head, values_slot,
    key_row, key_head, value_row, value_head, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """One program per row and kv head."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    slot = tl.load(write + row)
    d = tl.arange(0, DP)
    new_key = tl.load(key + row * key_row + head * key_head + d, mask=d < D)
    new_value = tl.load(value + row * value_row + head * value_head + d, mask=d < D)
    tl.store(keys + head * keys_head + slot * keys_slot + d, new_key, mask=d < D)
    tl.store(values + head * values_head + slot * values_slot + d, new_value, mask=d < D)


def append(keys_HTD: Tensor, values_HTD: Tensor, write_N: Tensor, key_NHD: Tensor, value_NHD: Tensor) -> None:
    """Write row n's key and value into slot write_N[n] (int64) of the cache; a CUDA graph may capture it.

    Rows that share a slot leave any one of their values in it.
    """
    N, H, D = key_NHD.shape
    assert keys_HTD.stride(-1) == values_HTD.stride(-1) == key_NHD.stride(-1) == value_NHD.stride(-1) == 1
    assert write_N.is_contiguous()
    launch: Any = _append[(N, H)]
    launch(
        keys_HTD, values_HTD, write_N, key_NHD, value_NHD, *keys_HTD.stride()[:2], *values_HTD.stride()[:2],
        *key_NHD.stride()[:2], *value_NHD.stride()[:2], D=D, DP=triton.next_power_of_2(D), num_warps=1,
    )  # fmt: skip
