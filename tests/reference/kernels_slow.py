"""Reference implementations of the kernels that work on the cache: one slot, row and head at a time.

N rows   R chosen rows   L layers   P = 2: keys, values   H kv heads   G query heads per kv head   D head dim
T slots of the cache   K kept slots
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.llama import modeling_llama

from leanthink.engine.forward_batch import PrefillBatch, PromptChunk, prefill_batch
from leanthink.engine.slot_allocator import Allocation


def decode_attention_slow(
    q_NHGD: Tensor,
    keys_HTD: Tensor,
    values_HTD: Tensor,
    starts_N: Tensor,
    last_N: Tensor,
    scaling: float,
    sinks_HG: Tensor | None = None,
) -> Tensor:
    """Softmax over the slots that each row holds, and over the sink of its query head, in float64."""
    out_NHGD = torch.zeros_like(q_NHGD, dtype=torch.float64)
    for row, (start, last) in enumerate(zip(starts_N.tolist(), last_N.tolist(), strict=True)):
        for head in range(len(keys_HTD)):
            held = slice(start, start + last + 1)
            keys, values = keys_HTD[head, held].double(), values_HTD[head, held].double()
            for group in range(q_NHGD.shape[2]):
                scores = keys @ q_NHGD[row, head, group].double() * scaling
                if sinks_HG is not None:
                    scores = torch.cat([scores, sinks_HG[head, group, None].double()])
                out_NHGD[row, head, group] = scores.softmax(0)[: last + 1] @ values
    return out_NHGD


def prefill_attention_slow(
    q_SAD: Tensor, keys_HTD: Tensor, values_HTD: Tensor, chunks: list[tuple[int, int, int]], scaling: float
) -> Tensor:
    """Softmax over the slots up to each token's own, in float64; chunks are (tokens, first slot, slots before)."""
    outs, group = [], q_SAD.shape[1] // len(keys_HTD)
    for q, (tokens, start, done) in zip(q_SAD.split([tokens for tokens, _, _ in chunks]), chunks, strict=True):
        held = slice(start, start + done + tokens)
        keys, values = (kv[:, held].double().repeat_interleave(group, 0) for kv in (keys_HTD, values_HTD))
        unseen = torch.ones(tokens, done + tokens, dtype=torch.bool, device=q.device).triu(done + 1)
        logits = q.double().transpose(0, 1) @ keys.transpose(1, 2) * scaling
        outs.append((logits.masked_fill(unseen, -torch.inf).softmax(-1) @ values).transpose(0, 1))
    return torch.cat(outs)


def batch_of(placed: list[tuple[int, int, int]], kv: Tensor, group: int | None) -> PrefillBatch:
    """The forward over chunks of (tokens, first slot, slots before)."""
    chunks = [
        PromptChunk(allocation=Allocation(start=start, size=done + tokens), done=done, tokens=tokens)
        for tokens, start, done in placed
    ]
    return prefill_batch(chunks, kv[None], group)


def append_slow(keys_HTD: Tensor, values_HTD: Tensor, write_N: Tensor, key_NHD: Tensor, value_NHD: Tensor) -> None:
    """One assignment per row and head."""
    for row, slot in enumerate(write_N.tolist()):
        for head in range(len(keys_HTD)):
            keys_HTD[head, slot] = key_NHD[row, head]
            values_HTD[head, slot] = value_NHD[row, head]


def place_slow(
    qkv_NX: Tensor,
    keys_HTD: Tensor,
    values_HTD: Tensor,
    write_N: Tensor,
    *,
    norms: tuple[Tensor, Tensor] | None,
    angles: tuple[Tensor, Tensor] | None,
    eps: float,
) -> Tensor:
    """With transformers' own modules and functions."""
    H, D = len(keys_HTD), keys_HTD.shape[-1]
    heads_NXD = qkv_NX.view(len(qkv_NX), -1, D)
    q_NAD, k_NHD, v_NHD = heads_NXD[:, : -2 * H], heads_NXD[:, -2 * H : -H], heads_NXD[:, -H:]
    if norms is not None:
        q_NAD, k_NHD = (_normed(x, weight, eps) for x, weight in zip((q_NAD, k_NHD), norms, strict=True))
    if angles is not None:
        cos_N1D, sin_N1D = (angle_ND[:, None] for angle_ND in angles)
        q_NA1D, k_NH1D = modeling_llama.apply_rotary_pos_emb(q_NAD[:, :, None], k_NHD[:, :, None], cos_N1D, sin_N1D)
        q_NAD, k_NHD = q_NA1D[:, :, 0], k_NH1D[:, :, 0]
    append_slow(keys_HTD, values_HTD, write_N, k_NHD, v_NHD)
    return q_NAD


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    stock = modeling_llama.LlamaRMSNorm(x.shape[-1], eps=eps)
    stock.weight.data = weight
    normed: Tensor = stock(x).detach()
    return normed


def rows_at(first_R: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows whose slots behind two pinned ones begin here, as `compact` takes them: rows, starts, pinned, lengths."""
    rows_R = torch.arange(len(first_R), device=first_R.device)
    starts_N, pinned_N = torch.empty_like(first_R), torch.full_like(first_R, 2)
    starts_N[rows_R.flip(0)] = first_R - 2
    return rows_R.flip(0), starts_N, pinned_N, torch.zeros_like(first_R)


def compact_slow(kv_LPHTD: Tensor, first_R: Tensor, kept: Tensor) -> None:
    """A copy of each row's slots in the new order, layer by layer and head by head, then written behind `first`."""
    L, P, H, _, _ = kv_LPHTD.shape
    for row, first in enumerate(first_R.tolist()):
        for layer in range(L):
            for head in range(H):
                chosen = kept[row] if kept.dim() == 2 else kept[row, layer, head]
                for part in range(P):
                    moved = kv_LPHTD[layer, part, head, first + chosen]
                    kv_LPHTD[layer, part, head, first : first + len(chosen)] = moved
