"""The slow twins of the kernels that work on the arena: one slot, row and head at a time.

N rows   R chosen rows   L layers   P = 2: keys, values   H kv heads   G query heads per kv head   D head dim
T slots of the arena   K kept slots
"""

from __future__ import annotations

import torch
from torch import Tensor


def decode_attention_slow(
    q_NHGD: Tensor, keys_HTD: Tensor, values_HTD: Tensor, starts_N: Tensor, last_N: Tensor, scaling: float
) -> Tensor:
    """Softmax over the slots that each row holds, in float64."""
    out_NHGD = torch.zeros_like(q_NHGD, dtype=torch.float64)
    for row, (start, last) in enumerate(zip(starts_N.tolist(), last_N.tolist(), strict=True)):
        for head in range(len(keys_HTD)):
            held = slice(start, start + last + 1)
            keys, values = keys_HTD[head, held].double(), values_HTD[head, held].double()
            for group in range(q_NHGD.shape[2]):
                weights = (keys @ q_NHGD[row, head, group].double() * scaling).softmax(0)
                out_NHGD[row, head, group] = weights @ values
    return out_NHGD


def append_slow(keys_HTD: Tensor, values_HTD: Tensor, write_N: Tensor, key_NHD: Tensor, value_NHD: Tensor) -> None:
    """One assignment per row and head."""
    for row, slot in enumerate(write_N.tolist()):
        for head in range(len(keys_HTD)):
            keys_HTD[head, slot] = key_NHD[row, head]
            values_HTD[head, slot] = value_NHD[row, head]


def compact_slow(kv_LPHTD: Tensor, first_R: Tensor, kept: Tensor) -> None:
    """A copy of each row's slots in the new order, layer by layer and head by head, then written behind `first`."""
    L, P, H, _, _ = kv_LPHTD.shape
    for row, first in enumerate(first_R.tolist()):
        for layer in range(L):
            for head in range(H):
                chosen = kept[row] if kept.dim() == 2 else kept[row, layer, head]
                for part in range(P):
                    moved = kv_LPHTD[layer, part, head, first + chosen]
                    kv_LPHTD[layer, part, head, first : first + len(chosen)] = moved
