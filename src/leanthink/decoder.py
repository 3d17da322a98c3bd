"""The decoding forward of Llama-like models, from their own modules, in as few operations as one token a row needs.

transformers' own forward serves any length and any option, and for one token most of its time goes into doing so. Here
the same weights are applied in the same order, and rounded where the modules round.

N rows   M model width   A query heads (H * G)   H kv heads   G query heads per kv head   D head dim   V vocabulary
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanthink.attention import decode_attention
from leanthink.cache import Decode, SlotCache
from leanthink.states import joined

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")


def is_llama_like(model: Any) -> bool:
    """Whether `decode` may stand in for the model's forward: a class of transformers, and no hooks to be missed."""
    known = model.config.model_type in FAMILIES and model.config.hidden_act == "silu"
    if not known or not type(model).__module__.startswith("transformers.models."):
        return False
    skipped = [
        model,
        model.model,
        *(part for layer in model.model.layers for part in (layer, layer.self_attn, layer.mlp)),
    ]
    return not any(module._forward_hooks or module._forward_pre_hooks for module in skipped)


def decode(model: Any, slot_cache: SlotCache, ids_N: Tensor, positions_N1: Tensor) -> tuple[Tensor, Tensor]:
    """Feed one token to each row, as announced; returns its states [N, F], of `leanthink.states`, and logits [N, V]."""
    feed, body = slot_cache.feed, model.model
    assert isinstance(feed, Decode)
    with slot_cache.accounted():
        ops = _ops(ids_N.device)
        x_NM = body.embed_tokens(ids_N)
        cos_N1D, sin_N1D = body.rotary_emb(x_NM[:, None], positions_N1)
        middle_NM, added_NM = x_NM, None
        for index, layer in enumerate(body.layers):
            x_NM, normed_NM = ops.add_norm(x_NM, added_NM, layer.input_layernorm)
            if index == len(body.layers) // 2 + 1:
                middle_NM = x_NM
            attended_NM = _attend(layer.self_attn, ops, slot_cache, feed, normed_NM, cos_N1D, sin_N1D)
            x_NM, normed_NM = ops.add_norm(x_NM, attended_NM, layer.post_attention_layernorm)
            added_NM = layer.mlp.down_proj(ops.silu_mul(layer.mlp.gate_proj(normed_NM), layer.mlp.up_proj(normed_NM)))
        x_NM, final_NM = ops.add_norm(x_NM, added_NM, body.norm)
        if len(body.layers) // 2 + 1 == len(body.layers):
            middle_NM = x_NM
        logits_NV = model.get_output_embeddings()(final_NM)
    return joined(final_NM, middle_NM), logits_NV


def _attend(
    module: Any, ops: Any, slot_cache: SlotCache, feed: Decode, x_NM: Tensor, cos_N1D: Tensor, sin_N1D: Tensor
) -> Tensor:
    """One attention layer: project, norm where the family does, rotate, write, attend, project."""
    shape, N = slot_cache.shape, len(x_NM)
    H, G, D = shape.kv_heads, shape.group, shape.head_dim
    q_NAD = module.q_proj(x_NM).view(N, H * G, D)
    k_NHD = module.k_proj(x_NM).view(N, H, D)
    v_NHD = module.v_proj(x_NM).view(N, H, D)
    if hasattr(module, "q_norm"):
        q_NAD, k_NHD = ops.norm(q_NAD, module.q_norm), ops.norm(k_NHD, module.k_norm)
    if getattr(module, "use_rope", True):
        q_NAD, k_NHD = ops.rope(q_NAD, k_NHD, cos_N1D, sin_N1D)
    slot_cache.scaling = module.scaling
    slot_cache.write(module.layer_idx, q_NAD[:, :, None], k_NHD[:, :, None], v_NHD[:, :, None])
    out_NHGD = decode_attention(q_NAD.view(N, H, G, D), slot_cache, module.layer_idx, feed, module.scaling)
    attended_NM: Tensor = module.o_proj(out_NHGD.reshape(N, H * G * D))
    return attended_NM


class _Plain:
    """The small operations in PyTorch, for any device."""

    @staticmethod
    def norm(x: Tensor, module: Any) -> Tensor:
        normed = F.rms_norm(x.float(), x.shape[-1:], eps=module.variance_epsilon).to(x.dtype)
        scaled: Tensor = module.weight * normed
        return scaled

    @staticmethod
    def add_norm(x_NM: Tensor, added_NM: Tensor | None, module: Any) -> tuple[Tensor, Tensor]:
        """The residual stream with what a sublayer adds to it, and its norm."""
        x_NM = x_NM if added_NM is None else x_NM + added_NM
        return x_NM, _Plain.norm(x_NM, module)

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
        self.silu_mul = elementwise.silu_mul

    def norm(self, x: Tensor, module: Any) -> Tensor:
        return self._kernels.rms_norm(x, module.weight, module.variance_epsilon)

    def add_norm(self, x_NM: Tensor, added_NM: Tensor | None, module: Any) -> tuple[Tensor, Tensor]:
        if added_NM is None:
            return x_NM, self.norm(x_NM, module)
        return self._kernels.add_rms_norm(x_NM, added_NM, module.weight, module.variance_epsilon)

    def rope(self, q_NAD: Tensor, k_NHD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> tuple[Tensor, Tensor]:
        q, k = self._kernels.rope(q_NAD[:, :, None], k_NHD[:, :, None], cos_N1D, sin_N1D)
        return q[:, :, 0], k[:, :, 0]


def _ops(device: torch.device) -> Any:
    return _Fused() if device.type == "cuda" else _Plain
