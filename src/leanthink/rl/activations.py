"""What a forward keeps for its backward pass, traced through the model's own code on tensors without memory.

B rows   T tokens   H hidden size   D head dim
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface

from leanthink.engine.attention import switched_to

NAME = "leanthink-trace"


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes that are kept: by each of `layers` layers, by the embedding and the last norm, and of a layer's input."""

    layer: int
    ends: int
    layer_input: int
    layers: int

    def peak(self, *, checkpointed: bool) -> int:
        """With gradient checkpointing the inputs of all layers are kept, and one layer at a time is computed again."""
        kept = self.layers * self.layer_input + self.layer if checkpointed else self.layers * self.layer
        return kept + self.ends


def trace_activations(model: Any, *, rows: int, tokens: int, autocast: torch.dtype | None) -> Activations:
    """Those of a forward of so many rows of so many tokens.

    Args:
        model: on the device "meta", with adapters if they are trained; it is changed and of no use after that.
        rows: B.
        tokens: T.
        autocast: the type of mixed precision; None: computed as the weights are.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    backbone = base.base_model
    layers = len(backbone.layers)
    # The only attention that keeps a number for each pair of tokens runs as it is.
    attention = "eager" if base.config._attn_implementation == "eager" else NAME
    with switched_to(attention, base.config), FakeTensorMode():
        _faked(base)
        found = []
        for count in (2, 1):
            backbone.layers = backbone.layers[:count]
            found.append(_kept(backbone, rows, tokens, autocast))
    layer = found[0] - found[1]
    hidden = rows * tokens * base.config.hidden_size * base.dtype.itemsize
    return Activations(layer=layer, ends=found[1] - layer, layer_input=hidden, layers=layers)


def _faked(model: nn.Module) -> None:
    """Give each weight a place on the CPU, in the midst of a mode in which that takes no memory."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                fake = torch.empty(weight.shape, dtype=weight.dtype)
                module._parameters[name] = nn.Parameter(fake, requires_grad=weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _kept(backbone: Any, rows: int, tokens: int, autocast: torch.dtype | None) -> int:
    """Bytes of all that is saved for the backward pass but weights."""
    storages: dict[int, Any] = {}

    def note(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        storages[storage._cdata] = storage
        return saved

    weights = {weight.untyped_storage()._cdata for weight in backbone.parameters()}
    hidden_BTH = torch.empty(rows, tokens, backbone.config.hidden_size, dtype=backbone.dtype, requires_grad=True)
    saving = torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved)
    with saving, torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        out = backbone.train()(inputs_embeds=hidden_BTH, use_cache=False)  # noqa: F841 (keeps what is saved)
    return sum(storage.nbytes() for where, storage in storages.items() if where not in weights)


class _Attention(torch.autograd.Function):
    """Keeps what kernels do that are linear in the tokens: queries, keys, values and what comes out."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise AssertionError("a trace has no backward pass")


def _attention(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    if torch.is_autocast_enabled("cpu"):  # which kernels of attention are called in its type
        query, key, value = (part.to(torch.get_autocast_dtype("cpu")) for part in (query, key, value))
    out: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attention)
