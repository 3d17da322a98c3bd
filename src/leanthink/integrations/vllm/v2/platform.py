"""What differs between the platforms on which model runner V2 runs: the order inside blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leanthink.integrations.vllm.v2.device_rows import Move
from leanthink.integrations.vllm.v2.moves import Caches


def shared_only(config: Any) -> bool:
    """Whether all layers and heads must keep the same tokens: heads are spread over ranks, or moved at once."""
    return bool(config.device_config.device_type != "cuda" or config.parallel_config.tensor_parallel_size > 1)


def mover(layers: Sequence[Any], block_size: int, dtype: torch.dtype) -> Move:
    """What moves slots in the caches of these attention layers."""
    from vllm.platforms import current_platform

    if current_platform.is_cuda():
        return Caches([layer.kv_cache for layer in layers]).move
    return _by_layout(layers, block_size, dtype)


def _by_layout(layers: Sequence[Any], block_size: int, dtype: torch.dtype) -> Move:
    """For the CPU's kernel, which keeps an order of its own."""
    from leanthink.integrations.vllm.layout import Layout

    first = layers[0]

    def write(keys: Tensor, values: Tensor, cache: Tensor, slots: Tensor) -> None:
        first.impl.do_kv_cache_update(first, keys, values, cache, slots)

    heads, head_size = first.kv_cache.shape[1], first.head_size
    shape = (1, heads, block_size, 2 * head_size)
    layout = Layout(write, shape=shape, block_size=block_size, head_dim=head_size, dtype=dtype)

    def move(table_gB: Tensor, first_g: Tensor, kept_gXK: Tensor, num_kept_g: Tensor) -> None:
        assert kept_gXK.shape[1] == 1, "a set for each head is not moved here"
        for table, prompt, kept_K, count in zip(table_gB, first_g, kept_gXK[:, 0], num_kept_g.tolist(), strict=True):
            kept, targets = kept_K[:count], torch.arange(count)
            for layer in layers:
                layout.move(layer.kv_cache, table, prompt + kept, prompt + targets)

    return move
