"""The summary of the arms of `research/deepcompress.py`, out of their result files.

P problems of the evaluation, the same for all runs
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leanthink.eval.statistics import estimate, mean, ratio
from leanthink.utils.errors import UsageError

Run = dict[str, Any]
BASE, START = "none", "start"
OURS = "ours"
ORDER = (START, BASE, "penalty", "bonus", "published", OURS)
SCOPES = {"all levels": (1, 2, 3, 4, 5), "levels 1-2": (1, 2), "level 5": (5,)}
LAST_STEPS = 10
SHOWN = ("accuracy", "thought_tokens", "entropy", "beta", "pass_ratio/average", "dynamic_sampling/rounds")
MEASURED = ("right", "thought_tokens", "unfinished", "checks")  # of each response in an evaluation


def interval(values_P: Tensor) -> list[float | None]:
    """Mean and its 95 % interval, by drawing problems with replacement."""
    return estimate(mean(values_P), len(values_P)).bounds


def change(own_P: Tensor, base_P: Tensor) -> list[float | None]:
    """How much the mean of the first is above that of the second, as a share of it, with its 95 % interval."""
    quotient = ratio(own_P, base_P)
    return estimate(lambda weights_DP: quotient(weights_DP) - 1, len(own_P)).bounds


def by_level(problems: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Of an evaluation: accuracy and thought tokens with intervals, unfinished share and self-checks, by level."""
    levels = torch.tensor(problems["level"])
    rows = []
    for level in (None, *sorted(set(problems["level"]))):
        chosen = torch.ones_like(levels, dtype=torch.bool) if level is None else levels == level
        column = {name: torch.tensor(problems[name]).double()[chosen] for name in MEASURED}
        row: dict[str, Any] = {"level": level, "n": int(chosen.sum())}
        row |= {"accuracy": interval(column["right"]), "thought_tokens": interval(column["thought_tokens"])}
        rows.append(row | {"unfinished": float(column["unfinished"].mean()), "checks": float(column["checks"].mean())})
    return rows


def read(folder: Path) -> list[Run]:
    """The results of all runs in a folder. Raises UsageError if there are none, or of different problems."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    runs: list[Run] = [run for run in found if "arm" in run]
    if not runs:
        raise UsageError(f"{folder} holds no result of a run: give the --out of the experiment")
    evaluated = [run for run in runs if "evaluation" in run]
    for run in evaluated[1:]:
        if run["evaluation"]["problems"]["id"] != evaluated[0]["evaluation"]["problems"]["id"]:
            names = " and ".join(f"{one['arm']}-{one['seed']}" for one in (evaluated[0], run))
            raise UsageError(f"{names} were asked different problems: give all runs the same --asked and --families")
    return runs


def column(runs: list[Run], name: str, levels: tuple[int, ...]) -> Tensor:
    """Of these runs the mean of a measurement for each problem of these levels, [P] float64."""
    chosen = [level in levels for level in runs[0]["evaluation"]["problems"]["level"]]
    values = [torch.tensor(run["evaluation"]["problems"][name]).double() for run in runs]
    return torch.stack(values).mean(dim=0)[torch.tensor(chosen)]


def compared(runs: list[Run], base: list[Run], levels: tuple[int, ...]) -> dict[str, list[float | None] | None]:
    """Accuracy and thought tokens of one arm over its seeds, and against the base over the seeds that both have."""
    found: dict[str, list[float | None] | None] = {
        name: interval(column(runs, name, levels)) for name in ("right", "thought_tokens")
    }
    seeds = {run["seed"] for run in base}
    if runs[0]["arm"] != START:
        seeds &= {run["seed"] for run in runs}
        runs = [run for run in runs if run["seed"] in seeds]
    base = [run for run in base if run["seed"] in seeds]
    if not base or runs[0]["arm"] == BASE:
        return found | {"right_against": None, "tokens_against": None}
    found["right_against"] = interval(column(runs, "right", levels) - column(base, "right", levels))
    own, other = column(runs, "thought_tokens", levels), column(base, "thought_tokens", levels)
    return found | {"tokens_against": change(own, other)}


def arm_of(run: Run) -> str:
    """What the tables call the arm of a run: ours with its weight of mastered groups."""
    return f"{OURS} {run['settings']['mastered_weight']:g}" if run["arm"] == OURS else str(run["arm"])


def by_arm(runs: list[Run]) -> dict[str, list[Run]]:
    """The runs of each arm that has any: plain GRPO first of those that were trained, ours by its weight."""
    found: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (ORDER.index(run["arm"]), run["settings"]["mastered_weight"], run["seed"])):
        found.setdefault(arm_of(run), []).append(run)
    return found


def summary(runs: list[Run]) -> str:
    """Markdown: the arms by scope, by level, and how each run went."""
    done = by_arm([run for run in runs if "evaluation" in run])
    lines = ["# DeepCompress: the arms of one experiment", ""]
    for scope, levels in SCOPES.items():
        lines += [f"## {scope}", "", "| arm | seeds | right, % | against none | thought tokens | against none |"]
        lines.append("|---|---|---|---|---|---|")
        for arm, of_arm in done.items():
            found = compared(of_arm, done.get(BASE, []), levels)
            cells = [percent(found["right"]), percent(found["right_against"], sign="+")]
            cells += [tokens(found["thought_tokens"]), percent(found["tokens_against"], sign="+", unit=" %")]
            seeds = ", ".join(str(run["seed"]) for run in of_arm)
            lines.append(f"| {arm} | {seeds} | {' | '.join(cells)} |")
        lines.append("")
    lines += [*_levels(done), *_runs(runs)]
    if done:
        evaluation = next(iter(done.values()))[0]["evaluation"]
        samples, temperature = evaluation["samples"], evaluation["temperature"]
        lines += ["", f"n = {len(evaluation['problems']['id'])} held-out problems (seed {evaluation['seed']}), "
                  f"{samples} samples each at temperature {temperature:g}, full cache. In brackets: 95 % interval of a "
                  "bootstrap over problems, paired for differences, of the mean over seeds. `none` is GRPO with "
                  "dynamic sampling and no length reward."]  # fmt: skip
    return "\n".join(lines) + "\n"


def _levels(done: dict[str, list[Run]]) -> list[str]:
    lines = ["## by level: right, % / thought tokens", "", "| arm | 1 | 2 | 3 | 4 | 5 | unfinished, % | self-checks |"]
    lines.append("|---" * 8 + "|")
    every = SCOPES["all levels"]
    for arm, runs in done.items():
        cells = []
        for level in every:
            right, tokens = (float(column(runs, name, (level,)).mean()) for name in ("right", "thought_tokens"))
            cells.append("-" if math.isnan(right) else f"{100 * right:.1f} / {tokens:.0f}")
        unfinished, checks = (float(column(runs, name, every).mean()) for name in ("unfinished", "checks"))
        lines.append(f"| {arm} | {' | '.join(cells)} | {100 * unfinished:.1f} | {checks:.2f} |")
    return [*lines, ""]


def _runs(runs: list[Run]) -> list[str]:
    lines = [f"## how the runs went (training: mean of the last {LAST_STEPS} steps)", ""]
    names = ("arm", "seed", "steps", "right, %", "thought tokens", "entropy", "β", "average", "rounds", "rollouts, s")
    lines += [f"| {' | '.join((*names, 'update, s', 'remark'))} |", "|---" * (len(names) + 2) + "|"]
    for run in (run for of_arm in by_arm(runs).values() for run in of_arm):
        if run["arm"] == START and "error" not in run:
            continue
        curve = run.get("curve", [])
        last = [_mean(curve[-LAST_STEPS:], name) for name in SHOWN]
        last[0] = None if last[0] is None else 100 * last[0]
        seconds = [_mean(curve, name) for name in ("rollout_seconds", "update_seconds")]
        cells = ["-" if value is None else f"{value:.3g}" for value in (*last, *seconds)]
        steps = f"{len(curve)} of {run['settings']['steps']}"
        remark = (run.get("error") or run.get("stopped") or "").replace("|", "/")
        lines.append(f"| {' | '.join((arm_of(run), str(run['seed']), steps, *cells, remark))} |")
    return lines


def _mean(curve: list[dict[str, Any]], name: str) -> float | None:
    values = [step[name] for step in curve if step.get(name) is not None]
    return sum(values) / len(values) if values else None


def percent(found: list[float | None] | None, sign: str = "", unit: str = "") -> str:
    """A share with its interval, in per cent."""
    if found is None:
        return "-"
    middle, low, high = ("-" if value is None else format(100 * value, f"{sign}.1f") for value in found)
    return f"{middle}{unit} [{low}, {high}]"


def tokens(found: list[float | None] | None) -> str:
    """A length with its interval."""
    assert found is not None
    return "{:.0f} [{:.0f}, {:.0f}]".format(*found)
