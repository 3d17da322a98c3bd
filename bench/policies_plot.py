"""Draws the matrix of policies: `python bench/policies_plot.py` writes bench/results/policies.svg."""

from __future__ import annotations

from typing import Any

from drawing import drawing
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator
from table import held, policies_found, rows_by_policy, worth_showing

MARKERS = "os^DvPX*"
FULL = "#888888"


def main() -> None:
    """Greedy accuracy with its interval over the thought slots held, a line for each policy that keeps anything."""
    found = policies_found()
    by_policy = rows_by_policy(found)
    with drawing("policies", (7.2, 4.0)) as figure:
        axes = figure.subplots()
        axes.axhline(100 * by_policy["full"][1.0]["greedy"][0], color=FULL, linewidth=1, linestyle="--", label="full")
        for marker, name in zip(MARKERS, ["horizon", *worth_showing(found)], strict=False):
            line(axes, name, list(by_policy[name].values()), marker)
        slots = [held(row) for row in by_policy["horizon"].values()]
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(slots))
        axes.set_xticks(slots, [f"{held(row)}\n{ratio:g}x" for ratio, row in by_policy["horizon"].items()])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(
            f"most thought slots held; mean full thought {found['mean_full_thought']:.0f} tokens over slots"
        )
        axes.set_ylabel("right, %, greedy")
        axes.set_ylim(0, 100)
        axes.grid(linewidth=0.4)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def line(axes: Any, name: str, rows: list[dict[str, Any]], marker: str) -> None:
    """One policy over its budgets."""
    middle, low, high = zip(*([100 * share for share in row["greedy"]] for row in rows), strict=True)
    errors = [
        [m - bound for m, bound in zip(middle, low, strict=True)],
        [bound - m for m, bound in zip(middle, high, strict=True)],
    ]
    axes.errorbar(
        list(map(held, rows)), middle, errors, marker=marker, markersize=4, linewidth=1.2, capsize=2, label=name,
        clip_on=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
