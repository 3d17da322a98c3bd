"""Plots as SVG to stand in an HTML page.

They are drawn in stand-in colours, which become variables of the page's style: it has others by day than by night.
No text that comes from a file gets into a plot.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from leanthink.errors import UsageError
from leanthink.page.markup import Markup

INK, GRID = "#010101", "#020202"
RUNS = tuple(f"#0303{index:02x}" for index in range(8))  # one for each colour that a page can tell apart
SIZE = (3.6, 2.1)  # inches; the page makes it as wide as there is room


def check_matplotlib() -> None:
    """Raise UsageError unless matplotlib, which is an extra, is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError("the report's plots need matplotlib: pip install 'leanthink[eval]'") from error


def plot(title: str, draw: Callable[[Any], None], size: tuple[float, float] = SIZE) -> Markup:
    """What `draw` puts on empty axes, as an `svg` element that a reader of screens calls by this title."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif", "font.size": 8}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.set_facecolor("none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GRID)
        axes.tick_params(color=GRID, labelcolor=INK)
        axes.grid(color=GRID, linewidth=0.4)
        axes.set_axisbelow(True)
        draw(axes)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
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
