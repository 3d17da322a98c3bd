"""The reference implementation of `leanthink.rl.rewards`: one response at a time, in plain Python numbers."""

from __future__ import annotations

import math


def reward_slowly(
    lengths: list[int],
    correct: list[float],
    index: int,
    batch_pass_ratio: float,
    *,
    alpha: float,
    length_reward_mode: str,
    keep_all_correct: bool,
    overlong: tuple[int, int, float] | None,
    target_length: int | None = None,
) -> float:
    """The whole reward of response `index` of one prompt; NaN if it was not graded."""
    if math.isnan(correct[index]):
        return math.nan
    graded = [i for i, verdict in enumerate(correct) if not math.isnan(verdict)]
    ratio = sum(correct[i] for i in graded) / len(graded)
    reward = 1.0 if correct[index] else -1.0
    mixed = 0 < ratio < 1 or (keep_all_correct and ratio == 1)
    if length_reward_mode != "none" and correct[index] and mixed:
        counted = [max(length, target_length or 0) for length in lengths]
        mean = sum(counted[i] for i in graded) / len(graded)
        deviation = math.sqrt(sum((counted[i] - mean) ** 2 for i in graded) / len(graded))
        z = (counted[index] - mean) / deviation if deviation else 0.0
        dual = 1.0 if ratio == 1 else ratio - batch_pass_ratio
        beta = {"dual": dual, "penalty": 1.0, "bonus": -1.0}[length_reward_mode]
        reward += alpha / (1 + math.exp(beta * z))
    if overlong is not None:
        max_length, buffer, factor = overlong
        reward += min(-(lengths[index] - (max_length - buffer)) / buffer * factor, 0.0)
    return reward
