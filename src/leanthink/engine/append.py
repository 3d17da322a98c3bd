"""Writes the keys and values of the tokens that a forward feeds where they belong."""

from __future__ import annotations

from torch import Tensor

from leanthink.engine.forward_batch import DecodeBatch, PrefillBatch


def append(
    keys_HTD: Tensor, values_HTD: Tensor, batch: DecodeBatch | PrefillBatch, keys_NHD: Tensor, values_NHD: Tensor
) -> None:
    """Write one token of every row, or each token of the chunks, to one layer's keys and values."""
    if keys_NHD.is_cuda:
        from leanthink.engine.kernels.append import append as append_on_gpu

        append_on_gpu(keys_HTD, values_HTD, batch.write_N, keys_NHD, values_NHD)
        return
    for slots, fed in batch.spans if isinstance(batch, PrefillBatch) else [(batch.write_N, slice(None))]:
        keys_HTD[:, slots] = keys_NHD[fed].transpose(0, 1)
        values_HTD[:, slots] = values_NHD[fed].transpose(0, 1)
