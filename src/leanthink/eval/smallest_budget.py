"""The end of a sweep over budgets: the smallest one that is within a point of the full cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leanthink.eval.aggregated_results import AggregatedResults
from leanthink.eval.compare import full_of
from leanthink.eval.configurations import FULL
from leanthink.eval.statistics import Estimate, estimate, mean
from leanthink.eval.tables import shown, slots

POINTS = 1.0  # of Pass@1


@dataclass(frozen=True, kw_only=True)
class SmallestBudget:
    """Of one policy on one benchmark.

    Attributes:
        benchmark, policy: which.
        found: the smallest budget tried that loses at most POINTS; None: none does.
        difference: its Pass@1 less that of the full cache, as a share, paired; None with none.
    """

    benchmark: str
    policy: str
    found: AggregatedResults | None
    difference: Estimate | None

    @property
    def sentence(self) -> str:
        """For people."""
        begin = f"{self.benchmark}: the smallest budget of {self.policy} within one point of full"
        if self.found is None or self.difference is None:
            return f"{begin}: none of those tried"
        return f"{begin}: {slots(self.found.configuration)}, {shown(self.difference, 100, '+.1f')} points"

    @property
    def record(self) -> dict[str, Any]:
        """For JSON."""
        budget = None if self.found is None else self.found.configuration.record["budget"]
        bounds = None if self.difference is None else self.difference.bounds
        return {"benchmark": self.benchmark, "policy": self.policy, "budget": budget, "difference": bounds}


def smallest_budgets(results: Sequence[AggregatedResults]) -> list[SmallestBudget]:
    """One for each policy on each benchmark that has the full cache beside it, in the order of the results."""
    bounded: dict[tuple[str, str], list[AggregatedResults]] = {}
    for one in results:
        if one.configuration.policy != FULL and full_of(one, results) is not None:
            bounded.setdefault((one.configuration.benchmark, one.configuration.policy), []).append(one)
    return [_smallest(*names, tried, results) for names, tried in bounded.items()]


def _smallest(
    benchmark: str, policy: str, tried: list[AggregatedResults], results: Sequence[AggregatedResults]
) -> SmallestBudget:
    for one in sorted(tried, key=_held):
        full = full_of(one, results)
        assert full is not None, "only those beside a full cache come here"
        difference = estimate(mean(one.column("right") - full.column("right")), one.problems)
        if difference.value is not None and 100 * difference.value >= -POINTS - 1e-9:
            return SmallestBudget(benchmark=benchmark, policy=policy, found=one, difference=difference)
    return SmallestBudget(benchmark=benchmark, policy=policy, found=None, difference=None)


def _held(one: AggregatedResults) -> int:
    """The most thought slots that its budget lets a request hold."""
    budget = one.configuration.budget
    assert budget is not None, "every policy but full has a budget"
    return budget.bound(0, 2**62, answers=False)
