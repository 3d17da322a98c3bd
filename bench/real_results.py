"""Puts finished evaluations of one model together: `python bench/real_results.py --model-name NAME RUN [NAME=RUN ...]`.

Writes bench/results/real/BENCHMARK.json for each benchmark of the first run: settings and birth certificates of all
runs, and of each cell which answers are right, a digit for each problem, so that every paired interval can be computed
from it. The policies of the first run keep their names; those of a run that is given as NAME=RUN are called
POLICY:NAME, such as `horizon:layer` for a run with another predictor. Its full cache, if it has one, is only compared
with that of the first run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import one_a_line

from leanthink.errors import UsageError
from leanthink.eval.cells import FULL
from leanthink.eval.compare import FinishedRun, read_runs
from leanthink.eval.outcomes import Outcomes

REAL = Path(__file__).parent / "results" / "real"
MOST_SAMPLES = 9  # as many as one digit tells
ALIKE = ("fingerprint", "dtype", "sampling", "samples", "slots")  # settings of all runs


def main(arguments: Sequence[str]) -> None:
    """Write a file for each benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders that `leanthink eval` wrote; all but the first "
                        "as NAME=RUN")  # fmt: skip
    parser.add_argument("--model-name", required=True, help="what tables call the model")
    parser.add_argument("--out", type=Path, default=REAL, help="folder of the results")
    options = parser.parse_args(arguments)
    try:
        found = together(options.runs, options.model_name)
    except UsageError as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, document in found.items():
        one_a_line.write(options.out / f"{name}.json", document, "cells")
        differing = {run: told["full_differs"] for run, told in document["runs"].items() if told["full_differs"]}
        told = f"; full caches differ: {differing}" if differing else ""
        print(f"{options.out / name}.json: {len(document['cells'])} cells{told}")


def together(given: Sequence[str], model_name: str) -> dict[str, dict[str, Any]]:
    """The document of each benchmark. Raises UsageError for runs that cannot stand in one table."""
    names: list[str] = []
    folders: list[Path] = []
    for text in given:
        name, equals, folder = text.rpartition("=")
        if bool(equals) != bool(folders):
            raise UsageError(f"{text!r}: give the first run as a folder, and each other one as NAME=FOLDER")
        if name in names:
            raise UsageError(f"two runs are called {name!r}")
        names.append(name)
        folders.append(Path(folder))
    runs = dict(zip(names, read_runs(folders), strict=True))
    first = runs[""]
    _check_alike(first, list(runs.values()))
    return {
        benchmark: _document(benchmark, {name: run for name, run in runs.items() if benchmark in run.benchmarks})
        | {"model": model_name}
        for benchmark in first.benchmarks
    }


def _check_alike(first: FinishedRun, runs: Sequence[FinishedRun]) -> None:
    if not 1 <= first.settings["samples"] <= MOST_SAMPLES:
        raise UsageError(f"{first.folder} has {first.settings['samples']} samples of each problem, at most "
                         f"{MOST_SAMPLES} have room")  # fmt: skip
    for run in runs:
        for name in ALIKE:
            if run.settings[name] != first.settings[name]:
                raise UsageError(f"{run.folder} has {name} {run.settings[name]}, {first.folder} {first.settings[name]}")
        for name, about in run.benchmarks.items():
            if name in first.benchmarks and about["digest"] != first.benchmarks[name]["digest"]:
                raise UsageError(f"{run.folder} and {first.folder} asked different problems under the name {name}")


def _document(benchmark: str, runs: Mapping[str, FinishedRun]) -> dict[str, Any]:
    first = runs[""]
    cells = {name: [cell for cell in run.cells if cell.cell.benchmark == benchmark] for name, run in runs.items()}
    full = _full(cells[""])
    if full is None:
        raise UsageError(f"{first.folder} has no full cache on {benchmark}: it is what all others are compared with")
    slots = {_slots(cell) for cell in cells[""]}
    for name, run in runs.items():
        if odd := sorted({_slots(cell) for cell in cells[name]} - slots):
            raise UsageError(
                f"{run.folder} holds at most {odd} slots, {first.folder} never: give it the same --budgets"
            )
    about, ids = first.benchmarks[benchmark], first.benchmarks[benchmark]["ids"]
    return {
        "benchmark": benchmark,
        "model": None,
        "problems": {"count": len(ids), "first": ids[0], "last": ids[-1], "digest": about["digest"]},
        "mean_full_thought": float(full.column("thought_tokens").mean()),
        "settings": {name: first.settings[name] for name in ALIKE},
        "runs": {
            name or "first": {
                "births": run.births,
                "predictors": run.settings["predictors"],
                "full_differs": _differing(_full(cells[name]), full),
            }
            for name, run in runs.items()
        },
        "cells": [
            _record(name, cell) for name, found in cells.items() for cell in found if not (name and _is_full(cell))
        ],
    }


def _record(name: str, cell: Outcomes) -> dict[str, Any]:
    means = {column: float(cell.column(column).mean()) for column in ("thought_tokens", "peak_slots", "capped")}
    return {
        "policy": f"{cell.cell.policy}:{name}" if name else cell.cell.policy,
        "budget": cell.cell.record["budget"],
        "right": "".join(str(int(count)) for count in cell.columns["right"]),
        **means,
    }


def _differing(full: Outcomes | None, first: Outcomes) -> int | None:
    """In how many problems two full caches differ in right answers or length; None without a second one."""
    if full is None:
        return None
    ours, theirs = (zip(one.columns["right"], one.columns["thought_tokens"], strict=True) for one in (full, first))
    return sum(one != other for one, other in zip(ours, theirs, strict=True))


def _full(cells: Sequence[Outcomes]) -> Outcomes | None:
    return next((cell for cell in cells if _is_full(cell)), None)


def _is_full(cell: Outcomes) -> bool:
    return cell.cell.policy == FULL


def _slots(cell: Outcomes) -> int:
    """Most thought slots; 0 stands for all."""
    budget = cell.cell.budget
    return 0 if budget is None else budget.slots + budget.interval


if __name__ == "__main__":
    main(sys.argv[1:])
