"""Makes predictors of the embedded reasoner, or of a model trained from it: collect, label, fit, each as the CLI does.

python bench/fit_tiny.py --out DIR
python bench/fit_tiny.py --model runs/deepcompress-tiny/final --targets horizon --out DIR

The problems are the same for every model, and so are all settings: predictors differ by the traces of their models.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from leanthink.data.problems import from_tasks
from leanthink.data.tasks import registry
from leanthink.data.traces.trace import read_traces
from leanthink.engine.sampling import Sampling
from leanthink.importance.collect import collect
from leanthink.importance.fit import fit
from leanthink.importance.fit_config import FitConfig
from leanthink.importance.label_file import default_horizons, label_traces, read_labels
from leanthink.models.loading import load

NAMES = {"horizon": "horizon", "answer": "dynts"}  # of the predictor's file, by its target


def main() -> None:
    """Traces at temperature 0.8 of training problems, their labels, and a predictor for each target."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load(options.model, device=options.device)
    traces, labels = options.out / "traces.jsonl", options.out / "labels.safetensors"
    collect_and_label(model, tokenizer, traces, labels, options)
    found = read_traces(traces)
    recipes = {
        "horizon": FitConfig(target="horizon", steps=options.steps, val_share=0.03),
        "answer": FitConfig(target="answer"),
    }
    for target in options.targets.split(","):
        clock = time.perf_counter()
        out_path = options.out / f"{NAMES[target]}.safetensors"
        fitted = fit(model, found, read_labels(labels), recipes[target], out_path=out_path)
        print(json.dumps(fitted.metrics, indent=1))
        _lap(f"fit {NAMES[target]}", clock)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="or a folder of a model that writes like it")
    parser.add_argument("--levels", default="3:100,4:350,5:350", help="levels, each with problems per family")
    parser.add_argument("--targets", default="horizon,answer")
    parser.add_argument("--steps", type=int, default=12000, help="of the horizon predictor")
    parser.add_argument("--device", default=None)
    parser.add_argument("--rows", type=int, default=2400)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def collect_and_label(model: Any, tokenizer: Any, traces: Path, labels: Path, options: argparse.Namespace) -> None:
    """Write one trace of each problem, going on with what is there, and the labels of the right ones."""
    counts = {int(level): int(count) for level, count in (entry.split(":") for entry in options.levels.split(","))}
    problems = [p for f in registry.FAMILIES for k, n in counts.items() for p in registry.sample(f, k, n, 0, "train")]
    sampling = Sampling(temperature=0.8, max_new_tokens=4200)
    clock = time.perf_counter()
    how = {"samples": 1, "sampling": sampling, "max_rows": options.rows, "resume": traces.exists()}
    print(collect(model, tokenizer, from_tasks(problems), traces, **how))
    clock = _lap("collect", clock)
    found = read_traces(traces)
    print(label_traces(model, found, labels, horizons=default_horizons(found), granularity="model", save_every=10**6))
    _lap("label", clock)


def _lap(what: str, since: float) -> float:
    now = time.perf_counter()
    print(f"{what}: {now - since:.1f} s", flush=True)
    return now


if __name__ == "__main__":
    main()
