"""Draws the arms of DeepCompress: `python bench/deepcompress_plot.py` writes bench/results/deepcompress.svg."""

from __future__ import annotations

from typing import Any

import matplotlib
from deepcompress_table import BASE, START, Run, by_arm, column, read
from matplotlib.figure import Figure
from table import RESULTS

CURVES = {"accuracy": "right in training, share", "thought_tokens": "thought tokens", "self_checks": "self-checks"}
SMOOTHED = 10  # steps whose mean is drawn
LEVELS = (1, 2, 3, 4, 5)


def main() -> None:
    """Three curves over the steps, the mean of an arm's seeds, and the tokens of each level against plain GRPO."""
    arms = by_arm([run for run in read(RESULTS / "deepcompress") if run["arm"] != START])
    # The same file from the same numbers, wherever it is drawn.
    with matplotlib.rc_context({"svg.hashsalt": "deepcompress", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7.2, 5.2), layout="constrained")
        panels = figure.subplots(2, 2).flat
        for axes, (name, title) in zip(panels, CURVES.items(), strict=False):
            for arm, of_arm in arms.items():
                axes.plot(smoothed(of_arm, name), linewidth=1.2, label=arm)
            axes.set_xlabel("step")
            axes.set_ylabel(title)
        last = figure.axes[-1]
        for arm, of_arm in arms.items():
            last.plot(LEVELS, against_base(of_arm, arms[BASE]), marker="o", markersize=4, linewidth=1.2, label=arm)
        last.set_xticks(LEVELS)
        last.set_xlabel("level, held out")
        last.set_ylabel("thought tokens, % of none")
        last.set_ylim(0, 115)
        for axes in figure.axes:
            axes.grid(linewidth=0.4)
        last.legend(frameon=False, loc="lower right", ncols=2)
        figure.savefig(RESULTS / "deepcompress.svg", metadata={"Date": None, "Creator": None})


def smoothed(runs: list[Run], name: str) -> list[float]:
    """The mean over runs and over the steps before, at most `SMOOTHED` of them."""
    by_step: list[list[float]] = [[step[name] for step in steps] for steps in zip(*map(curve, runs), strict=False)]
    means = [sum(values) / len(values) for values in by_step]
    windows = [means[max(0, i + 1 - SMOOTHED) : i + 1] for i in range(len(means))]
    return [sum(window) / len(window) for window in windows]


def curve(run: Run) -> list[dict[str, Any]]:
    """What is known of each step."""
    steps: list[dict[str, Any]] = run["curve"]
    return steps


def against_base(runs: list[Run], base: list[Run]) -> list[float]:
    """Mean thought tokens of each level, in % of those of the base."""
    means = [[float(column(of, "thought_tokens", (level,)).mean()) for level in LEVELS] for of in (runs, base)]
    return [100 * own / other for own, other in zip(*means, strict=True)]


if __name__ == "__main__":
    main()
