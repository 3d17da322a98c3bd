"""Moves the kept slots of some requests together in vLLM's blocks, in all layers by one kernel.

L layers   B blocks   H kv heads   P slots of a block   E numbers that a slot and head hold, keys and values
g requests   X index sets: 1, L, or L H, layer by layer   K kept slots
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BLOCK_BYTES = 16384  # moved per step
OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32}  # what moves are bits


class Caches:
    """The caches of all layers, each [B, H, P, E] with E next to each other, of one form and on one device.

    Args:
        caches: in the order of layers.
    """

    def __init__(self, caches: Sequence[Tensor]) -> None:
        first = caches[0]
        assert all(cache.shape == first.shape and cache.stride() == first.stride() for cache in caches)
        assert first.dim() == 4, first.shape
        assert first.stride(-1) == 1, first.stride()
        self.caches = [cache.view(OF_SIZE[cache.element_size()]) for cache in caches]
        size = first.element_size()
        apart = [(cache.data_ptr() - first.data_ptr()) // size for cache in caches]
        self._aligned = all(number % 16 == 0 for number in apart)
        self._apart_L = torch.tensor(apart, dtype=torch.int64, device=first.device)
        self.heads, self.block_size, self.numbers = first.shape[1:]

    def move(self, table_gB: Tensor, first_g: Tensor, kept_gXK: Tensor, num_kept_g: Tensor) -> None:
        """Move slot first_g[i] + kept_gXK[i, x, k] of request i to first_g[i] + k, in place, for k below num_kept_g[i].

        Args:
            table_gB: the request's blocks, in its order.
            first_g: its first thought slot.
            kept_gXK: int64, ascending and distinct; one set for all, one for each layer, or one for each kv head here.
            num_kept_g: int64, how many of the K count; 0 for a request of which nothing moves.
        """
        if self.caches[0].is_cuda:
            self.move_at_once(table_gB, first_g, kept_gXK, num_kept_g)
        else:
            self.move_plainly(table_gB, first_g, kept_gXK, num_kept_g)

    def move_plainly(self, table_gB: Tensor, first_g: Tensor, kept_gXK: Tensor, num_kept_g: Tensor) -> None:
        """The same, one request, layer and head after the other."""
        sets, size = kept_gXK.shape[1], self.block_size
        for table, first, kept_XK, count in zip(table_gB, first_g, kept_gXK, num_kept_g.tolist(), strict=True):
            to_K = first + torch.arange(count, device=first.device)
            for layer, cache in enumerate(self.caches):
                for head in range(self.heads):
                    chosen = 0 if sets == 1 else layer if sets == len(self.caches) else layer * self.heads + head
                    from_K = first + kept_XK[chosen, :count]
                    held = cache[table[from_K // size].long(), head, from_K % size]
                    cache[table[to_K // size].long(), head, to_K % size] = held

    def move_at_once(self, table_gB: Tensor, first_g: Tensor, kept_gXK: Tensor, num_kept_g: Tensor) -> None:
        """The same in one kernel."""
        import triton

        from leanthink.engine.kernels.paged import move_slots

        requests, sets, num_kept = kept_gXK.shape
        kept_gXK = kept_gXK.contiguous()
        per_head, per_layer = sets == len(self.caches) * self.heads, sets == len(self.caches)
        of_layer = num_kept * (self.heads if per_head else 1 if per_layer else 0) if sets > 1 else 0
        of_head = num_kept if sets > 1 and per_head else 0
        width = triton.next_power_of_2(self.numbers)
        launch: Any = move_slots[(requests, len(self.caches), self.heads)]
        launch(
            self.caches[0], self._apart_L, table_gB, first_g, kept_gXK, num_kept_g,
            *self.caches[0].stride()[:3], table_gB.stride(0), kept_gXK.stride(0), of_layer, of_head,
            E=self.numbers, EP=width, P=self.block_size, ALIGNED=self._aligned,
            BLOCK=max(1, BLOCK_BYTES // (width * self.caches[0].element_size())),
            num_stages=1,  # loads and stores stay in the order written
        )  # fmt: skip
