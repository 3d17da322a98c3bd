"""The frame of the plots among the results."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.figure import Figure
from table import RESULTS

from leanthink.utils.svg import FONTS, lighter


@contextmanager
def drawing(name: str, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure of this size in inches, written to NAME.svg among the results once it is drawn.

    The same numbers give the same file, wherever it is drawn.
    """
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9, **FONTS}):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        path = RESULTS / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None, "Creator": None})
    drawn = lighter(path.read_text(encoding="utf-8"))
    path.write_text(_with_short_names(_with_classes(_unclipped(drawn))) + "\n", encoding="utf-8")


def _unclipped(svg: str) -> str:
    """Nothing reaches beyond its axes."""
    return re.sub(r'<clipPath.*?</clipPath>| clip-path="[^"]*"| (?=/>)', "", svg, flags=re.DOTALL)


def _with_classes(svg: str) -> str:
    """Each style once at the head, for all that have it."""
    styles = list(dict.fromkeys(re.findall(r' style="([^"]*)"', svg)))
    for number, style in enumerate(styles):
        svg = svg.replace(f' style="{style}"', f' class="s{number}"')
    head = "".join(f".s{number}{{{style}}}" for number, style in enumerate(styles))
    return svg.replace("</style>", f"{head}</style>", 1)


def _with_short_names(svg: str) -> str:
    """What is referred to is called i0, i1, ..., and references are those of SVG 2."""
    for number, name in enumerate(dict.fromkeys(re.findall(r'(?:href="|url\()#(\w+)', svg))):
        svg = re.sub(rf'(?<=["#]){name}(?=[")])', f"i{number}", svg)
    return svg.replace("xlink:href", "href").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
