"""Reads the weights of quantised checkpoints, as far as `bench/quantised_checkpoint.py` writes them.

O outputs   I inputs   G groups of inputs   P packed: eight numbers in one
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def parts_of(name: str, checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a checkpoint holds of the weight of this name, by the last part of each name."""
    stem = name.removesuffix("weight")
    return {found.removeprefix(stem): checkpoint[found] for found in checkpoint if found.startswith(stem)}


def dequantised(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A weight as it is meant, and the most that rounding may have changed of it, both [O, I] float32."""
    if "qweight" in parts:
        shifts_P = torch.arange(8, dtype=torch.int32) * 4
        digits_IO = (parts["qweight"][:, None, :] >> shifts_P[None, :, None] & 15).flatten(0, 1)
        zeros_GO = (parts["qzeros"][:, :, None] >> shifts_P & 15).flatten(1) + 1
        scale_IO = parts["scales"].float()[parts["g_idx"]]
        weight_IO = (digits_IO - zeros_GO[parts["g_idx"]]) * scale_IO
        return weight_IO.t(), (scale_IO / 2 + weight_IO.abs() / 256).t()  # scales are bfloat16
    weight_OI, scale = parts["weight"], parts["weight_scale"].expand(len(parts["weight"]), -1)
    meant_OI = weight_OI.float() * scale
    most_OI = scale / 2 if weight_OI.dtype == torch.int8 else meant_OI.abs() / 15 + scale * 2**-10
    return meant_OI, most_OI.expand_as(meant_OI)


@torch.no_grad()
def take_rounded(weights: Iterable[tuple[str, Tensor]], checkpoint: Mapping[str, Tensor]) -> None:
    """Give a model's own weights the values that they have in a quantised checkpoint."""
    for name, weight in weights:
        if name not in checkpoint or name.removesuffix("weight") + "weight_scale" in checkpoint:
            weight.copy_(dequantised(parts_of(name, checkpoint))[0])
