"""Rounding to e4m3 by its definition, and what a cache holds then, in numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from leanthink.engine.quantized_kv import KVQuantization


def e4m3_slow(x: Tensor) -> Tensor:
    """Three bits behind the leading one, ties to even; steps of 2^-9 below 2^-6, and nothing above 448."""
    exponent = torch.frexp(x).exponent.clamp(min=-5) - 1
    step = torch.ldexp(torch.ones_like(x), exponent - 3)
    return ((x / step).round() * step).clamp(-448, 448)


def rounded_slow(quantization: KVQuantization, layer: int, kv_PNHD: Tensor) -> Tensor:
    """Keys and values of a layer, rounded and with their offsets again."""
    offsets_P1HD = quantization.offsets_LPHD[layer, :, None].to(kv_PNHD.dtype)
    scales_P1H1 = quantization.scales_LPH[layer, :, None, :, None].to(kv_PNHD.dtype)
    return e4m3_slow((kv_PNHD - offsets_P1HD) / scales_P1H1) * scales_P1H1 + offsets_P1HD
