"""The shape of what a model writes into its KV cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from leanthink.policies.policy import Granularity


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

    def num_sets(self, granularity: Granularity) -> int:
        """Index sets of a granularity: one for the model, one a layer, or one a kv head, layer by layer."""
        return {"model": 1, "layer": self.layers, "head": self.layers * self.kv_heads}[granularity]
