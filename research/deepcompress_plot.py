"""Draws an experiment: `python research/deepcompress_plot.py [START...]` writes results/deepcompress-START.svg.

Without a start that of the experiment behind the default, which is the only one whose picture is kept.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from deepcompress_table import BASE, SCOPES, START, Run, by_arm, column, read_archived

from leanthink.rl.report import smoothed

sys.path.append(str(Path(__file__).parent.parent / "bench"))
from drawing import drawing
from table import EXPERIMENTS, RESEARCH, SHOWN_FIRST

CURVES = {"accuracy": "right in training, share", "thought_tokens": "thought tokens", "self_checks": "self-checks"}
LEVELS = SCOPES["all levels"]
EVERY = 4  # steps of a moving mean over nine has a point


def main() -> None:
    """One picture for each start."""
    for start in sys.argv[1:] or [SHOWN_FIRST]:
        draw(start)


def draw(start: str) -> None:
    """Three curves over the steps, the mean of an arm's seeds, and the tokens of each level against plain GRPO."""
    arms = by_arm([run for run in read_archived(EXPERIMENTS, start) if run["arm"] != START])
    with drawing(f"deepcompress-{start}", (7.2, 5.2), RESEARCH / "results") as figure:
        *panels, last = figure.subplots(2, 2).flat
        for axes, (name, title) in zip(panels, CURVES.items(), strict=True):
            for arm, of_arm in arms.items():
                means = smoothed(over_steps(of_arm, name))
                axes.plot(range(0, len(means), EVERY), means[::EVERY], linewidth=1.2, label=arm)
            axes.set_xlabel("step")
            axes.set_ylabel(title)
            if name == "accuracy":
                axes.set_ylim(top=min(1.0, axes.get_ylim()[1]))
        for arm, of_arm in arms.items():
            last.plot(LEVELS, against_base(of_arm, arms[BASE]), marker="o", markersize=4, linewidth=1.2, label=arm)
        last.set_xticks(LEVELS)
        last.set_xlabel("level, held out")
        last.set_ylabel("thought tokens, % of none")
        last.set_ylim(0, 1.05 * max(110.0, last.get_ylim()[1]))
        for axes in figure.axes:
            axes.grid(linewidth=0.4)
        last.legend(frameon=False, loc="lower right", ncols=2)


def over_steps(runs: Sequence[Run], name: str) -> list[float]:
    """A metric of each step that all runs reached, the mean over them."""
    return [sum(step[name] for step in steps) / len(runs) for steps in zip(*(r["curve"] for r in runs), strict=False)]


def against_base(runs: list[Run], base: list[Run]) -> list[float]:
    """Mean thought tokens of each level, in % of those of the base."""
    means = [[float(column(of, "thought_tokens", (level,)).mean()) for level in LEVELS] for of in (runs, base)]
    return [100 * own / other for own, other in zip(*means, strict=True)]


if __name__ == "__main__":
    main()
