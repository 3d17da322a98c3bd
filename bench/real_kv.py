"""Keys and values in FP8 beside bfloat16: `bench/real_kv.py fp8 BFLOAT16 FP8`; what a policy costs: `... seconds RUN`.

The first takes two runs of `leanthink eval` that differ in --kv-cache-dtype and writes bench/results/real/fp8.json, the
second one without --together, and writes seconds.json. bench/gpu.mk has the runs, docs/measurements.md the tables.

P problems
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import one_a_line
from real_results import REAL
from real_table import commits, wrapped

from leanthink.eval.aggregated_results import AggregatedResults
from leanthink.eval.compare import FinishedRun, read_runs
from leanthink.eval.records import RECORDS, Record, read_records
from leanthink.eval.statistics import estimate, mean, p_values
from leanthink.utils.errors import UsageError

Row = dict[str, Any]


def main(arguments: Sequence[str]) -> None:
    """Write one of the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REAL, help="folder of the results")
    parser.add_argument("--predictor", default="", help="how the predictor was fitted, in words")
    verbs = parser.add_subparsers(dest="what", required=True)
    fp8 = verbs.add_parser("fp8")
    fp8.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="in bfloat16, then in FP8")
    verbs.add_parser("seconds").add_argument("runs", nargs=1, type=Path, metavar="RUN")
    options = parser.parse_args(arguments)
    try:
        runs = read_runs(options.runs)
        cells = list(fp8_cells(*runs) if options.what == "fp8" else seconds_cells(*runs))
    except UsageError as error:
        parser.error(str(error))
    about = {"births": [birth for run in runs for birth in run.provenances], "predictor": options.predictor}
    one_a_line.write_table(options.out / f"{options.what}.json", about | {"cells": cells}, "cells")


def fp8_cells(bfloat16: FinishedRun, fp8: FinishedRun) -> Iterator[Row]:
    """Each configuration in both, with the paired 95 % interval of the difference in percentage points."""
    digests = [{name: about["digest"] for name, about in run.benchmarks.items()} for run in (bfloat16, fp8)]
    named = {one.configuration.name: one for one in fp8.results}
    if digests[0] != digests[1] or named.keys() != {one.configuration.name for one in bfloat16.results}:
        raise UsageError(f"{bfloat16.folder} and {fp8.folder} asked other problems, or other policies and budgets")
    for one in bfloat16.results:
        other = named[one.configuration.name]
        if other.bytes_per_slot > one.bytes_per_slot:
            raise UsageError(f"the slots of {fp8.folder} are the larger ones: give the run in FP8 last")
        gains_P = other.column("right") - one.column("right")
        above = estimate(mean(gains_P), len(gains_P))
        yield {
            **_about(one),
            "problems": one.problems,
            "right": [_right(one), _right(other)],
            "fp8_above": [100 * (bound or 0.0) for bound in (above.value, above.low, above.high)],
            "p": p_values(gains_P[None])[0],
            "only_right": [int((gains_P < 0).sum()), int((gains_P > 0).sum())],
            "thought_tokens": [float(found.column("thought_tokens").mean()) for found in (one, other)],
            "capped": [int(sum(found.columns["capped"])) for found in (one, other)],
            "bytes_per_slot": [one.bytes_per_slot, other.bytes_per_slot],
        }


def seconds_cells(run: FinishedRun) -> Iterator[Row]:
    """Each configuration by itself: seconds to its last answer, and until half and nine tenths had ended."""
    of_cell: dict[str, list[Record]] = {}
    for record in read_records(run.folder / RECORDS):
        of_cell.setdefault(record.cell, []).append(record)
    for one in run.results:
        records = of_cell[one.configuration.name]
        ends = sorted(record.seconds for record in records if record.seconds is not None)
        if one.seconds is None or not ends:
            raise UsageError(f"{run.folder}: configurations that ran together have no seconds: leave out --together")
        tokens = [record.thought_tokens + record.answer_tokens for record in records]
        yield {
            **_about(one),
            "answers": len(records),
            "seconds": one.seconds,
            "half_ended": ends[len(ends) // 2],
            "nine_tenths_ended": ends[len(ends) * 9 // 10],
            "tokens": sum(tokens),
            "longest": max(tokens),
            "evictions": sum(record.evictions for record in records),
            "right": _right(one),
            "capped": int(sum(one.columns["capped"])),
        }


def fp8_table(path: Path = REAL / "fp8.json") -> str:
    """Right answers in both."""
    found = one_a_line.read_table(path, "cells")
    lines = [
        "| cache | bfloat16 | FP8 | FP8 above bfloat16 [paired 95 % interval] |",
        "|---|---|---|---|",
    ]
    for cell in found["cells"]:
        held = "" if cell["slots"] is None else f", {cell['slots']} slots"
        value, low, high = cell["fp8_above"]
        lines.append(
            f"| `{cell['policy']}`{held} | {cell['right'][0]:.1f} | {cell['right'][1]:.1f} "
            f"| {value:+.1f} [{low:+.1f}, {high:+.1f}] |"
        )
    told = f"{found['cells'][0]['problems']} problems; {_source(found, path)}"
    return "\n".join([*lines, "", *wrapped(told)]) + "\n"


def seconds_table(path: Path = REAL / "seconds.json") -> str:
    """Of the benchmark that was evaluated last: those before it warm up."""
    found = one_a_line.read_table(path, "cells")
    last = found["cells"][-1]["benchmark"]
    lines = ["| policy | seconds | half ended after | nine tenths | right % |", "|---|---|---|---|---|"]
    lines += [
        f"| `{cell['policy']}` | {cell['seconds']:.1f} | {cell['half_ended']:.1f} | {cell['nine_tenths_ended']:.1f} "
        f"| {cell['right']:.1f} |"
        for cell in found["cells"]
        if cell["benchmark"] == last
    ]
    told = (
        f"{found['cells'][-1]['answers']} answers at once, {found['cells'][-1]['slots']} slots; {_source(found, path)}"
    )
    return "\n".join([*lines, "", *wrapped(told)]) + "\n"


def _about(found: AggregatedResults) -> Row:
    budget = found.configuration.budget
    return {
        "benchmark": found.configuration.benchmark,
        "policy": found.configuration.policy,
        "slots": None if budget is None else budget.slots + budget.eviction_interval,
    }


def _right(found: AggregatedResults) -> float:
    return 100 * float(found.column("right").mean())


def _source(found: Row, path: Path) -> str:
    first = found["births"][0]
    return (
        f"{first['hardware']}, torch {first['torch']}, commit {commits(found['births'])}, "
        f"[{path.name}](../bench/results/real/{path.name}); the predictor as {found['predictor']} makes it."
    )


if __name__ == "__main__":
    main(sys.argv[1:])
