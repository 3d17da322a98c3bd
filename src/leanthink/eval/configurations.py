"""What is evaluated: benchmarks, and configurations, each of which is one policy at one budget on one benchmark."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from leanthink.data.grading.grading import check_gold
from leanthink.data.problems import Problem
from leanthink.policies.budget import Budget
from leanthink.utils.errors import UsageError

FULL = "full"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Problems under one name. Raises UsageError for none, for two of one id and for a gold that cannot be graded.

    Attributes:
        name: what tables and files call it.
        source: where the problems came from, in words.
        problems: what is asked.
        instruction: put after each problem.
    """

    name: str
    source: str
    problems: tuple[Problem, ...]
    instruction: str = ""

    def __post_init__(self) -> None:
        if not self.problems:
            raise UsageError(f"the benchmark {self.name} has no problem: ask for at least one")
        seen: set[str] = set()
        for problem in self.problems:
            if problem.id in seen:
                raise UsageError(f"two problems of {self.name} have the id {problem.id!r}: records are known by them")
            seen.add(problem.id)
            if problem.check is None:
                check_gold(problem.answer)

    def prompt(self, problem: Problem) -> str:
        """What the model is asked."""
        return f"{problem.problem}\n\n{self.instruction}" if self.instruction else problem.problem

    @property
    def about(self) -> dict[str, Any]:
        """What a run's header says of it; the digest changes with any prompt, gold or tolerance."""
        told = [[p.id, self.prompt(p), p.answer, vars(p.tolerance)] for p in self.problems]
        digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()
        return {"source": self.source, "problems": len(self.problems), "digest": digest}


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One policy at one budget (None: the full cache) on one benchmark.

    Attributes:
        benchmark: its name.
        policy: as `leanthink.policies.policy_spec.canonical` writes it, with its settings.
        budget: None with the policy full.
    """

    benchmark: str
    policy: str
    budget: Budget | None

    @property
    def name(self) -> str:
        """What records call it, such as `tasks/horizon/256+64 window 32 answer 1024`."""
        if self.budget is None:
            return f"{self.benchmark}/{self.policy}"
        budget = self.budget
        kept = f"{budget.slots}+{budget.eviction_interval} window {budget.recent_window}"
        return f"{self.benchmark}/{self.policy}/{kept} answer {budget.max_answer_slots}"

    @property
    def record(self) -> dict[str, Any]:
        """Its fields for JSON."""
        return {
            "benchmark": self.benchmark,
            "policy": self.policy,
            "budget": None if self.budget is None else self.budget.record,
        }

    @staticmethod
    def from_record(fields: Mapping[str, Any]) -> Configuration:
        """The configuration of `record`."""
        budget = None if fields["budget"] is None else Budget.from_record(fields["budget"])
        return Configuration(benchmark=fields["benchmark"], policy=fields["policy"], budget=budget)


def configurations_of(benchmark: str, policies: Iterable[str], budgets: Sequence[Budget]) -> list[Configuration]:
    """Each policy at each budget; the full cache has none."""
    configurations = []
    for policy in policies:
        for budget in [None] if policy == FULL else budgets:
            configurations.append(Configuration(benchmark=benchmark, policy=policy, budget=budget))
    return configurations


def budget_at_ratio(mean_full_thought: float, ratio: float, usual: Budget) -> Budget:
    """The budget that never holds more thought slots than the mean full thought, in tokens, divided by the ratio.

    Args:
        mean_full_thought: in tokens.
        ratio: 1 or more.
        usual: has the window, the interval and the slots of the answer; its `slots` do not matter.

    Raises:
        UsageError: the ratio is below 1, or leaves no room for window and interval.
    """
    if ratio < 1:
        raise UsageError(f"ratio {ratio:g}: must be 1 or more; it divides the mean full thought")
    window, interval = usual.recent_window, usual.eviction_interval
    slots = round(mean_full_thought / ratio) - interval
    if slots < max(window, 1):
        raise UsageError(
            f"a mean full thought of {mean_full_thought:.0f} tokens, divided by {ratio:g}, leaves {slots} slots beside "
            f"the interval of {interval}, and the window takes {window}: give a smaller interval and window, or a "
            "lower ratio"
        )
    return replace(usual, slots=slots)
