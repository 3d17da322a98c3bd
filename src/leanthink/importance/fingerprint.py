"""Tells models apart: what was learned on the hidden states of one model means nothing on another's."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from leanthink.errors import UnsupportedModel

# Fields that shape the hidden states. The vocabulary is not among them: padding it changes nothing here.
_SHAPE_FIELDS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
_FINAL_NORMS = ("norm", "final_layernorm", "ln_f")


def fingerprint(model: Any) -> str:
    """SHA-256 over a model's shape and its final norm weight as bfloat16, in hex.

    The same for every dtype, device and adapter-free copy of a checkpoint; another for every other trained model.

    Raises:
        UnsupportedModel: the model has no final norm where decoders have it.
    """
    config = model.config
    shape = {name: getattr(config, name, None) for name in _SHAPE_FIELDS}
    shape["head_dim"] = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    weight = _final_norm_weight(model).detach().to("cpu", torch.bfloat16).contiguous()
    digest.update(bytes(weight.view(torch.uint8).tolist()))
    return digest.hexdigest()


def _final_norm_weight(model: Any) -> Tensor:
    for name in _FINAL_NORMS:
        weight = getattr(getattr(model.base_model, name, None), "weight", None)
        if isinstance(weight, Tensor):
            return weight
    raise UnsupportedModel(
        f"{type(model).__name__} cannot be identified: it has no final norm named {', '.join(_FINAL_NORMS)}"
    )
