"""Puts the kernels of `leanthink.kernels.elementwise` in the place of a model's own small operations.

Imports no Triton until there is a model to serve with it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# These normalise in float32, round, then multiply by the weight. Gemma's multiplies by 1 + weight before it rounds.
NORMS = {"LlamaRMSNorm", "MistralRMSNorm", "Phi3RMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "SmolLM3RMSNorm"}
SILU = {"SiLU", "SiLUActivation"}
ROTATED = {"llama", "mistral", "qwen2", "qwen3"}  # model types whose heads are rotated whole, in halves
ROTATE = "apply_rotary_pos_emb"  # the function's name in the module that defines such a model


@dataclass(frozen=True)
class Replacement:
    """`owner.name` is `fast` inside and `stock`, or what the class defines if that is None, outside."""

    owner: Any
    name: str
    fast: Callable[..., Any]
    stock: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Fused:
    """A context in which a model runs on fused kernels, without gradients; may be entered any number of times."""

    replacements: tuple[Replacement, ...]

    def __enter__(self) -> None:
        for entry in self.replacements:
            vars(entry.owner)[entry.name] = entry.fast  # what nn.Module's own setattr ends in, without its checks

    def __exit__(self, *_: object) -> None:
        for entry in self.replacements:
            if entry.stock is None:
                del vars(entry.owner)[entry.name]
            else:
                vars(entry.owner)[entry.name] = entry.stock


def fused(model: Any) -> Fused:
    """The context of a model on a GPU; one that does nothing elsewhere, except under Triton's interpreter.

    Make it once per model. A module whose forward somebody replaced already is left alone.
    """
    if model.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return Fused(())
    found = [
        Replacement(module, "forward", fast)
        for module in model.modules()
        if "forward" not in vars(module) and (fast := _fast_forward(module)) is not None
    ]
    if model.config.model_type in ROTATED:
        modeling = sys.modules[type(model).__module__]
        stock = getattr(modeling, ROTATE)
        found.append(Replacement(modeling, ROTATE, _fast_rotary(stock, model.device), stock))
    return Fused(tuple(found))


def _fast_forward(module: Any) -> Callable[[Tensor], Tensor] | None:
    """What computes the same as this module's forward; None if nothing here does."""
    from leanthink.kernels.elementwise import rms_norm, silu_mul

    kind = type(module).__name__
    if kind in NORMS and hasattr(module, "weight") and hasattr(module, "variance_epsilon"):
        return lambda x: rms_norm(x, module.weight, module.variance_epsilon)
    if all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        if type(module.act_fn).__name__ in SILU:
            return lambda x: module.down_proj(silu_mul(module.gate_proj(x), module.up_proj(x)))
    elif kind == "Phi3MLP" and type(module.activation_fn).__name__ in SILU:
        return lambda x: module.down_proj(silu_mul(*module.gate_up_proj(x).chunk(2, dim=-1)))
    return None


def _fast_rotary(stock: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The model's function with a kernel in it, for this device: other models of the type share the function."""
    from leanthink.kernels.elementwise import rope

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        if q.device != device or unsqueeze_dim != 1 or cos.shape[-1] != q.shape[-1]:
            return stock(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        return rope(q, k, cos, sin)

    return rotate
