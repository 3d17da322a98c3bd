"""What a sweep over budgets ends in: the smallest that is within a point of the full cache, by hand."""

from __future__ import annotations

from typing import Any

from leanthink.eval.aggregated_results import SUMMED, AggregatedResults
from leanthink.eval.configurations import Configuration
from leanthink.eval.smallest_budget import smallest_budgets
from leanthink.policies.budget import Budget

PROBLEMS = 200


def result(
    policy: str, slots: int | None, right: int, *, interval: int = 16, benchmark: str = "gsm8k"
) -> AggregatedResults:
    """One of 200 problems, of which the first so many are right."""
    budget = None if slots is None else Budget(slots=slots, recent_window=8, eviction_interval=interval)
    columns: dict[str, Any] = dict.fromkeys((*SUMMED, "majority"), [0] * PROBLEMS)
    columns["right"] = [1] * right + [0] * (PROBLEMS - right)
    return AggregatedResults(
        configuration=Configuration(benchmark=benchmark, policy=policy, budget=budget),
        samples=1,
        columns=columns,
        most_slots=1,
        bytes_per_slot=1.0,
        seconds=None,
    )


FULL = result("full", None, 120)


def sentences(*results: AggregatedResults) -> list[str]:
    return [one.sentence for one in smallest_budgets([FULL, *results])]


def test_the_smallest_within_a_point_is_told_with_its_interval() -> None:
    # 2 of 200 problems are one point, which is within; 3 are not
    (told,) = sentences(result("horizon", 300, 121), result("horizon", 150, 118), result("horizon", 100, 117))
    assert told == "gsm8k: the smallest budget of horizon within one point of full: 150+16, -1.0 [-2.5, +0.0] points"


def test_smaller_is_what_holds_less_at_the_most() -> None:
    (told,) = sentences(result("horizon", 100, 120, interval=128), result("horizon", 150, 120, interval=16))
    assert ": 150+16, +0.0 [+0.0, +0.0] points" in told


def test_none_is_told_where_none_is() -> None:
    (told,) = sentences(result("sinks", 300, 117), result("sinks", 100, 60))
    assert told == "gsm8k: the smallest budget of sinks within one point of full: none of those tried"


def test_each_policy_on_each_benchmark_has_its_own_and_only_beside_a_full_cache() -> None:
    found = smallest_budgets(
        [
            FULL,
            result("horizon", 100, 120),
            result("sinks", 100, 20),
            result("full", None, 50, benchmark="math"),
            result("horizon", 100, 20, benchmark="math"),
            result("horizon", 100, 50, benchmark="without"),
        ]
    )
    assert [(one.benchmark, one.policy, one.found is not None) for one in found] == [
        ("gsm8k", "horizon", True),
        ("gsm8k", "sinks", False),
        ("math", "horizon", False),
    ]
    assert found[0].record == {
        "benchmark": "gsm8k",
        "policy": "horizon",
        "budget": {"slots": 100, "window": 8, "interval": 16, "answer": 1024},
        "difference": [0.0, 0.0, 0.0],
    }
    assert found[1].record["budget"] is None
