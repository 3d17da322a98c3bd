"""The shape of what a model writes into its KV cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class KVShape:
    """What a model writes per token: `layers` x `kv_heads` keys and values of `head_dim` numbers."""

    layers: int
    kv_heads: int
    group: int  # query heads per kv head
    head_dim: int

    def bytes_per_slot(self, dtype: torch.dtype) -> int:
        """Bytes of the keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * dtype.itemsize
