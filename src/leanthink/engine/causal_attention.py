"""Attention of a piece of a sequence to itself and what precedes it: within a window, beside sinks, under any mask.

A sink is a logit that takes part in the softmax of a query head and has no value: gpt-oss learns one for each head.

B sequences   A query heads   H kv heads   S tokens that ask   T tokens that are seen   R rows of a block   D head dim
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SCORES = 1 << 24  # numbers of a block's scores, about


def causal_attention(
    q_BASD: Tensor,
    k_BHTD: Tensor,
    v_BHTD: Tensor,
    scaling: float,
    *,
    window: int | None = None,
    sinks_A: Tensor | None = None,
) -> Tensor:
    """Each token over itself and what precedes it, [B, A, S, D]; a block of rows at a time, so no S x T is held.

    Args:
        q_BASD: of the last S of T tokens.
        k_BHTD: keys of all of them.
        v_BHTD: and values.
        scaling: factor on the dot products.
        window: how many tokens each one sees, itself included; None: all.
        sinks_A: of each query head; None: there are none.
    """
    B, A, S, _ = q_BASD.shape
    T = k_BHTD.shape[2]
    if sinks_A is None and S == T and (window is None or window >= T):
        return F.scaled_dot_product_attention(q_BASD, k_BHTD, v_BHTD, is_causal=True, scale=scaling, enable_gqa=True)
    reach = T if window is None else window
    rows = max(1, min(SCORES // (B * A * min(T, 2 * reach)), max(reach, 128)))
    outs = []
    for begin in range(T - S, T, rows):
        end = min(begin + rows, T)
        seen = slice(max(0, begin + 1 - reach), end)
        age_RT = torch.arange(begin, end, device=q_BASD.device)[:, None] - torch.arange(
            seen.start, end, device=q_BASD.device
        )
        sees_RT = (age_RT >= 0) & (age_RT < reach)
        asked_BARD = q_BASD[:, :, begin - (T - S) : end - (T - S)]
        outs.append(masked_attention(asked_BARD, k_BHTD[:, :, seen], v_BHTD[:, :, seen], sees_RT, scaling, sinks_A))
    return torch.cat(outs, dim=2)


def masked_attention(
    q_BARD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, sees: Tensor, scaling: float, sinks_A: Tensor | None = None
) -> Tensor:
    """Each token over those that it sees, [B, A, R, D]; `sees` is bool and expands to [B, A, R, T]."""
    # Not enable_gqa: together with a mask it falls back to the slowest kernel on a GPU.
    group = q_BARD.shape[1] // k_BHTD.shape[1]
    keys, values = (x.repeat_interleave(group, dim=1) for x in (k_BHTD, v_BHTD))
    if sinks_A is None:
        return F.scaled_dot_product_attention(q_BARD, keys, values, attn_mask=sees, scale=scaling)
    scores = ((q_BARD @ keys.mT) * scaling).masked_fill(~sees, -torch.inf)
    return beside_sinks(scores, sinks_A[:, None]) @ values


def beside_sinks(scores: Tensor, sinks: Tensor) -> Tensor:
    """Softmax of scores [..., R, T] and sinks, which expand to [..., R]; the sinks' own shares are left out."""
    together = torch.cat([scores, sinks.to(scores.dtype).expand(scores.shape[:-1])[..., None]], dim=-1)
    return together.softmax(dim=-1)[..., :-1]
