"""The frame of the plots among the results."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.figure import Figure
from table import RESULTS


@contextmanager
def drawing(name: str, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure of this size in inches, written to bench/results/NAME.svg once it is drawn.

    The same numbers give the same file, wherever it is drawn. Lines have one digit behind the point.
    """
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        path = RESULTS / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None, "Creator": None})
    drawn = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r' d="[^"]*"', lambda found: _shorter(found[0]), drawn), encoding="utf-8")


def _shorter(points: str) -> str:
    """The points of a line with one digit behind the point; what follows one is a line to the next anyway."""
    return re.sub(r" \nL ", " ", re.sub(r"(\.\d)\d+", r"\1", points))
