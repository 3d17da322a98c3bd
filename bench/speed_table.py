"""The tables of speed beside vLLM, out of what bench/speed_results.py wrote of the runs in bench/gpu.mk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import one_a_line
from real_table import NARROW, commits, wrapped
from speed_results import TABLES

from leanthink.eval.tables import MISSING

RESULT = Path(__file__).parent / "results" / "speed-h200.json"
KEPT_AS = {"auto": "bfloat16", "fp8": "FP8"}
Row = dict[str, Any]


def read(path: Path = RESULT) -> dict[str, Any]:
    """The document, with the shape and dtype of its run in every row."""
    found = one_a_line.read_table(path, *TABLES)
    runs = {run["run"]: run for run in found["runs"]}
    return found | {table: [runs[row["run"]] | row for row in found[table]] for table in TABLES}


def steps_table(found: dict[str, Any]) -> str:
    """Decoding steps beside the floor and vLLM's, and what `horizon` adds."""
    horizon = {(row["shape"], row["kv_cache_dtype"], row["rows"], row["budget"]): row for row in found["horizon"]}
    lines = [
        f"| shape | rows x slots | floor | ours [p10, p90] | of the floor | {_vllm(found)} [p10, p90] "
        "| `horizon` on top: median | mean |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["decode"]:
        added = horizon.get((row["shape"], row["kv_cache_dtype"], row["rows"], row["slots"]))
        medians = MISSING if added is None else _above(added["horizon"][0], added["full"][0])
        means = MISSING if added is None else _above(added["horizon_mean"], added["full_mean"])
        lines.append(
            f"| {row['shape']} | {row['rows']} x {row['slots']} | {row['floor_ms']:.2f} | {_ms(row['ours'])} "
            f"| {row['ours'][0] / row['floor_ms']:.2f} | {_ms(row['vllm'])} | {medians} | {means} |"
        )
    return "\n".join(lines) + "\n"


def prompts_table(found: dict[str, Any]) -> str:
    """Until all prompts have their first token, and when half and 99 of 100 of them have it."""
    lines = [
        f"| shape | prompts x tokens | floor | ours: all (p50, p99) | {_vllm(found)} | transformers |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['shape']} | {row['prompts']} x {row['tokens']} | {row['floor_ms']:.0f} | {_first_token(row, 'ours')} "
        f"| {_first_token(row, 'vllm')} | {_whole(row['transformers'])} |"
        for row in found["prompts"]
    ]
    return "\n".join(lines) + "\n"


def throughput_table(found: dict[str, Any], *, rows: bool = True) -> str:
    """Tokens per second from the same memory, by budget; with `rows`, how many requests decode together."""
    runs: dict[str, list[Row]] = {}
    for row in found["throughput"]:
        runs.setdefault(row["run"], []).append(row)
    budgets = dict.fromkeys(row["budget"] for row in found["throughput"] if row["budget"] is not None)
    heads = [f"budget {budget}" for budget in budgets]
    lines = [
        f"| shape, keys and values | {' | '.join(['full', *heads, _vllm(found)])} |",
        "|---" * (3 + len(budgets)) + "|",
    ]
    for measured in runs.values():
        of = {(row["policy"], row["budget"]): row for row in measured}
        full = of.get(("full", None))
        cells = [
            _tokens(full, None, rows),
            *(_tokens(of.get(("horizon", budget)), full, rows) for budget in budgets),
            _tokens(of.get(("vllm", None)), None, rows),
        ]
        run = measured[0]
        lines.append(
            f"| {run['shape']}, {run['kv_gib']:g} GiB in {KEPT_AS[run['kv_cache_dtype']]} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def whole_tables(found: dict[str, Any]) -> str:
    """All of them, with what the numbers mean and where they come from."""
    steps = (
        "Milliseconds of a decoding step, full cache. Floor = bytes of weights and held slots over the bandwidth of a "
        "copy in the same run; `horizon` on top = its step against one of a full cache that only holds as many slots, "
        "interval 128."
    )
    prompts = (
        "Milliseconds until all prompts have their first token (half of them, 99 of 100). Floor = matrix products "
        "at the rate of a large one in the same run."
    )
    throughput = (
        "Tokens per second, `horizon`, requests of 512 + 16384 tokens in the middle of their lives; in brackets how "
        "many decode together."
    )
    source = (
        f"{found['hardware']}, torch {found['torch']}, random weights in bfloat16, commit {commits(found['runs'])}, "
        f"[{RESULT.name}](../bench/results/{RESULT.name}), which has the commands."
    )
    parts = [
        (steps_table(found), steps),
        (prompts_table(found), prompts),
        (throughput_table(found), f"{throughput} {source}"),
    ]
    return "\n".join(table + "\n" + "\n".join(wrapped(told)) + "\n" for table, told in parts)


def short_table(found: dict[str, Any]) -> str:
    """Tokens per second, for README."""
    told = (
        f"Tokens per second, `horizon`, requests of 512 + 16384, random weights, {found['hardware']}. "
        "[More](docs/measurements.md#speed)."
    )
    return throughput_table(found, rows=False) + "\n" + "\n".join(wrapped(told, NARROW)) + "\n"


def _whole(spread: list[float] | None) -> str:
    return MISSING if spread is None else f"{spread[0]:.0f}"


def _vllm(found: dict[str, Any]) -> str:
    return f"vLLM {found['vllm']}".strip()


def _ms(spread: list[float] | None) -> str:
    return MISSING if spread is None else f"{spread[0]:.2f} [{spread[1]:.2f}, {spread[2]:.2f}]"


def _above(ours: float, full: float) -> str:
    return f"{round(100 * (ours / full - 1), 1) + 0.0:+.1f} %"  # no -0.0


def _first_token(row: Row, whose: str) -> str:
    if row[whose] is None:
        return MISSING
    half, most = row[f"{whose}_first_token"]
    return f"{_whole(row[whose])} ({half:.0f}, {most:.0f})"


def _tokens(row: Row | None, full: Row | None, rows: bool) -> str:
    if row is None:
        return MISSING
    ratio = "" if full is None else f"{row['tokens_per_second'] / full['tokens_per_second']:.1f}x"
    together = f"{row['rows']:.0f}" if rows else ""
    told = ", ".join(one for one in (ratio, together) if one)
    return f"{row['tokens_per_second']:.0f}" + (f" ({told})" if told else "")
