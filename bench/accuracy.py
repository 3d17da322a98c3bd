"""Accuracy of the embedded reasoner with the full cache, greedy, per family and level, on held-out problems.

python bench/accuracy.py --count 200 --out bench/results/accuracy.json
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import one_a_line

from leanthink.data.grading.grading import last_boxed
from leanthink.data.tasks import registry
from leanthink.data.tasks.problem import Problem
from leanthink.engine.generation import generate
from leanthink.engine.outputs import Completion
from leanthink.engine.sampling import Sampling
from leanthink.models.loading import load
from leanthink.utils.provenance import provenance_record


def table(problems: list[Problem], completions: list[Completion]) -> list[dict[str, object]]:
    """One row per family and level."""
    rows = []
    for family in registry.FAMILIES:
        for level in registry.LEVELS:
            group = [
                (p, c) for p, c in zip(problems, completions, strict=True) if (p.family, p.level) == (family, level)
            ]
            if not group:
                continue
            right = sum(registry.is_correct(p, last_boxed(c.answer)) for p, c in group)
            rows.append(
                {
                    "family": family,
                    "level": level,
                    "n": len(group),
                    "accuracy": right / len(group),
                    "thought_tokens": sum(c.thought_tokens for _, c in group) / len(group),
                    "over_1000": sum(c.thought_tokens >= 1000 for _, c in group) / len(group),
                    "unfinished": sum(c.finish_reason == "length" for _, c in group) / len(group),
                }
            )
    return rows


def line(row: dict[str, object]) -> str:
    """One line of the table."""
    return "  ".join(f"{v:9.3f}" if isinstance(v, float) else f"{v!s:>9}" for v in row.values())


def main() -> None:
    """Measure, print and, if asked to, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default=None)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--levels", default="1,2,3,4,5")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    model, tokenizer = load(options.model, device=options.device)
    levels = [int(level) for level in options.levels.split(",")]
    problems = [
        p for f in registry.FAMILIES for k in levels for p in registry.sample(f, k, options.count, options.seed)
    ]
    start = time.perf_counter()
    completions = generate(
        model,
        tokenizer,
        [p.prompt for p in problems],
        policy="full",
        sampling=Sampling(temperature=0.0, max_new_tokens=4300),
        max_rows=options.rows,
    )
    seconds = time.perf_counter() - start
    rows = table(problems, completions)
    print(*map(line, rows), sep="\n")
    tokens = sum(len(c.token_ids) for c in completions)
    print(f"{tokens} tokens in {seconds:.1f} s, {tokens / seconds:.0f} tokens/s")
    found = {"seed": options.seed, "seconds": seconds, "tokens": tokens, "rows": rows}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        one_a_line.write_table(options.out, {"birth": provenance_record(options.device), **found}, "rows")


if __name__ == "__main__":
    main()
