"""Accuracy of every policy at the same thought slots, on held-out problems whose full thought is long.

    python bench/policies.py --out bench/results/policies.json

The full cache is run first, greedy, over all families at levels 4 and 5; problems with a thought of at least 1000
tokens are kept, as many of each family as there are of the scarcest, up to --per-family. Then every policy answers the
same problems at the same budget, greedy and in samples, with the prompt pinned for all of them. The peak of a ratio r
is (mean full thought) / r thought slots = budget + interval.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from birth import certificate

import leanthink.tiny
from leanthink.budget import Budget
from leanthink.completion import Completion
from leanthink.eval.grading import last_boxed
from leanthink.generate import generate
from leanthink.importance.predictor import load_predictor
from leanthink.load import load
from leanthink.policies import POLICIES, Policy, make_policy
from leanthink.sampling import Sampling
from leanthink.tiny import tasks
from leanthink.tiny.problem import Problem

COMPARED = ("horizon", "dynts", "sinks", "random", "random-heads")
SHIPPED = Path(leanthink.tiny.__file__).parent / "predictors"
GREEDY = Sampling(temperature=0.0, max_new_tokens=4200)
INTERVAL, WINDOW, ANSWER = 64, 32, 256


def choose(model: Any, tokenizer: Any, per_family: int, asked: int, rows: int, seed: int) -> list[Problem]:
    """Held-out problems of levels 4 and 5 whose full, greedy thought has at least 1000 tokens, balanced over families."""
    problems = [p for f in tasks.FAMILIES for level in (4, 5) for p in tasks.sample(f, level, asked, seed)]
    completions = generate(
        model, tokenizer, [p.prompt for p in problems], policy="full", sampling=GREEDY, max_rows=rows
    )
    long = [p for p, c in zip(problems, completions, strict=True) if c.thought_tokens >= 1000]
    chosen = []
    for family in tasks.FAMILIES:
        group = [p for p in long if p.family == family]
        chosen += random.Random(seed).sample(group, min(per_family, len(group)))
    return chosen


def samplings(samples: int, seed: int) -> list[Sampling]:
    """One greedy, then `samples` at temperature 0.6."""
    drawn = [replace(GREEDY, temperature=0.6, seed=seed * 1000 + k) for k in range(samples)]
    return [GREEDY, *drawn]


def measure(problems: list[Problem], per_sampling: list[list[Completion]], seed: int) -> dict[str, object]:
    """Accuracy greedy and sampled, with bootstrap intervals over problems, lengths, slots and families."""
    right = [
        [tasks.is_correct(p, last_boxed(c.answer)) for p, c in zip(problems, cs, strict=True)] for cs in per_sampling
    ]
    greedy, sampled = right[:1], right[1:]
    everything = [c for cs in per_sampling for c in cs]
    families = sorted({p.family for p in problems})
    return {
        "greedy": interval(greedy, seed),
        "sampled": interval(sampled, seed) if sampled else None,
        "by_family": {
            f: sum(r for row in right for r, p in zip(row, problems, strict=True) if p.family == f)
            / sum(p.family == f for row in right for p in problems)
            for f in families
        },
        "thought_tokens": sum(c.thought_tokens for c in everything) / len(everything),
        "unfinished": sum(c.finish_reason == "length" for c in everything) / len(everything),
        "peak_thought_slots": max(c.peak_slots - c.prompt_tokens - c.answer_tokens for c in everything),
        "peak_slots": sum(c.peak_slots for c in everything) / len(everything),
        "peak_kv_bytes": sum(c.peak_kv_bytes for c in everything) / len(everything),
    }


def interval(right: Sequence[Sequence[bool]], seed: int, draws: int = 2000) -> list[float]:
    """Mean and its 95 % interval, by drawing problems (not samples) with replacement."""
    n = len(right[0])
    share = [sum(row[i] for row in right) / len(right) for i in range(n)]
    rng = random.Random(seed)
    means = sorted(math.fsum(rng.choices(share, k=n)) / n for _ in range(draws))
    return [sum(share) / n, means[int(0.025 * draws)], means[int(0.975 * draws)]]


def main() -> None:
    """Run the matrix and write it after each ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=None)
    parser.add_argument("--per-family", type=int, default=40)
    parser.add_argument("--asked", type=int, default=80, help="problems of each family and level to choose from")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--ratios", default="2.8,3.6,4.3,6")
    parser.add_argument("--policies", default=",".join(COMPARED))
    parser.add_argument("--predictors", type=Path, default=None, help="folder with other predictors than the shipped")
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--full-rows", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model, tokenizer = load("tiny", device=options.device)
    problems = choose(model, tokenizer, options.per_family, options.asked, options.full_rows, options.seed)
    many = samplings(options.samples, options.seed)

    def run(policies: Sequence[Policy], budget: Budget | None, rows: int) -> list[list[list[Completion]]]:
        """Everything in one batch: completions by policy, sampling, problem."""
        jobs = [(policy, sampling, p) for policy in policies for sampling in many for p in problems]
        completions = generate(
            model,
            tokenizer,
            [p.prompt for _, _, p in jobs],
            policy=[policy for policy, _, _ in jobs],
            budget=budget,
            sampling=[sampling for _, sampling, _ in jobs],
            max_rows=rows,
        )
        runs = [completions[i : i + len(problems)] for i in range(0, len(jobs), len(problems))]
        return [runs[i : i + len(many)] for i in range(0, len(runs), len(many))]

    names = options.policies.split(",")
    policies = [make(name, model, options.predictors) for name in names]
    full = run([make_policy("full")], None, options.full_rows)[0]
    mean_thought = sum(c.thought_tokens for c in full[0]) / len(problems)
    result: dict[str, Any] = {
        "birth": certificate(options.device),
        "n": len(problems),
        "samples": options.samples,
        "seed": options.seed,
        "mean_full_thought": mean_thought,
        "families": {f: sum(p.family == f for p in problems) for f in tasks.FAMILIES},
        "rows": [{"ratio": 1.0, "policy": "full", **measure(problems, full, options.seed)}],
    }
    show(result["rows"][-1])
    for ratio in (float(r) for r in options.ratios.split(",")):
        peak = round(mean_thought / ratio)
        budget = Budget(slots=peak - INTERVAL, window=WINDOW, interval=INTERVAL, answer=ANSWER)
        start = time.perf_counter()
        for name, completions in zip(names, run(policies, budget, options.rows), strict=True):
            row = measure(problems, completions, options.seed)
            result["rows"].append({"ratio": ratio, "budget": budget.slots, "policy": name, **row})
            show(result["rows"][-1])
        print(f"{time.perf_counter() - start:.0f} s for ratio {ratio}", flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1))


def make(name: str, model: Any, predictors: Path | None) -> Policy:
    """A policy, with its predictor from the folder, or the shipped one, if it ranks by one."""
    if POLICIES[name].target is None:
        return make_policy(name)
    return make_policy(name, load_predictor((predictors or SHIPPED) / f"{name}.safetensors", model))


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    families = " ".join(f"{name[:4]} {share:.2f}" for name, share in row["by_family"].items())
    sampled = "-" if row["sampled"] is None else " ".join(f"{x:.3f}" for x in row["sampled"])
    greedy = " ".join(f"{x:.3f}" for x in row["greedy"])
    print(
        f"{row['ratio']:4} {row['policy']:12} greedy {greedy}  sampled {sampled}  thought {row['thought_tokens']:.0f} "
        f"unfinished {row['unfinished']:.3f} peak {row['peak_thought_slots']}  {families}",
        flush=True,
    )


if __name__ == "__main__":
    main()
