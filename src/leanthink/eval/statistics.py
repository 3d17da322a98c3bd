"""Intervals by the paired bootstrap over problems, p-values by flipping signs, and what many comparisons make of them.

A statistic is a function of how often each problem was drawn, weights_DP [draws, problems]; sums and their quotients
are products with it. All samples of a problem go with it, so that they never count as independent.

P problems   D draws   C comparisons
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from leanthink.utils.errors import UsageError

DRAWS = 10_000
FLIPS = 100_000  # of signs, so that a p-value can be small enough for hundreds of comparisons
LEVEL = 0.95
Statistic = Callable[[Tensor], Tensor]
Name = TypeVar("Name")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic of all problems and the bounds of its 95 % interval; None where it is not finite."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def bounds(self) -> list[float | None]:
        """Value, lower and upper bound, as result files have them."""
        return [self.value, self.low, self.high]


@lru_cache(maxsize=4)
def draws(problems: int, count: int = DRAWS, seed: int = 0) -> Tensor:
    """How often each problem is drawn in each draw, [D, P] float64: the same for the same arguments."""
    if problems < 1:
        raise UsageError("there is no problem to draw: give at least one")
    generator = torch.Generator().manual_seed(seed)
    drawn_DP = torch.randint(problems, (count, problems), generator=generator)
    ones_DP = torch.ones(count, problems, dtype=torch.float64)
    return torch.zeros_like(ones_DP).scatter_add_(1, drawn_DP, ones_DP)


def estimate(statistic: Statistic, problems: int, seed: int = 0) -> Estimate:
    """The statistic and its 95 % percentile interval. Draws for which it is not finite count as its largest values."""
    all_1P = torch.ones(1, problems, dtype=torch.float64)
    drawn_D = statistic(draws(problems, seed=seed)).nan_to_num(nan=torch.inf, posinf=torch.inf).sort().values
    tail = (1 - LEVEL) / 2
    at = [round(share * (len(drawn_D) - 1)) for share in (tail, 1 - tail)]
    numbers = [float(statistic(all_1P)[0]), *(float(drawn_D[index]) for index in at)]
    value, low, high = (number if torch.isfinite(torch.tensor(number)) else None for number in numbers)
    return Estimate(value=value, low=low, high=high)


def p_values(differences_CP: Tensor, seed: int = 0) -> list[float]:
    """Two-sided p-value of each row's mean, by a paired randomisation test; at least 1 / (FLIPS + 1).

    Were two policies equally good, each problem's difference could as well have had the other sign: p is the share of
    random signs that bring the mean at least as far from 0 as it is. Exact for any number of problems, where a
    bootstrap of few problems finds too much significant.
    """
    generator = torch.Generator().manual_seed(seed)
    differences_PC = differences_CP.double().T
    observed_C = differences_PC.sum(dim=0).abs() - 1e-9
    extreme_C = torch.ones_like(observed_C)  # the signs as they are count, too
    for _ in range(FLIPS // DRAWS):
        signs_DP = torch.randint(2, (DRAWS, len(differences_PC)), generator=generator).double() * 2 - 1
        extreme_C += ((signs_DP @ differences_PC).abs() >= observed_C).sum(dim=0)
    return [float(p) for p in extreme_C / (FLIPS // DRAWS * DRAWS + 1)]


def mean(values_P: Tensor) -> Statistic:
    """The mean over problems."""
    return lambda weights_DP: weights_DP @ values_P.double() / weights_DP.sum(dim=1)


def ratio(tops_P: Tensor, bottoms_P: Tensor) -> Statistic:
    """The sum of the one over the sum of the other."""
    return lambda weights_DP: (weights_DP @ tops_P.double()) / (weights_DP @ bottoms_P.double())


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """P-values adjusted for all comparisons of a family by Holm's step-down rule, which bounds the family-wise error.

    S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979).
    """
    adjusted: dict[Name, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}
