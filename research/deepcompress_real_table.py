"""The table of `research/deepcompress_real.py`: right answers and tokens of each arm, on each set of problems.

Intervals hold both kinds of chance: the problems (paired bootstrap, of means over seeds) and the seeds, whose variance
is taken over all arms with several, as two seeds of one arm say little.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leanthink.eval.statistics import Statistic, estimate, mean, ratio

BASE, START = "grpo", "start"
NORMAL = 1.96
GREEDY, SAMPLED = ("greedy", "greedy right", "greedy tokens"), ("sampled", "right", "tokens")
Run = dict[str, Any]
Column = Callable[[dict[str, Any]], Tensor]
COLUMNS: dict[str, Column] = {
    "greedy right": lambda found: torch.tensor(found["greedy_right"]).double(),
    "greedy tokens": lambda found: torch.tensor(found["greedy_tokens"]).double(),
    "right": lambda found: torch.tensor(found["right"]).double() / found["samples"],
    "tokens": lambda found: torch.tensor(found["tokens"]).double() / found["samples"],
}


def arms_of(runs: list[Run], part: str = "evaluation") -> dict[str, list[Run]]:
    """The runs of each arm that have this part, called by it and their seed: start, plain GRPO, others by name."""
    found: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run["arm"] != START, run["arm"] != BASE, run["name"])):
        if part in run:
            found.setdefault(run["name"].removesuffix(f"-{run.get('seed')}"), []).append(run)
    return found


def column(runs: list[Run], problems: str, name: str) -> Tensor:
    """Mean over the runs of a measurement of each problem, [P]."""
    return torch.stack([COLUMNS[name](run["evaluation"][problems]) for run in runs]).mean(dim=0)


def seed_variance(arms: dict[str, list[Run]], problems: str, name: str, *, relative: bool = False) -> float:
    """The variance between seeds, pooled over the arms; of the logarithm, if relative; 0 where no arm has several."""
    squares, freedom = 0.0, 0
    for runs in arms.values():
        means = [float(COLUMNS[name](run["evaluation"][problems]).mean()) for run in runs]
        values = torch.tensor([math.log(value) if relative else value for value in means], dtype=torch.float64)
        squares += float((values - values.mean()).square().sum())
        freedom += len(runs) - 1
    return squares / freedom if freedom else 0.0


def interval(statistic: Statistic, problems: int, variance: float) -> tuple[float, float, float]:
    """Value and bounds, with the seeds' variance added to that of the problems."""
    value, low, high = (math.nan if bound is None else bound for bound in estimate(statistic, problems).bounds)
    more = NORMAL**2 * variance
    return value, value - math.sqrt((value - low) ** 2 + more), value + math.sqrt((high - value) ** 2 + more)


def cells(arms: dict[str, list[Run]], arm: str, problems: str, right: str, tokens: str) -> list[str]:
    """Right %, points to plain GRPO, tokens, and their change in per cent, each with its interval."""
    runs, base = arms[arm], arms.get(BASE)
    variance = {name: seed_variance(arms, problems, name) for name in (right, tokens)}
    own = 0 if arm == START else 1 / len(runs)
    right_P, tokens_P = column(runs, problems, right), column(runs, problems, tokens)
    found = [told(interval(mean(right_P), len(right_P), variance[right] * own), 100, ".1f")]
    found.append("" if base is None or arm == BASE else against(arms, arm, problems, right))
    found.append(told(interval(mean(tokens_P), len(tokens_P), variance[tokens] * own), 1, ".0f"))
    found.append("" if base is None or arm == BASE else against(arms, arm, problems, tokens))
    return found


def against(arms: dict[str, list[Run]], arm: str, problems: str, name: str) -> str:
    """The difference to plain GRPO: in points for right answers, in per cent for tokens."""
    runs, base = arms[arm], arms[BASE]
    seeds = (0 if arm == START else 1 / len(runs)) + 1 / len(base)
    own_P, base_P = (column(some, problems, name) for some in (runs, base))
    if "right" in name:
        variance = seed_variance(arms, problems, name) * seeds
        return told(interval(mean(own_P - base_P), len(own_P), variance), 100, "+.1f")
    quotient = ratio(own_P, base_P)
    variance = seed_variance(arms, problems, name, relative=True) * seeds * float(own_P.mean() / base_P.mean()) ** 2
    return told(interval(lambda weights_DP: quotient(weights_DP) - 1, len(own_P), variance), 100, "+.1f")


def told(found: tuple[float, float, float], scale: float, form: str) -> str:
    """Value and interval."""
    value, low, high = (format(scale * number, form) for number in found)
    return f"{value} [{low}, {high}]"


def summary(folder: Path) -> str:
    """Markdown: a table for each set of problems and way to answer; none of samples where a run has none."""
    arms = arms_of([json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))])
    lines: list[str] = []
    for problems in sorted({name for runs in arms.values() for run in runs for name in run["evaluation"]}):
        some = {arm: [run for run in runs if problems in run["evaluation"]] for arm, runs in arms.items()}
        some = {arm: runs for arm, runs in some.items() if runs}
        sampled = all(run["evaluation"][problems]["samples"] for runs in some.values() for run in runs)
        for how, right, tokens in (GREEDY, SAMPLED)[: 1 + sampled]:
            lines += [f"{problems}, {how}:", "", "| arm | seeds | right, % | points to GRPO | tokens | to GRPO, % |"]
            lines.append("|---|---|---|---|---|---|")
            for arm, runs in some.items():
                count = "" if arm == START else str(len(runs))
                lines.append(f"| {arm} | {count} | {' | '.join(cells(some, arm, problems, right, tokens))} |")
            lines.append("")
    return "\n".join(lines)
