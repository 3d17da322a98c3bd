"""Attention labels from the whole N x N attention of every layer and head, by plain loops over pairs of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch


def held(model: Any, layers: Sequence[Any]) -> list[Any]:
    """Those of these layers, all of the model's or those with attention, that hold slots."""
    types = getattr(model.config, "layer_types", None) or ["full_attention"] * len(layers)
    if len(layers) < len(types):
        types = [layer_type for layer_type in types if layer_type in ("full_attention", "hybrid", "sliding_attention")]
    return [layer for layer, found in zip(layers, types, strict=True) if found in ("full_attention", "hybrid")]


def attention_slow(model: Any, token_ids: Sequence[int]) -> list[list[list[float]]]:
    """The attention of every head of every layer that holds slots, layer by layer: [heads][N][N]."""
    previous = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            output = model(input_ids=torch.tensor([list(token_ids)]), use_cache=False, output_attentions=True)
    finally:
        model.set_attn_implementation(previous)
    return [head.tolist() for layer in held(model, output.attentions) for head in layer[0].float()]


def label_trace_slow(
    model: Any,
    token_ids: Sequence[int],
    prompt_tokens: int,
    thought_end: int,
    horizons: Sequence[int],
    closing_tokens: int = 1,
) -> list[list[float]]:
    """[T][1 + H]: mean attention from the answer rows (NaN without any), then the largest from each distance on."""
    heads = attention_slow(model, token_ids)
    return label_heads_slow(heads, prompt_tokens, thought_end, horizons, closing_tokens)


def values_slow(model: Any, token_ids: Sequence[int]) -> list[list[list[float]]]:
    """The values of every kv head, layer by layer: [kv heads][N][D]."""
    with torch.no_grad():
        cache = model(input_ids=torch.tensor([list(token_ids)]), use_cache=True).past_key_values
    return [head.tolist() for layer in held(model, cache.layers) for head in layer.values[0].float()]


def label_sets_slow(
    model: Any, token_ids: Sequence[int], prompt_tokens: int, thought_end: int, horizons: Sequence[int], sets: int
) -> list[list[list[float]]]:
    """[X][T][H] of `sets` equal runs of kv heads, layer by layer: how much their outputs lose without each token."""
    heads, values = attention_slow(model, token_ids), values_slow(model, token_ids)
    group, of_set = len(heads) // len(values), len(values) // sets
    squares = [[sum(number * number for number in value) for value in of_head] for of_head in values]
    found = []
    for x in range(sets):
        rows = []
        for j in range(prompt_tokens, thought_end):
            row = []
            for distance in horizons:
                read = 0.0
                for head in range(x * of_set, (x + 1) * of_set):
                    thought = squares[head][prompt_tokens:thought_end]
                    norm = squares[head][j] / (sum(thought) / len(thought))
                    for attention in heads[head * group : (head + 1) * group]:
                        read += sum(attention[t][j] ** 2 * norm for t in range(len(attention)) if t - j >= distance)
                row.append(read / (1 + read))
            rows.append(row)
        found.append(rows)
    return found


def label_heads_slow(
    heads: list[list[list[float]]],
    prompt_tokens: int,
    thought_end: int,
    horizons: Sequence[int],
    closing_tokens: int = 1,
) -> list[list[float]]:
    """The same from the attention of some heads, [heads][N][N]."""
    N = len(heads[0])
    rows = []
    for j in range(prompt_tokens, thought_end):
        answer = [head[t][j] for head in heads for t in range(thought_end + closing_tokens, N)]
        row = [sum(answer) / len(answer) if answer else math.nan]
        for distance in horizons:
            row.append(max((head[t][j] for head in heads for t in range(N) if t - j >= distance), default=0.0))
        rows.append(row)
    return rows
