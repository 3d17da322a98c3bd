"""The decoding forward of Llama-like models, from their own weights, in as few operations as one token a row needs.

transformers' own forward serves any length and any option, and for one token most of its time goes into doing so. Here
the same weights are applied in the same order, and rounded where the modules round.

N rows   M model width   A query heads (H * G)   H kv heads   G query heads per kv head   D head dim   V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanthink.attention import decode_attention
from leanthink.cache import Decode, SlotCache
from leanthink.states import joined

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
Linear = tuple[Tensor, Tensor | None]  # weight and bias


def is_llama_like(model: Any) -> bool:
    """Whether `LeanDecoder` may stand in for the model: transformers' own class, plain layers, no hooks to miss."""
    known = model.config.model_type in FAMILIES and model.config.hidden_act == "silu"
    if not known or not type(model).__module__.startswith("transformers.models."):
        return False
    modules = [model, model.model, *(part for layer in model.model.layers for part in layer.modules())]
    linear = [part for part in modules if hasattr(part, "in_features")]
    plain = all(type(part) is nn.Linear for part in linear)  # neither quantised nor adapted
    return plain and not any(part._forward_hooks or part._forward_pre_hooks for part in modules)


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """The weights of one layer, found once: looking them up in modules costs as much as a small product."""

    index: int
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    gate: Linear
    up: Linear
    down: Linear
    before: Tensor  # norm before attention
    after: Tensor  # and before the MLP
    q_norm: Tensor | None
    k_norm: Tensor | None
    rotates: bool
    scaling: float


class LeanDecoder:
    """Feeds one token to each row of a Llama-like model.

    Args:
        model: for which `is_llama_like` holds; its weights must not be replaced afterwards, only changed in place.
    """

    def __init__(self, model: Any) -> None:
        body = model.model
        self.embed, self.rotary, self.head = body.embed_tokens, body.rotary_emb, model.get_output_embeddings()
        self.norm, self.eps = body.norm.weight, body.norm.variance_epsilon
        self.layers = [_layer(layer) for layer in body.layers]
        self.middle = len(self.layers) // 2
        self.ops = _Fused() if model.device.type == "cuda" else _Plain

    def __call__(self, slot_cache: SlotCache, ids_N: Tensor, positions_N1: Tensor) -> tuple[Tensor, Tensor]:
        """As announced to the cache; returns states [N, F], of `leanthink.states`, and logits [N, V]."""
        feed, ops, eps = slot_cache.feed, self.ops, self.eps
        assert isinstance(feed, Decode)
        with slot_cache.accounted():
            x_NM, added_NM = self.embed(ids_N), None
            cos_N1D, sin_N1D = self.rotary(x_NM[:, None], positions_N1)
            for layer in self.layers:
                x_NM, normed_NM = ops.add_norm(x_NM, added_NM, layer.before, eps)
                if layer.index == self.middle + 1:
                    middle_NM = x_NM
                attended_NM = self._attend(layer, slot_cache, feed, normed_NM, cos_N1D, sin_N1D)
                x_NM, normed_NM = ops.add_norm(x_NM, attended_NM, layer.after, eps)
                opened = ops.silu_mul(F.linear(normed_NM, *layer.gate), F.linear(normed_NM, *layer.up))
                added_NM = F.linear(opened, *layer.down)
            x_NM, final_NM = ops.add_norm(x_NM, added_NM, self.norm, eps)
            if self.middle + 1 == len(self.layers):
                middle_NM = x_NM
            logits_NV = self.head(final_NM)
        return joined(final_NM, middle_NM), logits_NV

    def _attend(
        self, layer: _Layer, slot_cache: SlotCache, feed: Decode, x_NM: Tensor, cos_N1D: Tensor, sin_N1D: Tensor
    ) -> Tensor:
        """Project, norm where the family does, rotate, write, attend, project."""
        shape, N = slot_cache.shape, len(x_NM)
        H, G, D = shape.kv_heads, shape.group, shape.head_dim
        q_NAD = F.linear(x_NM, *layer.q).view(N, H * G, D)
        k_NHD = F.linear(x_NM, *layer.k).view(N, H, D)
        v_NHD = F.linear(x_NM, *layer.v).view(N, H, D)
        if layer.q_norm is not None and layer.k_norm is not None:
            q_NAD = self.ops.norm(q_NAD, layer.q_norm, self.eps)
            k_NHD = self.ops.norm(k_NHD, layer.k_norm, self.eps)
        if layer.rotates:
            q_NAD, k_NHD = self.ops.rope(q_NAD, k_NHD, cos_N1D, sin_N1D)
        slot_cache.scaling = layer.scaling
        slot_cache.write(layer.index, q_NAD[:, :, None], k_NHD[:, :, None], v_NHD[:, :, None])
        out_NHGD = decode_attention(q_NAD.view(N, H, G, D), slot_cache, layer.index, feed, layer.scaling)
        return F.linear(out_NHGD.reshape(N, H * G * D), *layer.o)


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    q, k, v, o = (_linear(getattr(attention, name)) for name in PROJECTIONS)
    return _Layer(
        index=attention.layer_idx,
        q=q,
        k=k,
        v=v,
        o=o,
        gate=_linear(mlp.gate_proj),
        up=_linear(mlp.up_proj),
        down=_linear(mlp.down_proj),
        before=layer.input_layernorm.weight,
        after=layer.post_attention_layernorm.weight,
        q_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        k_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        rotates=bool(getattr(attention, "use_rope", True)),
        scaling=attention.scaling,
    )


def _linear(module: nn.Linear) -> Linear:
    return module.weight, module.bias


class _Plain:
    """The small operations in PyTorch, for any device."""

    @staticmethod
    def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed = F.rms_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype)
        scaled: Tensor = weight * normed
        return scaled

    @staticmethod
    def add_norm(x_NM: Tensor, added_NM: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """The residual stream with what a sublayer adds to it, and its norm."""
        x_NM = x_NM if added_NM is None else x_NM + added_NM
        return x_NM, _Plain.norm(x_NM, weight, eps)

    @staticmethod
    def rope(q_NAD: Tensor, k_NHD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([q_NAD, k_NHD], dim=1)
        left, right = both.chunk(2, dim=-1)
        turned = both * cos_N1D + torch.cat([-right, left], dim=-1) * sin_N1D
        return turned[:, : q_NAD.shape[1]], turned[:, q_NAD.shape[1] :]

    @staticmethod
    def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up


class _Fused:
    """The same, each in one launch of a Triton kernel."""

    def __init__(self) -> None:
        from leanthink.kernels import elementwise

        self._kernels = elementwise
        self.norm, self.silu_mul = elementwise.rms_norm, elementwise.silu_mul

    def add_norm(self, x_NM: Tensor, added_NM: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        if added_NM is None:
            return x_NM, self.norm(x_NM, weight, eps)
        return self._kernels.add_rms_norm(x_NM, added_NM, weight, eps)

    def rope(self, q_NAD: Tensor, k_NHD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> tuple[Tensor, Tensor]:
        q, k = self._kernels.rope(q_NAD[:, :, None], k_NHD[:, :, None], cos_N1D, sin_N1D)
        return q[:, :, 0], k[:, :, 0]
