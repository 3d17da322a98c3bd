"""The embedded reasoner's architecture (a stock Qwen3) and the attention over packed documents that trains it."""

# T tokens of one packed row   H query heads   K key/value heads   D head dimension   N documents
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from leanthink.models.tiny.tokenizer import END, PAD, VOCABULARY

MAX_LENGTH = 4608
PACKED = "leanthink-packed"


def tiny_config(layers: int = 8, hidden: int = 384, heads: int = 6, kv_heads: int = 2, mlp: int = 1152) -> Qwen3Config:
    """The shipped shape (13.9 M parameters) by default; smaller ones for tests. Heads are 64 wide."""
    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
    )


def build_model(config: Qwen3Config, seed: int) -> nn.Module:
    """Fresh fp32 weights on the CPU, the same for the same seed, attending through `attend_packed`."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=END, pad_token_id=PAD, do_sample=False, max_length=MAX_LENGTH
    )
    model.set_attn_implementation(PACKED)
    return model  # type: ignore[no-any-return]


def packed_logits(model: nn.Module, ids_T: Tensor, positions_T: Tensor, offsets_N: Tensor) -> Tensor:
    """[T, vocabulary] logits of documents laid end to end; document i is `offsets_N[i]:offsets_N[i + 1]`.

    The mask is given as an (empty) mapping so that transformers builds none: `offsets_N` says it all.
    """
    output = model(
        input_ids=ids_T[None],
        position_ids=positions_T[None],
        attention_mask={"full_attention": None},
        use_cache=False,
        offsets_N=offsets_N,
    )
    return output.logits[0]  # type: ignore[no-any-return]


def attend_packed(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    attention_mask: Tensor | None,
    *,
    offsets_N: Tensor,
    scaling: float,
    **unused: object,
) -> tuple[Tensor, None]:
    """Causal attention inside each document of one packed row, as transformers' attention interface wants it."""
    del module, attention_mask, unused
    flash = query_1HTD.device.type != "cpu"
    # Under autocast the norms leave queries and keys in fp32, the values are already in the compute type.
    query_HTD, key_KTD, value_KTD = (t[0].to(value_1KTD.dtype) for t in (query_1HTD, key_1KTD, value_1KTD))
    attend = attend_flash if flash else attend_masked
    return attend(query_HTD, key_KTD, value_KTD, offsets_N, scaling)[None], None


def attend_flash(query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, offsets_N: Tensor, scale: float) -> Tensor:
    """[T, H, D] through the variable-length flash kernel (bf16 or fp16). Zero-length documents cost next to nothing.

    Every token must lie in a document: the kernel leaves the other rows unwritten.
    """
    group = query_HTD.shape[0] // key_KTD.shape[0]
    return varlen_attn(  # type: ignore[return-value]
        query_HTD.transpose(0, 1).contiguous(),
        key_KTD.transpose(0, 1).repeat_interleave(group, dim=1),
        value_KTD.transpose(0, 1).repeat_interleave(group, dim=1),
        offsets_N,
        offsets_N,
        MAX_LENGTH,
        MAX_LENGTH,
        scale=scale,
        window_size=(-1, 0),  # the whole past, none of the future
    )


def attend_masked(query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, offsets_N: Tensor, scale: float) -> Tensor:
    """[T, H, D] through a T x T mask: the reference implementation of `attend_flash`, for any device and type."""
    index_T = torch.arange(query_HTD.shape[1], device=query_HTD.device)
    document_T = torch.searchsorted(offsets_N.to(index_T.dtype), index_T, right=True)
    mask_TT = (document_T[:, None] == document_T[None]) & (index_T[:, None] >= index_T[None])
    out_1HTD = scaled_dot_product_attention(
        query_HTD[None], key_KTD[None], value_KTD[None], attn_mask=mask_TT, scale=scale, enable_gqa=True
    )
    return out_1HTD[0].transpose(0, 1)


AttentionInterface.register(PACKED, attend_packed)
