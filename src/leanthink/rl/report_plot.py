"""The plots of `leanthink train --report`, as SVG to stand in an HTML page.

They are drawn in stand-in colours, which become variables of the page's style: it has others by day than by night.
No text that comes from a file gets into a plot.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from leanthink.errors import UsageError
from leanthink.rl.report import Curve, smoothed
from leanthink.rl.report_html import Markup

INK, GRID = "#010101", "#020202"
RUNS = tuple(f"#0303{index:02x}" for index in range(8))  # one for each run that a page can tell apart
SIZE = (3.6, 2.1)  # inches; the page makes it as wide as there is room
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


def check_matplotlib() -> None:
    """Raise UsageError unless matplotlib, which is an extra, is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError("the report's plots need matplotlib: pip install 'leanthink[eval]'") from error


def plot_lines(title: str, lines: Sequence[Line], scale: Scale, steps: int) -> Markup:
    """A metric over this many steps. A value that is None is a gap; one between two gaps is a dot."""

    def draw(axes: Any) -> None:
        for line in lines:
            _plot(axes, line.thin, color=RUNS[line.run], linewidth=0.6, alpha=0.45)
            _plot(axes, line.bold, color=RUNS[line.run], linewidth=1.6)
        axes.set_xlabel("step")
        axes.set_xlim(0, 1.02 * steps)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if scale == "share":
            axes.set_ylim(-0.02, 1.02)
            axes.yaxis.set_major_formatter("{x:.0%}")
        elif scale == "count":
            axes.set_ylim(bottom=0)

    return _svg(title, draw)


def plot_lengths(title: str, histograms: Sequence[Histogram], edges: Sequence[float], highest: float) -> Markup:
    """Shares by length, all on the scale from 0 to `highest`."""

    def draw(axes: Any) -> None:
        for one in histograms:
            style = {"linestyle": (0, (3, 1.5)) if one.dashed else "-", "linewidth": 1.0 if one.dashed else 1.6}
            axes.stairs(one.shares, edges, color=RUNS[one.run], **style)
        axes.set_xlabel("tokens")
        axes.set_ylim(0, 1.05 * highest or 1)
        axes.yaxis.set_major_formatter("{x:.0%}")

    return _svg(title, draw)


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
    axes.plot([steps[i] for i in lone], [values[i] for i in lone], color=style["color"], **dots)


def _svg(title: str, draw: Callable[[Any], None]) -> Markup:
    """What `draw` puts on empty axes, as an `svg` element that a reader of screens calls by this title."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif", "font.size": 8}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        axes.set_facecolor("none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GRID)
        axes.tick_params(color=GRID, labelcolor=INK)
        axes.grid(color=GRID, linewidth=0.4)
        axes.set_axisbelow(True)
        draw(axes)
        axes.xaxis.label.set_color(INK)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _embedded(file.getvalue(), title)


def _embedded(svg: str, title: str) -> Markup:
    """Without the head of a file and names that other plots have too; in the page's colours and width."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'^<svg ([^>]*?)width="[^"]*"', rf'<svg role="img" aria-label="{title}" \1', svg, flags=re.DOTALL)
    svg = re.sub(r'^(<svg [^>]*?)height="[^"]*"', r"\1", svg, flags=re.DOTALL)
    for index, color in enumerate(RUNS):
        svg = svg.replace(color, f"var(--run-{index})")
    return Markup(svg.replace(INK, "currentColor").replace(GRID, "var(--line)"))
