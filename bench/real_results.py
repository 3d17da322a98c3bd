"""Puts finished evaluations of one model together: `bench/real_results.py --model-name NAME RUN [[NAME=]RUN ...]`.

Writes bench/results/real/BENCHMARK.json for each benchmark of the first run: settings and provenance of all
runs, and of each cell which answers are right, a digit for each problem (`digits` reads them), so that every paired
interval can be computed from it. The policies of a run that is given as a folder keep their names; those of one that is
given as NAME=RUN are called POLICY:NAME, such as `horizon:layer` for a run with another predictor. The full cache is
that of the first run; another run's, if it has one, is only compared with it.
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import one_a_line

from leanthink.eval.aggregated_results import AggregatedResults
from leanthink.eval.compare import FinishedRun, read_runs
from leanthink.eval.configurations import FULL
from leanthink.utils.errors import UsageError

REAL = Path(__file__).parent / "results" / "real"
MOST_SAMPLES = 9  # as many as one digit tells
ALIKE = ("fingerprint", "dtype", "sampling", "samples", "slots")  # settings of all runs


def main(arguments: Sequence[str]) -> None:
    """Write a file for each benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders that `leanthink eval` wrote; as NAME=RUN, all "
                        "but the first, where policies have the same names")  # fmt: skip
    parser.add_argument("--model-name", required=True, help="what tables call the model")
    parser.add_argument("--out", type=Path, default=REAL, help="folder of the results")
    options = parser.parse_args(arguments)
    try:
        found = together(options.runs, options.model_name)
    except UsageError as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, document in found.items():
        one_a_line.write_table(options.out / f"{name}.json", document, "cells")
        differing = {run: told["full_differs"] for run, told in document["runs"].items() if told["full_differs"]}
        told = f"; full caches differ: {differing}" if differing else ""
        print(f"{options.out / name}.json: {len(document['cells'])} cells{told}")


def together(given: Sequence[str], model_name: str) -> dict[str, dict[str, Any]]:
    """The document of each benchmark. Raises UsageError for runs that cannot stand in one table."""
    named = [text.rpartition("=")[::2] for text in given]
    if named[0][0]:
        raise UsageError(f"{given[0]!r}: give the first run as a folder, without a name")
    for name in {name for name, _ in named if name}:
        if sum(name == other for other, _ in named) > 1:
            raise UsageError(f"two runs are called {name!r}")
    found = read_runs([Path(folder) for _, folder in named])
    runs = [(name, run) for (name, _), run in zip(named, found, strict=True)]
    first = found[0]
    _check_alike(first, found)
    return {
        benchmark: _document(benchmark, [(name, run) for name, run in runs if benchmark in run.benchmarks])
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


def _document(benchmark: str, runs: Sequence[tuple[str, FinishedRun]]) -> dict[str, Any]:
    first = runs[0][1]
    cells = [[cell for cell in run.results if cell.configuration.benchmark == benchmark] for _, run in runs]
    full = _full(cells[0])
    if full is None:
        raise UsageError(f"{first.folder} has no full cache on {benchmark}: it is what all others are compared with")
    slots = {_slots(cell) for cell in cells[0]}
    told: dict[str, Any] = {}
    records = [_record("", full)]
    for (name, run), found in zip(runs, cells, strict=True):
        if odd := sorted({_slots(cell) for cell in found} - slots):
            raise UsageError(
                f"{run.folder} holds at most {odd} slots, {first.folder} never: give it the same --budgets"
            )
        records += [_record(name, cell) for cell in found if not _is_full(cell)]
        told[name or ("first" if run is first else run.folder.name)] = {
            "births": run.provenances,
            "predictors": run.settings["predictors"],
            "full_differs": _differing(_full(found), full),
        }
    for record in records:
        if sum((one["policy"], one["budget"]) == (record["policy"], record["budget"]) for one in records) > 1:
            raise UsageError(f"two runs have {record['policy']} with the same budget: give one of them as NAME=RUN")
    about, ids = first.benchmarks[benchmark], first.benchmarks[benchmark]["ids"]
    return {
        "benchmark": benchmark,
        "model": None,
        "problems": {"count": len(ids), "first": ids[0], "last": ids[-1], "digest": about["digest"]},
        "mean_full_thought": float(full.column("thought_tokens").mean()),
        "settings": {name: first.settings[name] for name in ALIKE},
        "runs": told,
        "cells": records,
    }


def _record(name: str, cell: AggregatedResults) -> dict[str, Any]:
    means = {column: float(cell.column(column).mean()) for column in ("thought_tokens", "peak_slots", "capped")}
    return {
        "policy": f"{cell.configuration.policy}:{name}" if name else cell.configuration.policy,
        "budget": cell.configuration.record["budget"],
        "right": packed("".join(str(int(count)) for count in cell.columns["right"]), cell.samples),
        **means,
    }


def packed(text: str, samples: int) -> str:
    """Digits of 0 to `samples` as a file holds them: one number in that base, its bytes in base 64."""
    number = 0
    for digit in text:
        number = number * (samples + 1) + int(digit)
    return base64.b64encode(number.to_bytes((number.bit_length() + 7) // 8)).decode("ascii")


def digits(document: Mapping[str, Any], cell: Mapping[str, Any]) -> str:
    """How many answers to each problem are right, a digit for each, of a cell of a document as a file holds it."""
    number, found = int.from_bytes(base64.b64decode(cell["right"])), ""
    for _ in range(document["problems"]["count"]):
        number, digit = divmod(number, document["settings"]["samples"] + 1)
        found = f"{digit}{found}"
    return found


def _differing(full: AggregatedResults | None, first: AggregatedResults) -> int | None:
    """In how many problems two full caches differ in right answers or length; None without a second one."""
    if full is None:
        return None
    ours, theirs = (zip(one.columns["right"], one.columns["thought_tokens"], strict=True) for one in (full, first))
    return sum(one != other for one, other in zip(ours, theirs, strict=True))


def _full(cells: Sequence[AggregatedResults]) -> AggregatedResults | None:
    return next((cell for cell in cells if _is_full(cell)), None)


def _is_full(cell: AggregatedResults) -> bool:
    return cell.configuration.policy == FULL


def _slots(cell: AggregatedResults) -> int:
    """Most thought slots; 0 stands for all."""
    budget = cell.configuration.budget
    return 0 if budget is None else budget.slots + budget.eviction_interval


if __name__ == "__main__":
    main(sys.argv[1:])
