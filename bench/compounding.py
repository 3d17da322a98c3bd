"""Thinking fewer tokens times thinking in less memory: {start, trained} x {full, horizon at 4x}, on the same problems.

    python bench/compounding.py --trained runs/deepcompress-tiny/final --trained-predictor FILE --out DIR

Problems are held out: all families and levels, `--asked` of each. Each model first answers them with the full cache,
then under `horizon` with budget + interval = (its own mean thought) / ratio. What counts is slot-steps per right
answer: the slots held at each decoding step (prompt, thought and answer), added up over all steps of all problems,
divided by the number of right answers. Intervals are of 95 %, by drawing problems with replacement; where a cell is
compared with the start and its full cache, the same problems are drawn for both. Writes compounding.json and prints
a table.

P problems
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from policies import Job, complete, in_runs, samplings
from torch import Tensor

from leanthink.data.grading.grading import last_boxed
from leanthink.data.tasks import registry
from leanthink.data.tasks.problem import Problem
from leanthink.engine.outputs import Completion
from leanthink.engine.sampling import Sampling
from leanthink.eval.configurations import budget_at_ratio
from leanthink.eval.statistics import Statistic, estimate, mean, ratio
from leanthink.models.loading import load
from leanthink.models.predictor import load_predictor
from leanthink.models.tiny import TINY, predictors_path
from leanthink.policies import make_policy
from leanthink.policies.budget import Budget
from leanthink.utils.errors import UsageError
from leanthink.utils.provenance import provenance_record

COLUMNS = ("model", "cache", "accuracy, %", "points to first row", "thought tokens", "answer tokens")
COLUMNS += ("slot-steps per right answer", "times fewer than first row")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of each problem: the mean over its samples, float64."""

    right_P: Tensor
    slot_steps_P: Tensor
    thought_P: Tensor
    answer_P: Tensor
    unfinished_P: Tensor
    peak_slots_P: Tensor


def main() -> None:
    """All four cells; what is finished is written at once."""
    options = parse()
    predictors = {name: predictor_path(name, options) for name in ("start", "trained")}
    levels = [int(level) for level in options.levels.split(",")]
    problems = [
        p for f in registry.FAMILIES for k in levels for p in registry.sample(f, k, options.asked, options.seed)
    ]
    ways = [replace(way, max_new_tokens=options.max_new_tokens) for way in samplings(options.samples, options.seed)]
    options.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "birth": provenance_record(options.device),
        "n": len(problems),
        "samples": options.samples,
        "seed": options.seed,
        "ratio": options.ratio,
        "models": {name: about(getattr(options, name), path) for name, path in predictors.items()},
        "rows": [],
    }
    baseline: list[Outcome] = []
    for name, path in predictors.items():
        for row, outcomes in cells(getattr(options, name), path, problems, ways, options):
            baseline = baseline or outcomes
            told = [measure(problems, *pair, options.seed) for pair in zip(outcomes, baseline, strict=True)]
            sampled = told[1] if options.samples else None
            result["rows"].append({"model": name, **row, "greedy": told[0], "sampled": sampled})
            (options.out / "compounding.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    print(*markdown(result["rows"]), sep="\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", default="tiny", help="the model before training: tiny or a folder")
    parser.add_argument("--trained", required=True, help="the model after training, as --start")
    parser.add_argument("--start-predictor", type=Path, default=None, help="of horizon; default: the one shipped")
    parser.add_argument("--trained-predictor", type=Path, default=None, help="fitted by bench/fit_tiny.py --model")
    parser.add_argument("--device", default=None)
    parser.add_argument("--asked", type=int, default=200, help="problems of each family and level")
    parser.add_argument("--levels", default="1,2,3,4,5")
    parser.add_argument("--samples", type=int, default=0, help="at temperature 0.6, beside the greedy answer")
    parser.add_argument("--ratio", type=float, default=4.0, help="mean thought of the model by budget + interval")
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--interval", type=int, default=32)
    parser.add_argument("--answer", type=int, default=256, help="most slots of an answer under a budget")
    parser.add_argument("--max-new-tokens", type=int, default=4000)
    parser.add_argument("--rows", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder for compounding.json")
    return parser.parse_args()


def predictor_path(name: str, options: argparse.Namespace) -> Path:
    """The predictor's file of the model "start" or "trained"; only for tiny one is shipped."""
    given: Path | None = getattr(options, f"{name}_predictor")
    model: str = getattr(options, name)
    if given is None and model != TINY:
        raise UsageError(f"--{name}-predictor is missing: fit one with bench/fit_tiny.py --model {model}")
    return predictors_path() / "horizon.safetensors" if given is None else given


def about(model: str, predictor: Path) -> dict[str, str]:
    """What the result says of a model."""
    digest = hashlib.sha256(predictor.read_bytes()).hexdigest()
    return {"name": model, "predictor": predictor.name, "predictor_sha256": digest}


def cells(
    name: str, predictor: Path, problems: list[Problem], ways: list[Sampling], options: argparse.Namespace
) -> Iterator[tuple[dict[str, Any], list[Outcome]]]:
    """One model with the full cache, then the bounded one: what was run, and its outcomes, greedy and sampled."""
    model, tokenizer = load(name, device=options.device)
    horizon = make_policy("horizon", load_predictor(predictor, model))
    budget = None
    for policy in (make_policy("full"), horizon):
        jobs = [Job(policy, budget, way, problem) for way in ways for problem in problems]
        runs = in_runs(complete(model, tokenizer, jobs, options.rows), len(problems))
        outcomes = [outcome(problems, part) for part in (runs[:1], runs[1:]) if part]
        print(f"{name}, {policy.name}: {100 * outcomes[0].right_P.mean():.1f} % right", flush=True)
        yield {"policy": policy.name, "budget": None if budget is None else budget.record}, outcomes
        if budget is None:
            mean_thought = float(outcomes[0].thought_P.mean())
            parts = {"window": options.window, "interval": options.interval, "answer": options.answer}
            usual = Budget.from_record({"slots": max(1, options.window), **parts})
            budget = budget_at_ratio(mean_thought, options.ratio, usual)


def outcome(problems: Sequence[Problem], runs: Sequence[Sequence[Completion]]) -> Outcome:
    """Means over runs on the same problems."""

    def over_runs(value: Callable[[Problem, Completion], float]) -> Tensor:
        rows = [[float(value(p, c)) for p, c in zip(problems, run, strict=True)] for run in runs]
        return torch.tensor(rows, dtype=torch.float64).mean(0)

    return Outcome(
        right_P=over_runs(lambda p, c: registry.is_correct(p, last_boxed(c.answer))),
        slot_steps_P=over_runs(lambda _, c: c.slot_steps),
        thought_P=over_runs(lambda _, c: c.thought_tokens),
        answer_P=over_runs(lambda _, c: c.answer_tokens),
        unfinished_P=over_runs(lambda _, c: c.finish_reason == "length"),
        peak_slots_P=over_runs(lambda _, c: c.peak_slots),
    )


def measure(problems: Sequence[Problem], ours: Outcome, baseline: Outcome, seed: int) -> dict[str, Any]:
    """One cell; what has an interval is a list: value, lower and upper bound, None where no answer was right.

    `accuracy_change` and `times_fewer` (slot-steps per right answer) are against the baseline, problem by problem.
    """
    cost, base_cost = (ratio(found.slot_steps_P, found.right_P) for found in (ours, baseline))

    def bounded(statistic: Statistic) -> list[float | None]:
        return estimate(statistic, len(problems), seed).bounds

    levels = torch.tensor([problem.level for problem in problems])
    return {
        "accuracy": bounded(mean(ours.right_P)),
        "accuracy_change": bounded(mean(ours.right_P - baseline.right_P)),
        "thought_tokens": float(ours.thought_P.mean()),
        "answer_tokens": float(ours.answer_P.mean()),
        "unfinished": float(ours.unfinished_P.mean()),
        "peak_slots": float(ours.peak_slots_P.mean()),
        "slot_steps": float(ours.slot_steps_P.sum()),
        "slot_steps_per_right": bounded(cost),
        "times_fewer": bounded(lambda weights_DP: base_cost(weights_DP) / cost(weights_DP)),
        "by_level": {
            level: {
                "accuracy": float(ours.right_P[levels == level].mean()),
                "thought_tokens": float(ours.thought_P[levels == level].mean()),
                "slot_steps": float(ours.slot_steps_P[levels == level].mean()),
            }
            for level in sorted(set(levels.tolist()))
        },
    }


def markdown(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table, greedy answers first, then the sampled ones."""
    lines = []
    for kind in ("greedy", "sampled"):
        if rows[0][kind] is None:
            continue
        lines += ["", f"{kind}:", "", f"| {' | '.join(COLUMNS)} |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
        lines += [f"| {' | '.join(texts(row, row[kind]))} |" for row in rows]
    return lines


def texts(row: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """The cells of one row."""
    budget = row["budget"]
    cache = "full" if budget is None else f"{row['policy']}, {budget['slots']} + {budget['interval']}"
    accuracy, change = shown(found["accuracy"], 100, ".1f"), shown(found["accuracy_change"], 100, "+.1f")
    tokens = [f"{found[name]:.0f}" for name in ("thought_tokens", "answer_tokens")]
    cost, fewer = shown(found["slot_steps_per_right"], 1, ",.0f"), shown(found["times_fewer"], 1, ".2f")
    return [row["model"], cache, accuracy, change, *tokens, cost, fewer]


def shown(found: Sequence[float | None], scale: float, style: str) -> str:
    """Value [lower bound, upper bound]."""
    value, low, high = ("-" if number is None else format(scale * number, style) for number in found)
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    main()
