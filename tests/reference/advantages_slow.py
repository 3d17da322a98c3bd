"""The reference implementation of the advantages that verl gets: one response at a time, in plain Python numbers."""

from __future__ import annotations

import math
from typing import Any

from leanthink.integrations.verl.settings import Settings
from reference.rewards_slow import reward_slowly


def advantage_slowly(
    row: int, keys: list[str], tokens: list[int], right: list[bool], average: float, settings: Settings
) -> float:
    """The advantage of one response; `tokens` 0 marks a padding row."""
    if not tokens[row]:
        return 0.0
    group = [other for other, key in enumerate(keys) if key == keys[row] and tokens[other]]
    lengths, correct = [tokens[other] for other in group], [float(right[other]) for other in group]
    overlong = None if settings.buffer is None else (settings.max_length, settings.buffer, settings.overlong_factor)
    options: dict[str, Any] = {
        "alpha": settings.alpha,
        "length_reward_mode": settings.length_reward_mode,
        "overlong": overlong,
        "target_length": settings.target_length,
    }
    rewards = [
        reward_slowly(lengths, correct, i, average, keep_all_correct=settings.all_correct_weight > 0, **options)
        for i in range(len(group))
    ]
    if not any(correct):
        return 0.0
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / max(len(rewards) - 1, 1))
    share = settings.all_correct_weight if all(correct) else 1.0
    return share * (rewards[group.index(row)] - mean) / (deviation + 1e-6)


def observed_slowly(keys: list[str], tokens: list[int], right: list[bool]) -> float:
    """The mean over prompts of the share of their responses that are right."""
    rows = [row for row, count in enumerate(tokens) if count]
    ratios = []
    for key in dict.fromkeys(keys[row] for row in rows):
        verdicts = [right[row] for row in rows if keys[row] == key]
        ratios.append(sum(verdicts) / len(verdicts))
    return sum(ratios) / len(ratios)
