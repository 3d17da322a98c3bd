"""Keys and values in FP8 (e4m3: 4 bits of exponent, 3 of mantissa): how they are written, and what they stand for.

A number is held as (number - offset) / scale. Attention needs no offsets back: with all keys of a head shifted by one
vector a query's products change by a constant, and its softmax not at all (SageAttention, arXiv 2410.02367, smooths
keys like that). Without them a channel that is large in all keys, as those of Qwen2.5 are by their biases, would bring
errors larger than what all others say.

L layers   P keys, values   H kv heads   D head dim   N rows, or tokens of prompts
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from leanthink.utils.errors import UsageError, unknown

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # of its numbers; a cast of more may give nan
KV_CACHE_DTYPES = ("auto", "fp8", "fp8_e4m3")  # as vLLM names them; the last two are one


def check_kv_cache_dtype(name: str) -> None:
    """Raise UsageError for a name that is none of these."""
    if name not in KV_CACHE_DTYPES:
        raise unknown("kv_cache_dtype", name, KV_CACHE_DTYPES)


def kv_dtype(kv_cache_dtype: str, dtype: torch.dtype) -> torch.dtype:
    """Of keys and values in the cache of a model of this dtype. Raises UsageError for an unknown name."""
    check_kv_cache_dtype(kv_cache_dtype)
    return dtype if kv_cache_dtype == "auto" else E4M3


class OfLayer(NamedTuple):
    """What one layer's keys and values are held by: offsets [P, H, D] and scales [P, H], both float32."""

    offsets_PHD: Tensor
    scales_PH: Tensor

    def stored(self, kv_PNHD: Tensor) -> Tensor:
        """The bytes that stand for keys and values, uint8 [P, N, H, D]."""
        scaled = (kv_PNHD - self.offsets_PHD[:, None]) / self.scales_PH[:, None, :, None]
        return scaled.clamp(-LARGEST, LARGEST).to(E4M3).view(torch.uint8)

    def shifted(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        """What attention reads of bytes of keys and values [P, H, ..., D], or of keys alone: without the offsets."""
        scales = self.scales_PH[: len(stored)].view(*stored.shape[:2], *[1] * (stored.dim() - 2))
        return (stored.view(E4M3).to(dtype) * scales).to(dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class KVQuantization:
    """What the keys and values of a model are held by in FP8.

    Attributes:
        offsets_LPHD: float32, subtracted before rounding; 0 for values.
        scales_LPH: float32, powers of two: a product with one of them rounds nothing.
    """

    offsets_LPHD: Tensor
    scales_LPH: Tensor

    def __post_init__(self) -> None:
        assert self.offsets_LPHD.dtype == self.scales_LPH.dtype == torch.float32
        assert self.offsets_LPHD.shape[:3] == self.scales_LPH.shape
        assert self.scales_LPH.is_contiguous()
        assert self.offsets_LPHD.is_contiguous()
        assert not self.offsets_LPHD[:, 1].any()
        assert bool((self.scales_LPH.frexp().mantissa == 0.5).all()), "powers of two"

    @classmethod
    def of(cls, kv_LPHSD: Tensor) -> KVQuantization:
        """By keys and values that the model wrote: keys' means as offsets; twice the largest number is held too."""
        kv_LPHSD = kv_LPHSD.float()
        if not kv_LPHSD.isfinite().all():
            raise UsageError("kv_cache_dtype='fp8': the model writes keys or values that are not finite: give 'auto'")
        offsets_LPHD = kv_LPHSD.mean(dim=3)
        offsets_LPHD[:, 1] = 0
        largest_LPH = (kv_LPHSD - offsets_LPHD[:, :, :, None]).abs().amax(dim=(3, 4))
        mantissa_LPH, exponent_LPH = (2 * largest_LPH / LARGEST).clamp(min=2.0**-60).frexp()
        exponent_LPH -= (mantissa_LPH == 0.5).int()  # the next power of two, unless it is one
        return cls(offsets_LPHD=offsets_LPHD, scales_LPH=torch.ones_like(largest_LPH).ldexp(exponent_LPH))

    def layer(self, layer: int) -> OfLayer:
        """Of one layer."""
        return OfLayer(self.offsets_LPHD[layer], self.scales_LPH[layer])

    def numbers(self, stored_RLHSD: Tensor, layers: range, part: int, dtype: torch.dtype) -> Tensor:
        """Keys (part 0) or values (1) of some layers, [R, L, H, S, D], out of their bytes: with the offsets again."""
        some = slice(layers.start, layers.stop)
        scales_LH11 = self.scales_LPH[some, part, :, None, None]
        return (stored_RLHSD.view(E4M3).to(dtype) * scales_LH11 + self.offsets_LPHD[some, part, :, None]).to(dtype)
