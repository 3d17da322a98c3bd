"""Kendall's tau-b by comparing all pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations


def kendall_tau_slow(predicted: Sequence[float], truth: Sequence[float]) -> float | None:
    """Concordant less discordant pairs, over the geometric mean of the pairs untied in each sequence."""
    difference = untied_x = untied_y = 0
    for i, j in combinations(range(len(truth)), 2):
        x = (predicted[i] > predicted[j]) - (predicted[i] < predicted[j])
        y = (truth[i] > truth[j]) - (truth[i] < truth[j])
        difference += x * y
        untied_x += x != 0
        untied_y += y != 0
    return difference / math.sqrt(untied_x * untied_y) if untied_x and untied_y else None
