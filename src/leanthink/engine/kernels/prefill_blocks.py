"""How much of the attention of prompts one program of `leanthink.engine.kernels.prefill` takes at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch


class BlockShape(NamedTuple):
    """Rows (tokens times query heads of a kv head) of a block, slots of a step, warps, and steps in flight."""

    rows: int
    slots: int
    warps: int
    stages: int


# By the largest head dim that each is for. Queries, and keys and values of all stages, lie in shared memory: at most
# 128 of the 227 KiB that a program has on an H100, 96 on GPUs that have 99 and keep queries in registers.
HALF = {64: BlockShape(128, 64, 8, 3), 128: BlockShape(128, 64, 8, 3), 256: BlockShape(64, 32, 8, 2)}
FLOAT = {64: BlockShape(32, 32, 4, 2), 128: BlockShape(32, 16, 8, 2), 256: BlockShape(32, 16, 8, 2)}
WIDER = BlockShape(16, 16, 4, 1)


def block_shape(head_dim: int, dtype: torch.dtype) -> BlockShape:
    """Fixed, not tuned on the spot: that would take longer than most prompts."""
    shapes = HALF if dtype.itemsize == 2 else FLOAT
    return next((shape for widest, shape in shapes.items() if head_dim <= widest), WIDER)
