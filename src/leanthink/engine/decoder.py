"""The forward of Llama-like models, from their own weights, in as few operations as one token a row needs.

transformers' own forward serves any length and any option, and for one token most of its time goes into doing so. Here
the same weights are applied in the same order, and rounded where the modules round. Prompts can be fed this way, too.

N rows, or tokens of prompts   M model width   A query heads (H * G)   H kv heads   G query heads per kv head
D head dim   V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanthink.engine.attention import decode_attention, mixed_attention, packed_attention
from leanthink.engine.cache import SlotCache
from leanthink.engine.forward_batch import Batch, DecodeBatch, MixedBatch, PrefillBatch
from leanthink.engine.fused_weights import fuse
from leanthink.engine.hidden_states import joined
from leanthink.models.loading import kv_shape

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
Linear = tuple[Tensor, Tensor | None]  # weight and bias
Angles = tuple[Tensor, ...] | None  # cosines and sines [N, D]


def is_llama_like(model: Any) -> bool:
    """Whether `LeanDecoder` may stand in for the model: transformers' own class, plain layers, no hooks to miss."""
    known = model.config.model_type in FAMILIES and model.config.hidden_act == "silu"
    known = known and kv_shape(model.config).slot_layers is None
    if not known or not type(model).__module__.startswith("transformers.models."):
        return False
    modules = [model, model.model, *(part for layer in model.model.layers for part in layer.modules())]
    linear = [part for part in modules if hasattr(part, "in_features")]
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in modules)
    return not hooked and all(_is_plain(part, model.dtype) for part in linear)


def _is_plain(linear: nn.Module, dtype: torch.dtype) -> bool:
    """Neither adapted nor quantised: torchao changes a weight's type, compressed-tensors a module's forward."""
    weight = linear.weight
    of_torch = type(linear) is nn.Linear and type(weight) is nn.Parameter
    return of_torch and weight.dtype == dtype and "forward" not in vars(linear)


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """The weights of one layer, found once: looking them up in modules costs as much as a small product."""

    index: int
    qkv: Linear  # queries, keys and values side by side
    o: Linear
    gate_up: Linear
    down: Linear
    before: Tensor  # norm before attention
    after: Tensor  # and before the MLP
    qk_norms: tuple[Tensor, Tensor] | None
    rotates: bool
    scaling: float


class LeanDecoder:
    """Feeds one token to each row of a Llama-like model, prompts, or both.

    Args:
        model: for which `is_llama_like` holds; its weights must not be replaced afterwards, only changed in place.
            Those that share an input are moved next to each other in memory, see `leanthink.engine.fused_weights`.
    """

    def __init__(self, model: Any) -> None:
        body = model.model
        self.embed, self.rotary, self.head = body.embed_tokens, body.rotary_emb, model.get_output_embeddings()
        self.norm, self.eps = body.norm.weight, body.norm.variance_epsilon
        self.layers = [_layer(layer) for layer in body.layers]
        self.middle = len(self.layers) // 2
        self.ops = _Fused() if model.device.type == "cuda" else _Plain

    def __call__(self, slot_cache: SlotCache, ids_N: Tensor, positions_N1: Tensor) -> tuple[Tensor, Tensor]:
        """As announced to the cache; returns hidden states [N, F], as of `engine.hidden_states`, and logits [N, V].

        Of the rows alone, whose tokens come last, where prompts are fed by the same forward.
        """
        batch, ops, eps = slot_cache.forward_batch, self.ops, self.eps
        assert isinstance(batch, DecodeBatch | MixedBatch)
        with slot_cache.accounted():
            x_NM, added_NM = self.embed(ids_N), None
            angles_ND = tuple(angle_1ND[0] for angle_1ND in self.rotary(x_NM[None], positions_N1.mT))
            for layer in self.layers:
                x_NM, normed_NM = ops.add_norm(x_NM, added_NM, layer.before, eps)
                if layer.index == self.middle + 1:
                    middle_NM = x_NM
                q_NAD = self._place(layer, slot_cache, batch, normed_NM, angles_ND)
                if isinstance(batch, MixedBatch) and layer is self.layers[-1]:  # the rows alone go on, as in `prefill`
                    _, (batch, fed) = batch.parts
                    x_NM, q_NAD = x_NM[fed], q_NAD[fed]
                if isinstance(batch, MixedBatch):
                    out = mixed_attention(q_NAD, slot_cache, layer.index, batch, layer.scaling)
                else:
                    q_NHGD = q_NAD.view(len(x_NM), slot_cache.shape.kv_heads, -1, slot_cache.shape.head_dim)
                    out = decode_attention(q_NHGD, slot_cache.layer(layer.index), batch, layer.scaling)
                x_NM, added_NM = self._finish(layer, x_NM, out)
            x_NM, final_NM = ops.add_norm(x_NM, added_NM, self.norm, eps)
            if self.middle + 1 == len(self.layers):
                middle_NM = x_NM
            logits_NV = self.head(final_NM)
        return joined(final_NM, middle_NM[-len(final_NM) :]), logits_NV

    def prefill(self, slot_cache: SlotCache, ids_1S: Tensor, positions_1S: Tensor) -> None:
        """Feed chunks of prompts, announced by `start_prefill`: only their keys and values are wanted."""
        batch = slot_cache.forward_batch
        assert isinstance(batch, PrefillBatch)
        with slot_cache.accounted():
            x_NM, added_NM = self.embed(ids_1S[0]), None
            angles_ND = tuple(angle_1ND[0] for angle_1ND in self.rotary(x_NM[None], positions_1S))
            for layer in self.layers:
                x_NM, normed_NM = self.ops.add_norm(x_NM, added_NM, layer.before, self.eps)
                q_NAD = self._place(layer, slot_cache, batch, normed_NM, angles_ND)
                if layer is self.layers[-1]:
                    return  # its keys and values are written, and nobody asks what comes after
                out_NAD = packed_attention(q_NAD, slot_cache, layer.index, batch, layer.scaling)
                x_NM, added_NM = self._finish(layer, x_NM, out_NAD)

    def _place(
        self, layer: _Layer, slot_cache: SlotCache, batch: Batch, x_NM: Tensor, angles_ND: tuple[Tensor, ...]
    ) -> Tensor:
        """Project, norm where the family does, rotate, write; returns the queries [N, A, D]."""
        slot_cache.scaling = layer.scaling
        qkv_NX = F.linear(x_NM, *layer.qkv)
        return self.ops.place(layer, slot_cache, batch, qkv_NX, angles_ND if layer.rotates else None, self.eps)

    def _finish(self, layer: _Layer, x_NM: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        """What follows attention: the residual stream, and what the MLP adds to it."""
        attended_NM = F.linear(out.reshape(len(x_NM), -1), *layer.o)
        x_NM, normed_NM = self.ops.add_norm(x_NM, attended_NM, layer.after, self.eps)
        return x_NM, self.ops.mlp(layer, normed_NM)


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        index=attention.layer_idx,
        qkv=_linear(attention.q_proj, attention.k_proj, attention.v_proj),
        o=_linear(attention.o_proj),
        gate_up=_linear(mlp.gate_proj, mlp.up_proj),
        down=_linear(mlp.down_proj),
        before=layer.input_layernorm.weight,
        after=layer.post_attention_layernorm.weight,
        qk_norms=(attention.q_norm.weight, attention.k_norm.weight) if hasattr(attention, "q_norm") else None,
        rotates=bool(getattr(attention, "use_rope", True)),
        scaling=attention.scaling,
    )


def _linear(*modules: nn.Linear) -> Linear:
    """Weight and bias of modules with one input, as of one module whose outputs are theirs side by side."""
    biases = [module.bias for module in modules if module.bias is not None]
    assert len(biases) in (0, len(modules)), "these families have a bias in all three projections or in none"
    return fuse([module.weight for module in modules]), fuse(biases) if biases else None


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
    def place(
        layer: _Layer, slot_cache: SlotCache, batch: Batch, qkv_NX: Tensor, angles_ND: Angles, eps: float
    ) -> Tensor:
        """Queries and keys normed and rotated, keys and values written; returns the queries [N, A, D]."""
        H, D = slot_cache.shape.kv_heads, slot_cache.shape.head_dim
        heads_NXD = qkv_NX.view(len(qkv_NX), -1, D)
        both_NXD, v_NHD = heads_NXD[:, :-H], heads_NXD[:, -H:]
        if layer.qk_norms is not None:
            parts = zip((both_NXD[:, :-H], both_NXD[:, -H:]), layer.qk_norms, strict=True)
            both_NXD = torch.cat([_Plain.norm(part, weight, eps) for part, weight in parts], dim=1)
        if angles_ND is not None:
            left, right = both_NXD.chunk(2, dim=-1)
            cos_N1D, sin_N1D = (angle_ND[:, None] for angle_ND in angles_ND)
            both_NXD = both_NXD * cos_N1D + torch.cat([-right, left], dim=-1) * sin_N1D
        slot_cache.append(layer.index, batch, both_NXD[:, -H:], v_NHD)
        slot_cache.note_queries(layer.index, batch, both_NXD[:, :-H])
        return both_NXD[:, :-H]

    @staticmethod
    def mlp(layer: _Layer, x_NM: Tensor) -> Tensor:
        gate, up = F.linear(x_NM, *layer.gate_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, *layer.down)


class _Fused:
    """The same, each in one launch of a Triton kernel, or few."""

    def __init__(self) -> None:
        from leanthink.engine.kernels import elementwise, mlp, place

        self._norm, self._add_norm, self._place = elementwise.rms_norm, elementwise.add_rms_norm, place.place
        self._gate_up, self._down = mlp.gate_up, mlp.down

    def add_norm(self, x_NM: Tensor, added_NM: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        if added_NM is None:
            return x_NM, self._norm(x_NM, weight, eps)
        return self._add_norm(x_NM, added_NM, weight, eps)

    def place(
        self, layer: _Layer, slot_cache: SlotCache, batch: Batch, qkv_NX: Tensor, angles_ND: Angles, eps: float
    ) -> Tensor:
        held = slot_cache.layer(layer.index)
        how: dict[str, Any] = {"norms": layer.qk_norms, "angles": angles_ND, "eps": eps}
        q_NAD = self._place(qkv_NX, held.keys_HTD, held.values_HTD, batch.write_N, fp8=held.fp8, **how)
        slot_cache.note_queries(layer.index, batch, q_NAD)
        return q_NAD

    def mlp(self, layer: _Layer, x_NM: Tensor) -> Tensor:
        """For `add_norm`: [N, M], or parts of it."""
        return self._down(self._gate_up(x_NM, *layer.gate_up), *layer.down)
