"""How each policy ranks the slots of one row (and one head), in plain Python numbers.

Each function returns one sort key for each slot, oldest slot first; a higher key stays.
"""

from __future__ import annotations

import math
from typing import Any

Key = float | tuple[int, float]
Row = dict[str, Any]  # one row of Slots as lists and numbers; per head also `layer` and `head`
MASK = 2**64 - 1


def window_slow(row: Row) -> list[Key]:
    return [-age for age in row["ages"]]


def sinks_slow(row: Row, num_sinks: int = 4) -> list[Key]:
    keys: list[Key] = []
    for position, age in zip(row["positions"], row["ages"], strict=True):
        thought_index = position - row["prompt_tokens"]
        keys.append((1, -thought_index) if thought_index < num_sinks else (0, -age))
    return keys


def random_slow(row: Row) -> list[Key]:
    return [_uniform(row["seed"], row["next_position"], position) for position in row["positions"]]


def random_heads_slow(row: Row) -> list[Key]:
    counters = (row["seed"], row["next_position"], row["layer"], row["head"])
    return [_uniform(*counters, position) for position in row["positions"]]


def dynts_slow(row: Row) -> list[Key]:
    return [stamp[0] for stamp in row["stamps"]]


def horizon_slow(row: Row, horizons: tuple[int, ...]) -> list[Key]:
    keys: list[Key] = []
    for age, stamp in zip(row["ages"], row["stamps"], strict=True):
        reached = [channel for channel, horizon in enumerate(horizons) if horizon <= age]
        keys.append((0, stamp[reached[-1]]) if reached else (1, -age))
    return keys


def snapkv_slow(row: Row, observation: int = 8, kernel: int = 7) -> list[Key]:
    votes = [0.0] * len(row["ages"])
    for queries in row["queries"]:  # one query head of the group
        for index, query in enumerate(queries):
            query_age = observation - 1 - index
            seen = [slot for slot, age in enumerate(row["ages"]) if age >= query_age]
            logits = {slot: row["scaling"] * _dot(query, row["keys"][slot]) for slot in seen}
            total = sum(math.exp(logit) for logit in logits.values())
            for slot, logit in logits.items():
                votes[slot] += math.exp(logit) / total / observation / len(row["queries"])
    reach = kernel // 2
    return [max(votes[max(0, slot - reach) : slot + reach + 1]) for slot in range(len(votes))]


def _dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def _uniform(*counters: int) -> float:
    """Folds the counters through splitmix64's finaliser; 24 bits of the result, in [0, 1)."""
    step, mixed = 0x9E3779B97F4A7C15, 0
    for counter in counters:
        bits = (mixed * step + counter + step) & MASK
        bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
        mixed = bits ^ (bits >> 31)
    return (mixed >> 40) / 2**24
