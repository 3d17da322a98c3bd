"""Attention over the bounded cache, plugged into transformers, and the forward pass that uses it.

N rows   H kv heads   G query heads per kv head   D head dim   S tokens fed   T slots read   F state size   V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from leanthink.cache import Decode, SlotCache
from leanthink.errors import UnsupportedModel, UsageError
from leanthink.states import joined, middle_outputs

NAME = "leanthink"


def decode_attention(q_NHGD: Tensor, keys_NHTD: Tensor, values_NHTD: Tensor, feed: Decode, scaling: float) -> Tensor:
    """One query token per row over the slots its row holds, [N, H, G, D]: Triton on a GPU, packed SDPA elsewhere.

    The query heads that share a kv head are its G "tokens", so keys and values are read once and never repeated.
    """
    if q_NHGD.is_cuda:
        from leanthink.kernels import decode

        return decode.decode_attention(q_NHGD, keys_NHTD, values_NHTD, feed.write_N, scaling)
    return F.scaled_dot_product_attention(q_NHGD, keys_NHTD, values_NHTD, attn_mask=feed.bias_N11T, scale=scaling)


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    slot_cache: SlotCache | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function behind `attn_implementation="leanthink"`: writes keys and values into the cache, then attends.

    Args:
        module: the attention layer; its `layer_idx` says which slab is meant.
        query: [N, H*G, S, D], rotated already.
        key: [N, H, S, D], rotated already.
        value: [N, H, S, D].
        attention_mask: None; transformers builds no mask for an attention function it does not know.
        scaling: factor on the dot products; None for 1 / sqrt(D).
        dropout: must be 0, which is what `model.eval()` makes it.
        softcap: refused.
        slot_cache: the cache, told by `start_prefill` or `start_step` what this forward is.

    Returns:
        Outputs [N, S, H*G, D], and no weights.
    """
    if slot_cache is None or slot_cache.feed is None:
        raise UsageError(
            'attn_implementation="leanthink" works only inside leanthink.generate: load the model with "sdpa"'
        )
    if softcap is not None:
        raise UnsupportedModel("this model caps its attention scores (softcap), which the bounded cache cannot serve")
    if dropout:
        raise UsageError(f"the model is in training mode with attention dropout {dropout}: call model.eval() first")
    assert attention_mask is None
    assert isinstance(module.layer_idx, int)
    feed = slot_cache.feed
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    slot_cache.scaling = scaling
    slot_cache.write(module.layer_idx, query, key, value)
    if isinstance(feed, Decode):
        n, heads = key.shape[:2]
        keys = slot_cache.keys[module.layer_idx][:n, :, : feed.longest]
        values = slot_cache.values[module.layer_idx][:n, :, : feed.longest]
        packed_NHGD = query.reshape(n, heads, -1, query.shape[-1])
        out_NHGD = decode_attention(packed_NHGD, keys, values, feed, scaling)
        return out_NHGD.flatten(1, 2)[:, None], None
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, slot_attention)


@contextmanager
def switched_to(name: str, config: Any) -> Iterator[None]:
    """The model uses this registered attention inside, and whatever its owner chose outside."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def forward(model: Any, cache: SlotCache, ids_NS: Tensor, positions_NS: Tensor) -> tuple[Tensor, Tensor]:
    """Run the announced forward; returns states [N, F] (see `leanthink.states`) and logits [N, V] of the last token.

    The final hidden state is taken where the LM head receives it and the logits come out of the whole model, so
    whatever a model does after its head stays exact.
    """
    caught: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        with switched_to(NAME, model.config), middle_outputs(model) as middle:
            logits: Tensor = model(
                input_ids=ids_NS, position_ids=positions_NS, use_cache=False, logits_to_keep=1, slot_cache=cache
            ).logits
    except BaseException:
        cache.feed = None
        raise
    finally:
        hook.remove()
    cache.finish()
    return joined(caught[0][:, -1], middle[0][:, -1]), logits[:, -1]
