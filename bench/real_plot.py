"""Draws right answers over memory on a real model: `python bench/real_plot.py` writes bench/results/real.svg."""

from __future__ import annotations

from typing import Any

from drawing import drawing
from matplotlib.ticker import FixedLocator, NullLocator
from real_table import OURS, Results, read

from leanthink.eval.configurations import FULL

TITLES = {"gsm8k": "GSM8K", "math-500": "MATH-500", "long": "GSM8K, long thoughts"}
LINES = {OURS: ("o", "#1f6f5c", 2.0), "r-kv": ("s", "#c2571a", 1.2), "random-heads": ("^", "#7a6f9b", 1.2)}


def main() -> None:
    """A panel for each benchmark: a line for each policy, the full cache dashed."""
    found = read()
    with drawing("real", (8.4, 3.0)) as figure:
        panels = figure.subplots(1, len(found)).flat
        for axes, one in zip(panels, found, strict=True):
            panel(axes, one)
        figure.axes[0].set_ylabel("right answers, %")
        figure.axes[-1].legend(frameon=False, loc="lower right", fontsize="small")


def panel(axes: Any, one: Results) -> None:
    """Right answers over the share of the mean full thought that may be held; bars: paired 95 % intervals."""
    full = 100 * float(one.full.mean())
    shares = [100 * slots / one.document["mean_full_thought"] for slots in one.slots]
    axes.axhline(full, color="#888888", linewidth=1, linestyle="--", label=FULL)
    for name, (marker, color, width) in LINES.items():
        right = [100 * float(one.right[name][slots].mean()) for slots in one.slots]
        against = [one.above(name, FULL, slots) for slots in one.slots]
        bounds = [
            [
                abs(100 * ((getattr(found, side) or 0.0) - (found.value or 0.0)))
                for found in against
                if found is not None
            ]
            for side in ("low", "high")
        ]
        axes.errorbar(
            shares, right, bounds, marker=marker, color=color, linewidth=width, markersize=4, capsize=2, label=name
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(shares))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(shares, [f"{share:.0f} %" for share in shares])
    axes.set_xlabel(f"of {one.document['mean_full_thought']:.0f} thought tokens held")
    axes.set_title(TITLES[one.name], fontsize="medium")
    axes.set_ylim(0, 1.15 * full)
    axes.grid(linewidth=0.4)


if __name__ == "__main__":
    main()
