"""Attention labels from the whole N x N attention of every layer and head, by plain loops over pairs of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch


def label_trace_slow(
    model: Any, token_ids: Sequence[int], prompt_tokens: int, thought_end: int, horizons: Sequence[int]
) -> list[list[float]]:
    """[T][1 + H]: mean attention from the answer rows (NaN without any), then the largest from each distance on."""
    previous = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            output = model(input_ids=torch.tensor([list(token_ids)]), use_cache=False, output_attentions=True)
    finally:
        model.set_attn_implementation(previous)
    heads = [head.tolist() for layer in output.attentions for head in layer[0].float()]
    N = len(token_ids)
    rows = []
    for j in range(prompt_tokens, thought_end):
        answer = [head[t][j] for head in heads for t in range(thought_end + 1, N)]
        row = [sum(answer) / len(answer) if answer else math.nan]
        for distance in horizons:
            row.append(max((head[t][j] for head in heads for t in range(N) if t - j >= distance), default=0.0))
        rows.append(row)
    return rows
