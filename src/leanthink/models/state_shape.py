"""The shape of what linear and state-space layers keep of a request: states of one size, however long the request is.

Each keeps the latest inputs of a short convolution and, but for LFM2, a recurrent state in float32 that every token
updates. The sizes are those of transformers' modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch

STATE_LAYERS = frozenset({"linear_attention", "conv", "hybrid"})  # "hybrid": with full attention beside it


@dataclass(frozen=True, kw_only=True)
class StateShape:
    """What a model's layers keep of each request.

    Attributes:
        layers: which of the model's layers keep states, ascending.
        conv: of each, the channels of its convolution and how many of the latest inputs it keeps.
        recurrent: of each, the recurrent state's heads and the two sides of a head's matrix; empty: it has none.
    """

    layers: tuple[int, ...]
    conv: tuple[int, int]
    recurrent: tuple[int, ...] = ()

    def bytes_per_request(self, dtype: torch.dtype) -> int:
        """Bytes of one request's states; `dtype` is the model's."""
        recurrent = prod(self.recurrent) * torch.float32.itemsize if self.recurrent else 0
        return len(self.layers) * (prod(self.conv) * dtype.itemsize + recurrent)


def state_shape(config: Any) -> StateShape | None:
    """The shape of this model's states; None for a model whose layers keep none."""
    kinds = getattr(config, "layer_types", None) or ()
    layers = tuple(index for index, kind in enumerate(kinds) if kind in STATE_LAYERS)
    if not layers:
        return None
    if hasattr(config, "conv_L_cache"):  # LFM2
        return StateShape(layers=layers, conv=(config.hidden_size, config.conv_L_cache))
    if hasattr(config, "linear_num_value_heads"):  # Gated DeltaNet
        heads, key, value = (
            getattr(config, f"linear_{name}") for name in ("num_value_heads", "key_head_dim", "value_head_dim")
        )
        channels = 2 * config.linear_num_key_heads * key + heads * value
        return StateShape(layers=layers, conv=(channels, config.linear_conv_kernel_dim), recurrent=(heads, key, value))
    names = ("mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_n_groups", "mamba_d_conv")  # Mamba-2
    if config.model_type == "nemotron_h":
        names = ("mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups", "conv_kernel")
    heads, head_dim, size, groups, inputs = (getattr(config, name) for name in names)
    return StateShape(
        layers=layers, conv=(heads * head_dim + 2 * groups * size, inputs), recurrent=(heads, head_dim, size)
    )
