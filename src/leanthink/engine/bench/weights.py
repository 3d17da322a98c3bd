"""Models of known shapes with random weights: how fast they are does not depend on what they learned."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from leanthink.engine.bench.experts import expected_experts, experts_of, num_experts
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


def step_bytes(model: Any, rows: float = 1) -> float:
    """Bytes of weights that a decode step of so many rows reads: of experts those that it is expected to use.

    The input embedding is not read, unless the head is that same table.
    """
    table = model.get_input_embeddings().weight
    unread: float = 0 if model.get_output_embeddings().weight is table else table.nbytes
    if layers := experts_of(model):
        of_experts = sum(weight.nbytes for experts in layers for weight in experts.parameters(recurse=False))
        unread += (1 - expected_experts(model, rows) / num_experts(model)) * of_experts
    read: float = sum(parameter.nbytes for parameter in model.parameters()) - unread
    return read


def never_ending(model: Any) -> Any:
    """The same model, which no token and no length of its own ends."""
    model.generation_config.eos_token_id = model.generation_config.max_length = None
    return model
