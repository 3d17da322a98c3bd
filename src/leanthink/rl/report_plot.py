"""The plots of `leanthink train --report`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

from leanthink.rl.report import Curve, smoothed
from leanthink.utils.svg import RUNS, plot

Scale = Literal["share", "count", "free"]


@dataclass(frozen=True)
class Line:
    """The metric of a run over its steps: `thin` as it was logged, `bold` over it."""

    run: int
    thin: Curve
    bold: Curve


@dataclass(frozen=True)
class Histogram:
    """Shares of a run's responses by their length, one for each bin."""

    run: int
    shares: list[float]
    dashed: bool = False


def plot_lines(title: str, lines: Sequence[Line], scale: Scale, steps: int) -> Markup:
    """A metric over this many steps. A value that is None is a gap; one between two gaps is a dot."""

    def draw(axes: Any) -> None:
        for line in lines:
            whole = {"color": RUNS[line.run], "clip_on": scale != "share"}  # at 0 and 100 %, where the axis ends
            _plot(axes, line.thin, linewidth=0.6, alpha=0.45, **whole)
            _plot(axes, line.bold, linewidth=1.6, **whole)
        axes.set_xlabel("step")
        axes.set_xlim(0, 1.02 * steps)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if scale == "share":
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_formatter("{x:.0%}")
        elif scale == "count":
            axes.set_ylim(bottom=0)

    return plot(title, draw)


def plot_lengths(title: str, histograms: Sequence[Histogram], edges: Sequence[float], highest: float) -> Markup:
    """Shares by length, all on the scale from 0 to `highest`."""

    def draw(axes: Any) -> None:
        for one in histograms:
            style = {"linestyle": (0, (3, 1.5)) if one.dashed else "-", "linewidth": 1.0 if one.dashed else 1.6}
            axes.stairs(one.shares, edges, color=RUNS[one.run], **style)
        axes.set_xlabel("tokens")
        axes.set_ylim(0, min(1.0, 1.05 * highest) or 1)
        axes.yaxis.set_major_formatter("{x:.0%}")

    return plot(title, draw)


def with_moving_mean(run: int, found: Curve) -> Line:
    """A line whose bold part is the moving mean of the other."""
    means = smoothed([value for _, value in found])
    return Line(run, found, [(step, mean) for (step, _), mean in zip(found, means, strict=True)])


def _plot(axes: Any, found: Curve, **style: Any) -> None:
    steps = [step for step, _ in found]
    values = [math.nan if value is None else value for _, value in found]
    axes.plot(steps, values, solid_capstyle="round", **style)
    beside = [math.nan, *values, math.nan]
    lone = [i for i in range(len(values)) if math.isnan(beside[i]) and math.isnan(beside[i + 2])]
    dots = {"marker": "o", "markersize": 2 * style["linewidth"], "linestyle": "", "markeredgewidth": 0}
    shared = {name: style[name] for name in ("color", "clip_on")}
    axes.plot([steps[i] for i in lone], [values[i] for i in lone], **shared, **dots)
