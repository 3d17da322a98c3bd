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

from leanthink.budget import Budget
from leanthink.completion import Completion
from leanthink.eval.grading import last_boxed
from leanthink.generate import generate
from leanthink.load import load
from leanthink.sampling import Sampling
from leanthink.tiny import tasks
from leanthink.tiny.problem import Problem

POLICIES = ("horizon", "dynts", "sinks", "random", "random-heads")
GREEDY = Sampling(temperature=0.0, max_new_tokens=4200)
INTERVAL, WINDOW, ANSWER = 64, 32, 256


def choose(model: Any, tokenizer: Any, per_family: int, asked: int, rows: int, seed: int) -> list[Problem]:
    """Held-out problems of levels 4 and 5 whose full, greedy thought has at least 1000 tokens, balanced over families."""
    problems = [p for f in tasks.FAMILIES for level in (4, 5) for p in tasks.sample(f, level, asked, seed)]
    completions = generate(model, tokenizer, [p.prompt for p in problems], policy="full", sampling=GREEDY, max_rows=rows)
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
    right = [[tasks.is_correct(p, last_boxed(c.answer)) for p, c in zip(problems, cs, strict=True)] for cs in per_sampling]
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
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--predictors", type=Path, default=None, help="folder with other predictors than the shipped")
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--full-rows", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model, tokenizer = load("tiny", device=options.device)
    problems = choose(model, tokenizer, options.per_family, options.asked, options.full_rows, options.seed)
    many = samplings(options.samples, options.seed)

    def run(policy: str, budget: Budget | None, rows: int) -> list[list[Completion]]:
        file = options.predictors / f"{policy}.safetensors" if options.predictors else None
        completions = generate(
            model,
            tokenizer,
            [p.prompt for p in problems] * len(many),
            policy=policy,
            budget=budget,
            predictor=file if file is not None and file.is_file() else None,
            sampling=[s for s in many for _ in problems],
            max_rows=rows,
        )
        return [completions[i * len(problems) : (i + 1) * len(problems)] for i in range(len(many))]

    full = run("full", None, options.full_rows)
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
        for policy in options.policies.split(","):
            start = time.perf_counter()
            row = measure(problems, run(policy, budget, options.rows), options.seed)
            row |= {"ratio": ratio, "budget": budget.slots, "policy": policy, "seconds": time.perf_counter() - start}
            result["rows"].append(row)
            show(row)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=1))


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    families = " ".join(f"{name[:4]} {share:.2f}" for name, share in row["by_family"].items())
    sampled = "-" if row["sampled"] is None else " ".join(f"{x:.3f}" for x in row["sampled"])
    greedy = " ".join(f"{x:.3f}" for x in row["greedy"])
    print(
        f"{row['ratio']:4} {row['policy']:12} greedy {greedy}  sampled {sampled}  thought {row['thought_tokens']:.0f} "
        f"unfinished {row['unfinished']:.3f} peak {row['peak_thought_slots']}  {families} {row.get('seconds', 0):.0f}s",
        flush=True,
    )


if __name__ == "__main__":
    main()
