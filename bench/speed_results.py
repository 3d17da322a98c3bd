"""Puts what `leanthink bench` measured on one GPU together: `bench/speed_results.py RUN [RUN ...] --out FILE`.

A RUN is a folder that it wrote. The file has a table for each of the parts `prompts`, `decode`, `eviction` and
`throughput`, with vLLM's numbers of the same run beside ours, and one of the runs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import one_a_line

TABLES = ("runs", "prompts", "decode", "horizon", "throughput")
SAME = ("hardware", "python", "torch", "transformers")  # in all runs
WHAT = (
    "ms as median, p10, p90; first_token: medians over the rounds of p50 and of p99; horizon: steps whose evictions "
    "are spread evenly, beside a full cache that only holds as many slots; vllm: of the same run, after ours"
)
BENCH = "bench.json"
Row = dict[str, Any]


def main(arguments: Sequence[str]) -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    if missing := [str(run) for run in options.runs if not (run / BENCH).is_file()]:
        parser.error(f"no run of `leanthink bench`, as it has no {BENCH}: {', '.join(missing)}")
    found = {run.resolve().name: json.loads((run / BENCH).read_text(encoding="utf-8")) for run in options.runs}
    if len(found) < len(options.runs):
        parser.error("two runs have folders of the same name, by which they would be known: rename one")
    for name in SAME:
        if len(values := {document["birth"][name] for document in found.values()}) > 1:
            parser.error(f"runs with different {name}: {', '.join(sorted(values))}; a file for each")
    one_a_line.write_table(options.out, together(found), *TABLES)


def together(found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """One document of the `bench.json` of each run."""
    first = next(iter(found.values()))["birth"]
    versions = {version for run in found.values() if (version := _part(run, "vllm-baseline").get("version"))}
    rows = {table: [row for name, run in found.items() for row in READ[table](name, run)] for table in TABLES}
    dates = sorted({document["birth"]["date"] for document in found.values()})
    about = {name: first[name] for name in SAME}
    return {**about, "vllm": ", ".join(sorted(versions)), "date": " to ".join(dates), "what": WHAT, **rows}


def _runs(name: str, run: dict[str, Any]) -> Iterator[Row]:
    birth, options = run["birth"], run["options"]
    yield {
        "run": name,
        "shape": options["shape"],
        "kv_cache_dtype": options["kv_cache_dtype"],
        "kv_gib": options["kv_gib"],
        "commit": birth["commit"],
        "command": _without_out(birth["command"]),
        "copy_bytes_per_second": _median(_part(run, "roofline"), "copy_bytes_per_second"),
        "matrix_flop_per_second": _median(_part(run, "prompts"), "matrix_flop_per_second"),
    }


def _prompts(name: str, run: dict[str, Any]) -> Iterator[Row]:
    for cell in _cells(run, "prompts"):
        ours = cell["leanthink"]
        vllm = _vllm(run, "prompts", prompts=cell["prompts"], tokens=cell["tokens"])
        yield {
            "run": name,
            "prompts": cell["prompts"],
            "tokens": cell["tokens"],
            "floor_ms": cell["floor_ms"],
            "ours": _spread(ours, "ms"),
            "ours_first_token": _first_token(ours),
            "vllm": _spread(vllm, "ms"),
            "vllm_first_token": _first_token(vllm),
            "transformers": _spread(cell.get("transformers", {}), "ms"),
        }


def _decode(name: str, run: dict[str, Any]) -> Iterator[Row]:
    for cell in _cells(run, "decode"):
        vllm = _vllm(run, "decode", batch=cell["batch"], slots=cell["slots"])
        yield {
            "run": name,
            "rows": cell["batch"],
            "slots": cell["slots"],
            "floor_ms": cell["floor_ms"],
            "ours": _spread(cell, "step_ms"),
            "ours_mean": cell["step_ms"]["mean"],
            "vllm": _spread(vllm, "step_ms"),
            "vllm_mean": vllm["step_ms"]["mean"] if vllm else None,
        }


def _horizon(name: str, run: dict[str, Any]) -> Iterator[Row]:
    for cell in _cells(run, "eviction"):
        ours, full = cell["horizon"], cell["full"]
        yield {
            "run": name,
            "rows": cell["batch"],
            "budget": cell["budget"],
            "horizon": _spread(ours, "step_ms"),
            "horizon_mean": ours["step_ms"]["mean"],
            "full": _spread(full, "step_ms"),
            "full_mean": full["step_ms"]["mean"],
            "evictions": ours["evictions"],
            "eviction_share": ours["eviction_share"],
        }


def _throughput(name: str, run: dict[str, Any]) -> Iterator[Row]:
    vllm = _vllm(run, "throughput")
    for cell in (*_cells(run, "throughput", "policies"), *([vllm | {"policy": "vllm"}] if vllm else [])):
        yield {
            "run": name,
            "policy": cell["policy"],
            "budget": cell.get("budget"),
            "rows": cell["rows"],
            "step_ms": _spread(cell, "step_ms"),
            "tokens_per_second": cell["tokens_per_second"],
        }


READ = {"runs": _runs, "prompts": _prompts, "decode": _decode, "horizon": _horizon, "throughput": _throughput}


def _part(run: dict[str, Any], part: str) -> dict[str, Any]:
    """{} where it was not measured."""
    return dict(run["parts"].get(part, {}))


def _cells(run: dict[str, Any], part: str, name: str = "cells") -> list[dict[str, Any]]:
    """Those that could be measured."""
    return [cell for cell in _part(run, part).get(name, ()) if "error" not in cell]


def _vllm(run: dict[str, Any], part: str, **of: int) -> dict[str, Any]:
    """The cell of vLLM; {} where it was not measured."""
    cells = (cell for cell in _cells(run, "vllm-baseline") if cell["part"] == part)
    return next((cell for cell in cells if all(cell[name] == value for name, value in of.items())), {})


def _spread(cell: dict[str, Any], name: str) -> list[float] | None:
    return [cell[name][at] for at in ("median", "p10", "p90")] if name in cell else None


def _median(part: dict[str, Any], name: str) -> float | None:
    return part[name]["median"] if name in part else None


def _first_token(cell: dict[str, Any]) -> list[float] | None:
    return [cell[f"first_token_{at}_ms"]["median"] for at in ("median", "p99")] if cell else None


def _without_out(command: str) -> str:
    words = shlex.split(command)
    if "--out" in words:
        at = words.index("--out")
        del words[at : at + 2]
    return shlex.join(words)


if __name__ == "__main__":
    main(sys.argv[1:])
