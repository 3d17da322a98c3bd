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
from leanthink.models.loading import kv_shape

NAME = "leanthink-trace"


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes that are kept: by each of `layers` layers, by what they share, and of a layer's input.

    Of layers of several types `layer` is the mean.
    """

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
    # The only attention that keeps its scores runs as it is.
    attention = "eager" if base.config._attn_implementation == "eager" else NAME
    with switched_to(attention, base.config), FakeTensorMode():
        _faked(base)
        found, sliding = [], kv_shape(base.config).sliding_layers
        counts = (layers if sliding else 2, 1)
        for count in counts:
            backbone.layers = backbone.layers[:count]
            found.append(_kept(backbone, rows, tokens, autocast))
    layer = (found[0] - found[1]) // (counts[0] - 1)
    ends = found[0] - counts[0] * layer
    hidden = rows * tokens * base.config.hidden_size * base.dtype.itemsize
    return Activations(layer=layer, ends=ends, layer_input=hidden, layers=layers)


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
    """Keeps what kernels do that hold no scores: queries, keys, values, a mask if there is one, and what comes out."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, *others: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, *others, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise AssertionError("a trace has no backward pass")


def _attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_: Any,
    sliding_window: int | None = None,
    **__: Any,
) -> tuple[Tensor, None]:
    if torch.is_autocast_enabled("cpu"):  # which kernels of attention are called in its type
        query, key, value = (part.to(torch.get_autocast_dtype("cpu")) for part in (query, key, value))
    seen: tuple[Tensor, ...] = ()
    B, T = query.shape[0], query.shape[2]
    if sliding_window is not None and sliding_window < T:  # SDPA then takes a mask, and each kv head once a query head
        key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (key, value))
        seen = (query.new_empty(B, 1, T, T),)
    out: Tensor = _Attention.apply(query, key, value, *seen)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attention)
