"""Tells models apart: what was learned on the hidden states of one model means nothing on another's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanthink.utils.errors import UnsupportedModel

# Fields that shape the hidden states. The vocabulary is not among them: padding it changes nothing here.
_SHAPE_FIELDS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
_FINAL_NORMS = ("norm", "final_layernorm", "ln_f", "norm_f", "embedding_norm")
SAMPLED = 64  # numbers of each weight: training moves all of them, if only a little


def fingerprint(model: Any) -> str:
    """SHA-256 over a model's shape and over numbers out of every weight of its layers and final norm, in hex.

    They are read as bfloat16: the same for every dtype, device and adapter-free copy of a checkpoint, another for every
    other trained model, also for one that was trained on from the first.

    Raises:
        UnsupportedModel: the model has no layers or no final norm where decoders have them.
    """
    return fingerprint_of(model.config, [sample(weight) for weight in weights_of(model).values()])


def fingerprint_of(config: Any, samples: Sequence[Tensor]) -> str:
    """The same from the samples of the weights, in the order of `weights_of`: for a model that is never whole here."""
    shape = {name: getattr(config, name, None) for name in _SHAPE_FIELDS}
    shape["head_dim"] = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    digest.update(bytes(torch.cat(list(samples)).cpu().view(torch.uint8).tolist()))
    return digest.hexdigest()


def weights_of(model: Any) -> dict[str, Tensor]:
    """What the fingerprint follows, by its name in the model's checkpoint; raises UnsupportedModel as `fingerprint`."""
    body, prefix = model.base_model, f"{getattr(model, 'base_model_prefix', '')}."
    norms = {name: getattr(getattr(body, name, None), "weight", None) for name in _FINAL_NORMS}
    norm = next((name for name, weight in norms.items() if isinstance(weight, Tensor)), None)
    if norm is None or not hasattr(body, "layers"):
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be identified: it has no layers, or no final norm named "
            f"{', '.join(_FINAL_NORMS)}"
        )
    named = {f"{prefix}layers.{name}": weight for name, weight in body.layers.named_parameters()}
    return named | {f"{prefix}{norm}.weight": getattr(body, norm).weight}


def sample(weight: Tensor) -> Tensor:
    """Evenly spaced numbers, bfloat16; those that it stands for, of a weight that torchao has quantised."""
    if type(weight).dequantize is not Tensor.dequantize:
        weight = weight.dequantize()
    at = torch.arange(SAMPLED, device=weight.device) * (weight.numel() - 1) // (SAMPLED - 1)
    try:
        return weight.detach().reshape(-1)[at].to(torch.bfloat16)
    except NotImplementedError:  # four bits of torchao as its CUDA kernel takes them: a product is all there is
        inputs = weight.shape[1]
        products = F.linear(F.one_hot(at % inputs, inputs).to(weight.dtype), weight)
        return products.gather(1, (at // inputs)[:, None])[:, 0].to(torch.bfloat16)
