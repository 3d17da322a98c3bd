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
    return [scores[0] for scores in row["token_scores"]]


def horizon_slow(row: Row, horizons: tuple[int, ...]) -> list[Key]:
    keys: list[Key] = []
    for age, scores in zip(row["ages"], row["token_scores"], strict=True):
        reached = [channel for channel, horizon in enumerate(horizons) if horizon <= age]
        keys.append((0, scores[reached[-1]]) if reached else (1, -age))
    return keys


def snapkv_slow(row: Row, observation: int = 8, kernel: int = 7) -> list[Key]:
    votes = [0.0] * len(row["ages"])
    for queries, pinned in zip(row["queries"], row["pinned_log_sums"], strict=True):  # one query head of the group
        for index, query in enumerate(queries):
            query_age = observation - 1 - index
            seen = [slot for slot, age in enumerate(row["ages"]) if age >= query_age]
            logits = {slot: row["scaling"] * _dot(query, row["keys"][slot]) for slot in seen}
            total = sum(math.exp(logit) for logit in logits.values()) + math.exp(pinned[index])
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


def h2o_slow(row: Row) -> list[Key]:
    return list(row["accumulated_attention"])


def tova_slow(row: Row) -> list[Key]:
    layer, sums = row["layer's"], [0.0] * len(row["ages"])
    heads = range(len(layer["keys"]))
    for head in heads:
        for queries, pinned in zip(layer["queries"][head], layer["pinned_log_sums"][head], strict=True):
            weights = [
                math.exp(row["scaling"] * _dot(queries[-1], key)) if age >= 0 else 0.0
                for key, age in zip(layer["keys"][head], layer["ages"][head], strict=True)
            ]
            total = sum(weights) + math.exp(pinned[-1])
            for slot, weight in enumerate(weights):
                sums[slot] += weight / total / len(heads) / len(layer["queries"][head])
    return list(sums)


def keydiff_slow(row: Row) -> list[Key]:
    directions = [_direction(key) for key in row["keys"]]
    anchor = _direction([sum(numbers) / len(directions) for numbers in zip(*directions, strict=True)])
    return [-_dot(direction, anchor) for direction in directions]


def rkv_slow(row: Row, mix: float = 0.1, observation: int = 8, kernel: int = 7, alike: float = 0.5) -> list[Key]:
    ages, keys = row["ages"], row["keys"]
    old = [slot for slot, age in enumerate(ages) if age >= observation]
    votes = [0.0] * len(ages)
    for index in range(observation):
        asking = [queries[index] for queries in row["queries"]]
        if observation - 1 - index > row["next_position"] - row["prompt_tokens"]:
            continue  # a token of the prompt
        logits = {slot: max(row["scaling"] * _dot(query, keys[slot]) for query in asking) for slot in old}
        total = sum(math.exp(logit) for logit in logits.values())
        for slot in old:
            votes[slot] += math.exp(logits[slot]) / total / observation
    reach, size = kernel // 2, len(ages)
    importance = [max(votes[max(0, slot - reach) : slot + reach + 1]) for slot in range(size)]
    directions = [_direction(key) for key in keys]
    likeness = [0.0] * size
    for one in range(size):
        cosines = {other: _dot(directions[one], directions[other]) for other in range(size) if other != one}
        repeated = [other for other, cosine in cosines.items() if cosine > alike]
        for other, cosine in cosines.items():
            if other != max(repeated, default=None):
                likeness[other] += cosine / size
    total = sum(math.exp(number) for number in likeness)
    mixed = [mix * importance[slot] - (1 - mix) * math.exp(likeness[slot]) / total for slot in range(size)]
    return [(0, mixed[slot]) if slot in old else (1, -ages[slot]) for slot in range(size)]


def vase_slow(row: Row, large: float = 0.25, observation: int = 64, kernel: int = 5, num_sinks: int = 4) -> list[Key]:
    ages, size = row["ages"], len(row["ages"])
    old = [slot for slot, age in enumerate(ages) if age >= observation]
    ranges = {slot: max(row["values"][slot]) - min(row["values"][slot]) for slot in old}
    widest = sorted(old, key=lambda slot: (ranges[slot], slot), reverse=True)[: int(large * size)]
    weights = [0.0] * size
    for queries in row["queries"]:
        shares = [0.0] * size
        for index, query in enumerate(queries):
            if observation - 1 - index > row["next_position"] - row["prompt_tokens"]:
                continue
            exponentials = {slot: math.exp(row["scaling"] * _dot(query, row["keys"][slot])) for slot in old}
            for slot in old:
                shares[slot] += exponentials[slot] / sum(exponentials.values()) / observation
        reach = kernel // 2
        for slot in old:
            weights[slot] += sum(shares[max(0, slot - reach) : slot + reach + 1]) / kernel / len(row["queries"])
    keys: list[Key] = []
    for slot, position in enumerate(row["positions"]):
        draw = max(_uniform(row["seed"], row["next_position"], row["layer"], row["head"], position), 2.0**-25)
        if slot not in old:
            keys.append((3, -ages[slot]))
        elif position < num_sinks:
            keys.append((2, -position))
        elif slot in widest:
            keys.append((1, -widest.index(slot)))
        else:
            keys.append((0, math.log(max(weights[slot], 1e-30)) - math.log(-math.log(draw))))
    return keys


def sepllm_slow(row: Row, separators: tuple[int, ...], num_sinks: int = 4) -> list[Key]:
    keys: list[Key] = []
    for position, age, token_id in zip(row["positions"], row["ages"], row["token_ids"], strict=True):
        if position < num_sinks:
            keys.append((2, -position))
        else:
            keys.append((1 if token_id in separators else 0, -age))
    return keys


def oracle_slow(row: Row, labels: list[list[float]], horizons: tuple[int, ...]) -> list[Key]:
    keys: list[Key] = []
    for position, age in zip(row["positions"], row["ages"], strict=True):
        reached = [channel for channel, horizon in enumerate(horizons) if horizon <= age]
        index = position - row["prompt_tokens"]
        if not reached:
            keys.append((1, -age))
        else:
            keys.append((0, labels[index][reached[-1]] if index < len(labels) else -1.0))
    return keys


def _direction(vector: list[float]) -> list[float]:
    length = math.sqrt(_dot(vector, vector))
    return [number / length for number in vector]
