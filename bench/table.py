"""Writes the README's measured table out of the result files: `python bench/table.py`; `--check` only compares."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
PLACE = re.compile(r"(<!-- table:policies -->\n).*?(<!-- /table -->)", re.DOTALL)


def policies_table() -> str:
    """Accuracy by policy and ratio, with what the numbers mean and where they come from."""
    found = json.loads((RESULTS / "policies.json").read_text())
    ratios = sorted({row["ratio"] for row in found["rows"]} - {1.0})
    by_cell = {(row["policy"], row["ratio"]): row for row in found["rows"]}
    budgets = {row["ratio"]: row["budget"] for row in found["rows"] if row["ratio"] > 1}
    slots = {ratio: budget["slots"] + budget["interval"] for ratio, budget in budgets.items()}
    head = "| policy | " + " | ".join(f"{ratio:g}x: {slots[ratio]} slots" for ratio in ratios) + " |"
    lines = [head, "|---" * (len(ratios) + 1) + "|"]
    lines.append("| full | " + " | ".join([_cell(by_cell["full", 1.0])] * len(ratios)) + " |")
    for policy in dict.fromkeys(row["policy"] for row in found["rows"] if row["policy"] != "full"):
        lines.append(f"| {policy} | " + " | ".join(_cell(by_cell[policy, ratio]) for ratio in ratios) + " |")
    birth = found["birth"]
    lines += [
        "",
        f"Greedy accuracy in % [95 % interval], n = {found['n']} held-out problems of six families whose full thought",
        f"has at least 1000 tokens (mean {found['mean_full_thought']:.0f}); {found['samples']} samples each at "
        f"temperature 0.6: full {_percent(by_cell['full', 1.0])},",
        f"horizon {' / '.join(_percent(by_cell['horizon', ratio]) for ratio in ratios)}.",
        "Slots = most thought slots held at any time, the prompt pinned on top for every policy. "
        f"{birth['hardware']}, torch {birth['torch']}, commit {birth['commit']},",
        f"[bench/results/policies.json](bench/results/policies.json), `{birth['command']}`.",
    ]
    return "\n".join(lines) + "\n"


def accuracy_sentence() -> str:
    """Accuracy of the embedded model itself."""
    found = json.loads((RESULTS / "accuracy.json").read_text())
    easy = [row["accuracy"] for row in found["rows"] if row["level"] < 5]
    hard = [row["accuracy"] for row in found["rows"] if row["level"] == 5]
    worst = min(found["rows"], key=lambda row: row["accuracy"])
    return (
        f"With the full cache the embedded model solves {100 * sum(easy) / len(easy):.1f} % of levels 1 to 4 and "
        f"{100 * sum(hard) / len(hard):.1f} % of level 5 ({found['rows'][0]['n']} held-out problems a cell, greedy;\n"
        f"worst: {worst['family']} level {worst['level']} with {100 * worst['accuracy']:.1f} %), "
        "[bench/results/accuracy.json](bench/results/accuracy.json).\n"
    )


def _cell(row: dict[str, Any]) -> str:
    mean, low, high = (100 * share for share in row["greedy"])
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def _percent(row: dict[str, Any]) -> str:
    return f"{100 * row['sampled'][0]:.1f}"


def main() -> None:
    """Rewrite README.md, or with --check leave with 1 if it is out of date."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    fresh = PLACE.sub(lambda m: m[1] + policies_table() + "\n" + accuracy_sentence() + m[2], text)
    if "--check" in sys.argv:
        sys.exit(fresh != text)
    readme.write_text(fresh)


if __name__ == "__main__":
    main()
