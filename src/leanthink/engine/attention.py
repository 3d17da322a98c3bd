"""Attention over the bounded cache, plugged into transformers, and the forward passes that use it.

N rows   H kv heads   G query heads per kv head   D head dim   S tokens fed   T slots read   F hidden state size
V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface

from leanthink.engine.cache import SlotCache
from leanthink.engine.causal_attention import beside_sinks, causal_attention
from leanthink.engine.forward_batch import DecodeBatch, MixedBatch, PrefillBatch
from leanthink.engine.hidden_states import joined, middle_outputs
from leanthink.engine.layer_kv import LayerKV
from leanthink.engine.sdpa import for_any_length
from leanthink.utils.errors import UnsupportedModel, UsageError

NAME = "leanthink"


def decode_attention(
    q_NHGD: Tensor,
    held: LayerKV,
    batch: DecodeBatch,
    scaling: float,
    sinks_HG: Tensor | None = None,
) -> Tensor:
    """One query token per row over the slots its row holds, [N, H, G, D].

    On a GPU by Triton. Elsewhere by packed SDPA, one call over all allocations of a fixed size, else one call a row:
    the query heads that share a kv head are its G "tokens", so keys and values are read once and not repeated. Sinks
    are as of `leanthink.engine.causal_attention`; SDPA does not know them.
    """
    if q_NHGD.is_cuda:
        from leanthink.engine.kernels import decode

        pairs, sms = q_NHGD.shape[0] * q_NHGD.shape[1], multiprocessors(q_NHGD.device)
        splits = decode.splits_for(pairs, batch.largest, sms, fp8=held.fp8 is not None)
        how: dict[str, Any] = {"splits": splits, "sinks_HG": sinks_HG, "fp8": held.fp8}
        return decode.decode_attention(
            q_NHGD, held.keys_HTD, held.values_HTD, batch.starts_N, batch.last_N, scaling, **how
        )
    if batch.bias_U11T is None:
        rows = zip(q_NHGD, batch.starts_N.tolist(), batch.last_N.tolist(), strict=True)
        parts = [(q_HGD, held.kv_PHTD[:, :, start : start + last + 1]) for q_HGD, start, last in rows]
        each = [(q_HGD, held.attended(part_PHSD, q_NHGD.dtype)) for q_HGD, part_PHSD in parts]
        return torch.stack([_attend(q_HGD, kv_PHSD, None, scaling, sinks_HG) for q_HGD, kv_PHSD in each])
    U, size = len(batch.bias_U11T), batch.largest
    slabs_PHTD = held.kv_PHTD[:, :, : U * size]
    slabs_PHUTD = slabs_PHTD.reshape(2, -1, U, size, slabs_PHTD.shape[-1])[:, :, :, : batch.longest]
    slabs_PUHTD = held.attended(slabs_PHUTD, q_NHGD.dtype).transpose(1, 2)
    q_UHGD = q_NHGD
    if batch.allocation_N is not None:
        q_UHGD = q_NHGD.new_zeros(U, *q_NHGD.shape[1:]).index_copy_(0, batch.allocation_N, q_NHGD)
    out_UHGD = _attend(q_UHGD, slabs_PUHTD, batch.bias_U11T, scaling, sinks_HG)
    return out_UHGD if batch.allocation_N is None else out_UHGD[batch.allocation_N]


def _attend(query: Tensor, kv: Tensor, bias: Tensor | None, scaling: float, sinks_HG: Tensor | None) -> Tensor:
    """Queries [..., H, G, D] over keys and values [2, ..., H, T, D]."""
    keys, values = kv.unbind()
    if sinks_HG is None:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=scaling)
    scores = (query @ keys.mT) * scaling
    out: Tensor = beside_sinks(scores if bias is None else scores + bias, sinks_HG) @ values
    return out


@cache
def multiprocessors(device: torch.device) -> int:
    """How many of them the GPU has."""
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def mixed_attention(q_NAD: Tensor, slot_cache: SlotCache, layer: int, batch: MixedBatch, scaling: float) -> Tensor:
    """The chunks' tokens as of `packed_attention`, and behind them the rows' as of `decode_attention`, [N, A, D]."""
    (prompts, _), (rows, fed) = batch.parts
    out_NAD, held = packed_attention(q_NAD, slot_cache, layer, prompts, scaling), slot_cache.layer(layer)
    q_NHGD = q_NAD[fed].view(len(rows.last_N), len(held.keys_HTD), -1, q_NAD.shape[-1])
    out_NAD[fed] = decode_attention(q_NHGD, held, rows, scaling).flatten(1, 2)
    return out_NAD


def packed_attention(
    q_SAD: Tensor,
    slot_cache: SlotCache,
    layer: int,
    batch: PrefillBatch,
    scaling: float,
    sinks_A: Tensor | None = None,
) -> Tensor:
    """Each chunk's tokens over the slots of its own allocation up to themselves, [S, A, D] for A = H*G query heads.

    One kernel for all chunks where the batch has tables for it, else a call for each. There may be more queries than
    the chunks have tokens: what is returned for these is left to the caller to write.
    """
    if batch.blocks_B2 is None or sinks_A is not None:
        query = q_SAD.transpose(0, 1)[None]
        return prefill_attention(query, slot_cache, layer, batch, scaling, sinks_A)[0].transpose(0, 1)
    from leanthink.engine.kernels import prefill

    kv = slot_cache.layer(layer)
    return prefill.prefill_attention(q_SAD, kv.keys_HTD, kv.values_HTD, batch, scaling, kv.fp8)


def prefill_attention(
    query: Tensor,
    slot_cache: SlotCache,
    layer: int,
    batch: PrefillBatch,
    scaling: float,
    sinks_A: Tensor | None = None,
) -> Tensor:
    """The same by PyTorch, a call for each chunk, [1, H*G, S, D]."""
    outs, kv = torch.empty_like(query), slot_cache.layer(layer)
    for chunk, (_, fed) in zip(batch.chunks, batch.spans, strict=True):
        q = query[:, :, fed]
        held = slice(chunk.allocation.start, chunk.allocation.start + chunk.done + chunk.tokens)
        keys, values = kv.attended(kv.kv_PHTD[:, :, held], query.dtype)[:, None]
        if chunk.done == 0 or sinks_A is not None:
            out = causal_attention(q, keys, values, scaling, sinks_A=sinks_A)
        else:
            # Not enable_gqa: together with a mask it falls back to the slowest kernel on a GPU.
            group = query.shape[1] // keys.shape[1]
            keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
            mask = causal_lower_right(chunk.tokens, chunk.done + chunk.tokens)
            out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scaling)
        outs[:, :, fed] = out
    return outs


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    slot_cache: SlotCache | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function behind `attn_implementation="leanthink"`: writes keys and values into the cache, then attends.

    Args:
        module: the attention layer; its `layer_idx` says whose slots are meant.
        query: [N, H*G, S, D], rotated already; S = 1 when decoding, N = 1 when prompts are fed.
        key: [N, H, S, D], rotated already.
        value: [N, H, S, D].
        attention_mask: None; transformers builds no mask for an attention function it does not know.
        scaling: factor on the dot products; None for 1 / sqrt(D).
        dropout: must be 0, which is what `model.eval()` makes it.
        softcap: refused.
        sliding_window: given by layers that have one; how long it is the cache knows.
        s_aux: sinks, one for each query head, where the model has them.
        slot_cache: the cache, told by `start_prefill` or `start_step` what this forward is.

    Returns:
        Outputs [N, S, H*G, D], and no weights.
    """
    if slot_cache is None or slot_cache.forward_batch is None:
        raise UsageError(
            'attn_implementation="leanthink" works only inside leanthink.generate: load the model with "sdpa"'
        )
    if softcap is not None:
        raise UnsupportedModel("this model caps its attention scores (softcap), which the bounded cache cannot serve")
    if dropout:
        raise UsageError(f"the model is in training mode with attention dropout {dropout}: call model.eval() first")
    assert attention_mask is None
    assert isinstance(module.layer_idx, int)
    layer, batch = slot_cache.shape.in_slots(module.layer_idx), slot_cache.forward_batch
    assert not isinstance(batch, MixedBatch), "transformers' modules feed prompts or rows"
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layer is None:
        assert sliding_window is not None
        return _window_attention(module.layer_idx, query, key, value, slot_cache, scaling, s_aux), None
    slot_cache.scaling = scaling
    if s_aux is not None:
        slot_cache.sinks[layer] = s_aux
    slot_cache.write(layer, query, key, value)
    if isinstance(batch, PrefillBatch):
        q_SAD = query[0].transpose(0, 1)
        return packed_attention(q_SAD, slot_cache, layer, batch, scaling, s_aux)[None].contiguous(), None
    return _decode(query, slot_cache.layer(layer), batch, scaling, s_aux), None


def _window_attention(
    model_layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slot_cache: SlotCache,
    scaling: float,
    sinks_A: Tensor | None,
) -> Tensor:
    """What `slot_attention` returns for a layer with a sliding window."""
    windows, batch = slot_cache.windows, slot_cache.forward_batch
    assert windows is not None
    if isinstance(batch, PrefillBatch):
        return windows.prefill(model_layer, batch, (query, key, value), scaling, sinks_A).transpose(1, 2).contiguous()
    assert isinstance(batch, DecodeBatch)
    assert batch.windows is not None
    held = windows.layer(model_layer)
    held.append(batch.windows, key[:, :, 0], value[:, :, 0])
    return _decode(query, held, batch.windows, scaling, sinks_A)


def _decode(query: Tensor, held: LayerKV, batch: DecodeBatch, scaling: float, sinks_A: Tensor | None) -> Tensor:
    """`decode_attention` as transformers has it: queries [N, H*G, 1, D], outputs [N, 1, H*G, D]."""
    kv_heads = held.kv_PHTD.shape[1]
    packed_NHGD = query.reshape(len(query), kv_heads, -1, query.shape[-1])
    sinks_HG = None if sinks_A is None else sinks_A.view(kv_heads, -1)
    return decode_attention(packed_NHGD, held, batch, scaling, sinks_HG).flatten(1, 2)[:, None]


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


def decode(model: Any, slot_cache: SlotCache, ids_N: Tensor, positions_N1: Tensor) -> tuple[Tensor, Tensor]:
    """Feed one token to each row; returns hidden states [N, F] (see `engine.hidden_states`) and logits [N, V].

    The final hidden state is taken where the LM head receives it and the logits come out of the whole model, so
    whatever a model does after its head stays exact.
    """
    caught: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        with _announced(model, slot_cache), middle_outputs(model) as middle, _states(model, slot_cache) as given:
            logits: Tensor = model(
                input_ids=ids_N[:, None], position_ids=positions_N1, slot_cache=slot_cache, **given
            ).logits
    finally:
        hook.remove()
    return joined(caught[0][:, -1], middle[0][:, -1]), logits[:, -1]


def prefill(model: Any, slot_cache: SlotCache, ids_1S: Tensor, positions_1S: Tensor) -> None:
    """Feed chunks of prompts, announced by `start_prefill`: only their keys and values, and states, are wanted."""
    with _announced(model, slot_cache), for_any_length(), _states(model, slot_cache) as given:
        model.base_model(input_ids=ids_1S, position_ids=positions_1S, slot_cache=slot_cache, **given)


def _states(model: Any, slot_cache: SlotCache) -> AbstractContextManager[dict[str, Any]]:
    """What else transformers' forward is given, so that linear and state-space layers go on from their states.

    A step that is captured as a graph cannot be taken back: graphs raise nothing when they are replayed.
    """
    states, batch = slot_cache.recurrent, slot_cache.forward_batch
    if states is None:
        return nullcontext({"use_cache": False})
    if isinstance(batch, DecodeBatch):
        assert batch.states_N is not None
        return states.lent(model, batch.states_N, undoable=batch.longest > 0)
    assert isinstance(batch, PrefillBatch)
    (chunk,) = batch.chunks
    return states.lent(model, slot_cache.indices([chunk.allocation.state_index]), fresh=chunk.done == 0)


@contextmanager
def _announced(model: Any, slot_cache: SlotCache) -> Iterator[None]:
    """The announced forward, on our attention."""
    with slot_cache.accounted(), switched_to(NAME, model.config):
        yield
