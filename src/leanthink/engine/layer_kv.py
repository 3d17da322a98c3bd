"""Keys and values of one layer where they lie, whether in slots or in windows: how they are written and read.

P keys, values   H kv heads   T slots of the cache, or places of rings   D head dim   N rows, or tokens of prompts
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from leanthink.engine.forward_batch import DecodeBatch, PrefillBatch
from leanthink.engine.quantized_kv import E4M3, OfLayer


class LayerKV(NamedTuple):
    """All of one layer; `kv_PHTD` are bytes where `fp8` says what they stand for."""

    kv_PHTD: Tensor
    fp8: OfLayer | None = None

    @property
    def keys_HTD(self) -> Tensor:
        """Keys as they are held."""
        return self.kv_PHTD[0] if self.fp8 is None else self.kv_PHTD[0].view(E4M3)

    @property
    def values_HTD(self) -> Tensor:
        """Values as they are held."""
        return self.kv_PHTD[1] if self.fp8 is None else self.kv_PHTD[1].view(E4M3)

    def attended(self, part_PHxD: Tensor, dtype: torch.dtype) -> Tensor:
        """What attention reads of a part of `kv_PHTD`, or of its keys alone."""
        return part_PHxD if self.fp8 is None else self.fp8.shifted(part_PHxD, dtype)

    def append(self, batch: DecodeBatch | PrefillBatch, keys_NHD: Tensor, values_NHD: Tensor) -> None:
        """Write one token of every row, or each token of the chunks."""
        if keys_NHD.is_cuda:
            from leanthink.engine.kernels.append import append

            append(self.keys_HTD, self.values_HTD, batch.write_N, keys_NHD, values_NHD, self.fp8)
            return
        if self.fp8 is not None:
            keys_NHD, values_NHD = self.fp8.stored(torch.stack([keys_NHD, values_NHD]))
        for slots, fed in batch.spans if isinstance(batch, PrefillBatch) else [(batch.write_N, slice(None))]:
            self.kv_PHTD[0][:, slots] = keys_NHD[fed].transpose(0, 1)
            self.kv_PHTD[1][:, slots] = values_NHD[fed].transpose(0, 1)
