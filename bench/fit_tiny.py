"""Makes the shipped predictors of the embedded reasoner: collect, label, fit, each as the CLI does it.

python bench/fit_tiny.py --out DIR
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from leanthink.eval.problems import from_tasks
from leanthink.importance.collect import collect
from leanthink.importance.fit import fit
from leanthink.importance.label_file import default_horizons, label_traces, read_labels
from leanthink.importance.recipe import Recipe
from leanthink.load import load
from leanthink.sampling import Sampling
from leanthink.tiny import tasks
from leanthink.trace import read_traces


def main() -> None:
    """Traces at temperature 0.8 of training problems, their labels, both predictors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--levels", default="3:100,4:350,5:350", help="levels, each with problems per family")
    parser.add_argument("--targets", default="horizon,answer")
    parser.add_argument("--steps", type=int, default=12000, help="of the horizon predictor")
    parser.add_argument("--device", default=None)
    parser.add_argument("--rows", type=int, default=2400)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    traces, labels = options.out / "traces.jsonl", options.out / "labels.safetensors"
    model, tokenizer = load("tiny", device=options.device)
    counts = {int(level): int(count) for level, count in (entry.split(":") for entry in options.levels.split(","))}
    problems = [p for f in tasks.FAMILIES for k, n in counts.items() for p in tasks.sample(f, k, n, 0, "train")]
    sampling = Sampling(temperature=0.8, max_new_tokens=4200)
    clock = time.perf_counter()
    how = {"samples": 1, "sampling": sampling, "max_rows": options.rows, "resume": traces.exists()}
    print(collect(model, tokenizer, from_tasks(problems), traces, **how))
    clock = _lap("collect", clock)
    found = read_traces(traces)
    print(label_traces(model, found, labels, horizons=default_horizons(found), save_every=10**6))
    clock = _lap("label", clock)
    recipes = {
        "horizon": Recipe(target="horizon", steps=options.steps, val_share=0.03),
        "answer": Recipe(target="answer"),
    }
    for target in options.targets.split(","):
        name = {"horizon": "horizon", "answer": "dynts"}[target]
        out_path = options.out / f"{name}.safetensors"
        fitted = fit(model, found, read_labels(labels), recipes[target], out_path=out_path)
        print(json.dumps(fitted.metrics, indent=1))
        clock = _lap(f"fit {name}", clock)


def _lap(what: str, since: float) -> float:
    now = time.perf_counter()
    print(f"{what}: {now - since:.1f} s", flush=True)
    return now


if __name__ == "__main__":
    main()
