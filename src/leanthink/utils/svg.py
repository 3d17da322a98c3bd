"""Plots as SVG to stand in an HTML page.

They are drawn in stand-in colours, which become variables of the page's style: it has others by day than by night.
No text that comes from a file gets into a plot.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from leanthink.utils.errors import UsageError

INK, GRID = "#010101", "#020202"
RUNS = tuple(f"#0303{index:02x}" for index in range(8))  # one for each colour that a page can tell apart
SIZE = (3.6, 2.1)  # inches; the page makes it as wide as there is room
NAMESPACES = {"": "http://www.w3.org/2000/svg", "xlink": "http://www.w3.org/1999/xlink"}
FONTS = {"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"]}  # each label names them
NUMBERS = {"d", "x", "y", "width", "height"}  # attributes


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

    style = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 8, **FONTS}
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


def lighter(svg: str) -> str:
    """The same drawing as matplotlib made, in half of the bytes: a digit behind the point, no names of groups."""
    root = ElementTree.fromstring(svg)
    for node in list(root.iter()):
        node.text, node.tail = (text if text and text.strip() else None for text in (node.text, node.tail))
        if re.fullmatch(r"rotate\(-0 .*\)", node.get("transform", "")):
            del node.attrib["transform"]
        if _kind(node) == "g":
            node.attrib.pop("id", None)
        for name in NUMBERS.intersection(node.keys()):
            node.set(name, _shorter(node.attrib[name]))
        node[:] = list(_without_plain_groups(node))
    for prefix, name in NAMESPACES.items():
        ElementTree.register_namespace(prefix, name)
    return ElementTree.tostring(root, encoding="unicode")


def _shorter(numbers: str) -> str:
    """A path or a number with one digit behind the point and no space beside a letter."""
    rounded = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), numbers)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", rounded).strip()


def _without_plain_groups(node: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """The children of an element; metadata are left out, and groups that only have a name give way to theirs."""
    for child in node:
        if _kind(child) == "g" and not set(child.keys()) - {"id"}:
            yield from _without_plain_groups(child)
        elif _kind(child) != "metadata":
            yield child


def _kind(node: ElementTree.Element) -> str:
    """The name of its element."""
    return node.tag.rpartition("}")[2]


def _embedded(svg: str, title: str) -> Markup:
    """Without the head of a file and names that other plots have too; in the page's colours and width."""
    svg = lighter(svg)
    svg = re.sub(r'^<svg ([^>]*?)width="[^"]*"', rf'<svg role="img" aria-label="{title}" \1', svg, flags=re.DOTALL)
    svg = re.sub(r'^(<svg [^>]*?)height="[^"]*"', r"\1", svg, flags=re.DOTALL)
    for index, color in enumerate(RUNS):
        svg = svg.replace(color, f"var(--run-{index})")
    return Markup(svg.replace(INK, "currentColor").replace(GRID, "var(--line)"))
