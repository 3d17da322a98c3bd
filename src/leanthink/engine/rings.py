"""Rings of the latest tokens of each row: what belongs to position p lies at p modulo the size of the ring."""

from __future__ import annotations

import torch
from torch import Tensor


def larger_ring(ring: Tensor, size: int, dim: int, next_positions: Tensor) -> Tensor:
    """A ring of `size` places along `dim`, in which the latest positions of each row lie where they now belong."""
    old = ring.shape[dim]
    larger = ring.new_zeros(*ring.shape[:dim], size, *ring.shape[dim + 1 :])
    rows = torch.arange(len(ring), device=ring.device)
    before, after = ring.movedim(dim, 1), larger.movedim(dim, 1)
    for age in range(1, old + 1):
        position_N = (next_positions - age).clamp(min=0)
        after[rows, position_N % size] = before[rows, position_N % old]
    return larger
