"""Models of known shapes with random weights: how fast they are does not depend on what they learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from leanthink.engine.bench.shapes import SHAPES


def config_of(shape: str) -> Any:
    """The public config of a shape; its head and its input embedding are two tables."""
    kind, sizes = SHAPES[shape]
    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return CONFIG_MAPPING[kind](**sizes, **ends, tie_word_embeddings=False)


def build(config: Any, device: str, dtype: torch.dtype) -> Any:
    """Random weights, drawn on the device in their own type: never larger anywhere than they stay."""
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def all_bytes(model: Any) -> int:
    """Bytes of all parameters and buffers; for a model on the device "meta", before anything is allocated."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def step_bytes(model: Any, rows: int = 1) -> float:
    """Bytes of weights that a decode step of so many rows reads.

    All but the input embedding, unless the head is that same table; of experts those that some row is routed to. That
    many are expected where each row takes `k` of `E` as if by chance: `E (1 - (1 - k / E) ** rows)`.
    """
    table = model.get_input_embeddings().weight
    read: float = sum(parameter.nbytes for parameter in model.parameters())
    read -= 0 if model.get_output_embeddings().weight is table else table.nbytes
    for experts in experts_of(model):
        parameters = list(experts.parameters(recurse=False))
        all_experts = max(parameters, key=torch.Tensor.dim).shape[0]
        idle = (1 - experts_per_token(model.config) / all_experts) ** rows
        read -= idle * sum(parameter.nbytes for parameter in parameters)
    return read


def experts_of(model: Any) -> list[nn.Module]:
    """The modules of a mixture whose parameters hold all experts of a layer, [E, ...]."""
    found = []
    for module in model.modules():
        stacked = any(parameter.dim() == 3 for parameter in module.parameters(recurse=False))
        if stacked and not isinstance(module, nn.Conv1d):
            found.append(module)
    return found


def experts_per_token(config: Any) -> int:
    """How many experts of a layer a token is routed to."""
    names = ("num_experts_per_tok", "moe_k", "moe_topk")
    count: int = next(getattr(config, name) for name in names if hasattr(config, name))
    return count


def never_ending(model: Any) -> Any:
    """The same model, which no token and no length of its own ends."""
    model.generation_config.eos_token_id = model.generation_config.max_length = None
    return model
