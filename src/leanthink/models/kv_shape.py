"""The shape of what a model writes into its KV cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from leanthink.models.state_shape import StateShape
from leanthink.policies.policy import Granularity


@dataclass(frozen=True, kw_only=True)
class KVShape:
    """What a model writes into slots per token: `layers` x `kv_heads` keys and values of `head_dim` numbers.

    Its layers with a sliding window hold no slots, but what the latest tokens of each request wrote; linear and
    state-space layers hold a state of each request.

    Attributes:
        layers: those of full attention, whose keys and values lie in slots.
        kv_heads: of each.
        group: query heads per kv head.
        head_dim: numbers of a key or value.
        slot_layers: which of the model's layers they are, ascending; None: all that it has.
        sliding_layers: which of them have a sliding window, ascending.
        window: how many tokens these attend to, their own included.
        window_kv_heads: of each of these.
        window_head_dim: numbers of a key or value of theirs.
        states: of its linear and state-space layers; None: it has none.
    """

    layers: int
    kv_heads: int
    group: int
    head_dim: int
    slot_layers: tuple[int, ...] | None = None
    sliding_layers: tuple[int, ...] = ()
    window: int = 0
    window_kv_heads: int = 0
    window_head_dim: int = 0
    states: StateShape | None = None

    def __post_init__(self) -> None:
        assert self.slot_layers is None or len(self.slot_layers) == self.layers

    @property
    def only_slots(self) -> bool:
        """Whether all that the model keeps of a token lies in slots: no layer has a window or a state."""
        return self.slot_layers is None and self.states is None

    def in_slots(self, layer: int) -> int | None:
        """Which of `layers` this layer of the model is; None for one whose keys and values do not lie in slots."""
        if self.slot_layers is None:
            return layer
        return self.slot_layers.index(layer) if layer in self.slot_layers else None

    def bytes_per_slot(self, dtype: torch.dtype) -> int:
        """Bytes of the keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * dtype.itemsize

    def bytes_per_state(self, dtype: torch.dtype) -> int:
        """Bytes that a request takes beside its slots, whatever its length: a window of keys and values, and states."""
        of_token = 2 * len(self.sliding_layers) * self.window_kv_heads * self.window_head_dim
        windows = self.window * of_token * dtype.itemsize
        return windows + (0 if self.states is None else self.states.bytes_per_request(dtype))

    def num_sets(self, granularity: Granularity) -> int:
        """Index sets of a granularity: one for the model, one a layer, or one a kv head, layer by layer."""
        return {"model": 1, "layer": self.layers, "head": self.layers * self.kv_heads}[granularity]
