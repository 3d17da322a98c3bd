"""Keys and values of one layer where they lie, whether in slots or in windows: how they are written and read.

P keys, values   H kv heads   T slots of the cache, or places of rings   D head dim   N rows, or tokens of prompts
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from leanthink.engine.forward_batch import Batch, PrefillBatch
from leanthink.engine.quantized_kv import E4M3, KVQuantization, OfLayer


class LayerKV(NamedTuple):
    """All of one layer; `kv_PHTD` are bytes where `fp8` says what they stand for.

    Made once, as views of a tensor cost a step of one row more than some of its products: see `layers_of`.
    """

    kv_PHTD: Tensor
    keys_HTD: Tensor  # as they are held
    values_HTD: Tensor
    fp8: OfLayer | None

    def attended(self, part_PHxD: Tensor, dtype: torch.dtype) -> Tensor:
        """What attention reads of a part of `kv_PHTD`, or of its keys alone."""
        return part_PHxD if self.fp8 is None else self.fp8.shifted(part_PHxD, dtype)

    def append(self, batch: Batch, keys_NHD: Tensor, values_NHD: Tensor) -> None:
        """Write each token of the forward: one of every row, those of chunks, or both."""
        if keys_NHD.is_cuda:
            from leanthink.engine.kernels.append import append

            append(self.keys_HTD, self.values_HTD, batch.write_N, keys_NHD, values_NHD, self.fp8)
            return
        keys_HTD, values_HTD = self.keys_HTD, self.values_HTD
        if self.fp8 is not None:
            keys_HTD, values_HTD = self.kv_PHTD.unbind()
            keys_NHD, values_NHD = self.fp8.stored(torch.stack([keys_NHD, values_NHD]))
        for slots, fed in batch.spans if isinstance(batch, PrefillBatch) else [(batch.write_N, slice(None))]:
            keys_HTD[:, slots] = keys_NHD[fed].transpose(0, 1)
            values_HTD[:, slots] = values_NHD[fed].transpose(0, 1)


def layers_of(kv_LPHTD: Tensor, quantization: KVQuantization | None = None) -> list[LayerKV]:
    """Each layer of a cache, in FP8 if it is told what its bytes stand for."""
    held_LPHTD = kv_LPHTD if quantization is None else kv_LPHTD.view(E4M3)
    layers = []
    for layer in range(len(kv_LPHTD)):
        fp8 = None if quantization is None else quantization.layer(layer)
        layers.append(LayerKV(kv_LPHTD[layer], held_LPHTD[layer, 0], held_LPHTD[layer, 1], fp8))
    return layers
