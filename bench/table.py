"""Writes the measured tables of README and docs out of the result files: `python bench/table.py`.

`--check` only compares: it leaves with 1 if a page is out of date.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import one_a_line
import real_kv
import real_table
import speed_table
from real_table import commits, wrapped

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
STOCK = "llama-3.1-8b-stock"
BEST = 0.5  # of the problems right at some ratio: in the first table


def policies_table() -> str:
    """Accuracy by policy and ratio of the best, with what the numbers mean and where they come from."""
    found = policies_found()
    by_policy = rows_by_policy(found)
    birth = found["birth"]
    sampled = " / ".join(_percent(row) for row in by_policy["horizon"].values())
    text = (
        f"The embedded reasoner `tiny`: greedy accuracy in % [95 % interval], n = {found['n']} held-out problems of "
        f"six families with a full thought of at least 1000 tokens (mean {found['mean_full_thought']:.0f}); slots = "
        "most thought slots held, the prompt pinned on top. `oracle` knows what will be read: an upper bound. "
        f"{found['samples']} samples each at 0.6: full {_percent(by_policy['full'][1.0])}, horizon {sampled}. "
        f"The others, all below {100 * BEST:.0f}, are in the next table. "
        f"{birth['hardware']}, torch {birth['torch']}, commits {commits([birth, *found['resumed']])}, "
        "[policies.json](../bench/results/policies.json), `bench/policies.py`."
    )
    return "\n".join([*_matrix(found, ["horizon", *worth_showing(found, BEST)]), "", *wrapped(text)]) + "\n"


def matrix_table() -> str:
    """The same for every policy that was measured."""
    found = policies_found()
    lines = _matrix(found, [name for name in rows_by_policy(found) if name != "full"])
    lengths = [
        row["thought_tokens"] / found["mean_full_thought"] - 1 for row in rows_by_policy(found)["horizon"].values()
    ]
    told = ", ".join(f"{100 * longer:+.1f}" for longer in lengths)
    lines += ["", f"Thoughts under `horizon` are {told} % longer than with the full cache, from the left to the right."]
    return "\n".join([*lines, *wrapped(accuracy_sentence())]) + "\n"


def policies_found() -> dict[str, Any]:
    """What bench/policies.py wrote."""
    return one_a_line.read_table(RESULTS / "policies.json", "resumed", "rows")


def rows_by_policy(found: dict[str, Any]) -> dict[str, dict[float, dict[str, Any]]]:
    """By policy and ratio, in the order of the file, ratios ascending."""
    rows: dict[str, dict[float, dict[str, Any]]] = {}
    for row in sorted(found["rows"], key=lambda row: float(row["ratio"])):
        rows.setdefault(row["policy"], {})[row["ratio"]] = row
    return rows


def held(row: dict[str, Any]) -> int:
    """Thought slots at the fullest moment, by the budget."""
    return int(row["budget"]["slots"] + row["budget"]["interval"])


def worth_showing(found: dict[str, Any], share: float) -> list[str]:
    """Policies beside `full` and `horizon` that have this share right anywhere, the best at its best ratio first."""
    best = {name: max(row["greedy"][0] for row in rows.values()) for name, rows in rows_by_policy(found).items()}
    names = [name for name in best if name not in ("full", "horizon") and not _is_ablation(name)]
    return sorted((name for name in names if best[name] >= share), key=lambda name: -best[name])


def _is_ablation(name: str) -> bool:
    """Whether a variant is only shown with all the others; DynTS with the window of its paper is not."""
    return ":" in name and name != "dynts:wide"


def _matrix(found: dict[str, Any], names: list[str]) -> list[str]:
    """A line for the full cache and one for each of these policies."""
    by_policy = rows_by_policy(found)
    ratios = list(by_policy["horizon"])
    head = (f"{ratio:g}x: {held(row)} slots" for ratio, row in by_policy["horizon"].items())
    lines = [f"| policy | {' | '.join(head)} |", "|---" * (len(ratios) + 1) + "|"]
    lines.append(f"| full | {' | '.join([_cell(by_policy['full'][1.0])] * len(ratios))} |")
    return lines + [f"| {name} | {' | '.join(_cell(by_policy[name].get(r)) for r in ratios)} |" for name in names]


def accuracy_sentence() -> str:
    """Accuracy of the embedded model itself."""
    found = one_a_line.read_table(RESULTS / "accuracy.json", "rows")
    easy = [row["accuracy"] for row in found["rows"] if row["level"] < 5]
    hard = [row["accuracy"] for row in found["rows"] if row["level"] == 5]
    worst = min(found["rows"], key=lambda row: row["accuracy"])
    return (
        f"With the full cache the embedded model solves {100 * sum(easy) / len(easy):.1f} % of levels 1 to 4, "
        f"{100 * sum(hard) / len(hard):.1f} % of level 5 ({found['rows'][0]['n']} problems a cell; "
        f"worst {100 * worst['accuracy']:.1f} %; [accuracy.json](../bench/results/accuracy.json))."
    )


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    mean, low, high = (100 * share for share in row["greedy"])
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def stock_lines() -> str:
    """Steps of transformers itself, at the rows and slots of a cell of ours, measured in one run."""
    found: dict[str, Any] = json.loads((RESULTS / f"engine-{STOCK}" / "bench.json").read_text())
    part = found["parts"].get("hf-baseline") or found["parts"]["stock"]  # what it was called before
    (cell,) = part["cells"]
    ways = {"`generate`": cell["generate"], "continuous batching": cell["continuous_batching"]}
    told = [f"{how} {way['step_ms']['median']:.0f} ms ({way['ratio_to_ours']:.1f}x ours)" for how, way in ways.items()]
    return (
        f"A step of stock transformers {found['birth']['transformers']} at {cell['batch']} x {cell['slots']} "
        f"({found['options']['shape']}, {part['attention']}): {', its '.join(told)}.\n"
    )


def first_table(report: Path) -> str:
    """The head of a report of `leanthink compare`, up to the end of its first table."""
    lines = report.read_text(encoding="utf-8").splitlines()
    begin = next(at for at, line in enumerate(lines) if line.startswith("|"))
    end = next(at for at in range(begin, len(lines)) if not lines[at])
    return "\n".join(lines[:end]) + "\n"


def ray_lines() -> str:
    """Seconds for the same requests in this process and on engines of a cluster, and how they were measured."""
    found = json.loads((RESULTS / "ray_speedup.json").read_text())
    settings, birth = found["settings"], found["birth"]
    lines = ["| way | seconds, median (p10 to p90) | tokens/s | against 1 thread | against 1 engine | opening, s |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for name, way in found["ways"].items():
        took, opening = way["seconds"], way["opening_seconds"]
        cells = [
            name,
            f"{took['median']:.1f} ({took['p10']:.1f} to {took['p90']:.1f})",
            f"{way['tokens_per_second']:.0f}",
            f"{way['speedup_over_1_thread']:.2f}x",
            f"{way['speedup_over_1_engine']:.2f}x",
            "–" if opening is None else f"{opening['median']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"{settings['requests']} requests of {settings['tokens']} tokens in all, {settings['rows']} at a time,",
        f"{settings['repeats']} repeats; {settings['cores']} cores (load average "
        f"{settings['load_average'][0]:.1f}, this included); two processes that share nothing do "
        f"{found['gain_of_a_second_process']['median']:.2f}x the matrix products of one here;",
        f"{birth['hardware']}, torch {birth['torch']}, commit {birth['commit']}, `{birth['command']}`.",
    ]
    return "\n".join(lines) + "\n"


def _percent(row: dict[str, Any]) -> str:
    return f"{100 * row['sampled'][0]:.1f}"


def _with_table(text: str, name: str, table: str) -> str:
    """A page with this table where it has one of that name."""
    place = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- /table -->)", re.DOTALL)
    return place.sub(lambda marks: marks[1] + table + marks[2], text)


def main() -> None:
    """Rewrite the pages, or with --check leave with 1 if one is out of date."""
    speed = speed_table.read()
    pages = {
        "README.md": {"speed": speed_table.short_table(speed)},
        "docs/measurements.md": {
            "policies": policies_table(),
            "matrix": matrix_table(),
            "speed": speed_table.whole_tables(speed),
            "stock": stock_lines(),
            "fp8": real_kv.fp8_table(),
            "seconds": real_kv.seconds_table(),
        },
        "docs/ray.md": {"ray-speedup": ray_lines()},
        "docs/evaluation.md": {"eval-tiny": first_table(RESULTS / "eval-tiny" / "report.md")},
    }
    if found := real_table.read():
        pages["README.md"]["real"] = real_table.short_table(found)
        pages["docs/measurements.md"]["real"] = real_table.whole_tables(found)
    stale = False
    for page, tables in pages.items():
        text = fresh = (ROOT / page).read_text()
        for name, table in tables.items():
            fresh = _with_table(fresh, name, table)
        stale |= fresh != text
        if "--check" not in sys.argv:
            (ROOT / page).write_text(fresh)
    sys.exit("--check" in sys.argv and stale)


if __name__ == "__main__":
    main()
