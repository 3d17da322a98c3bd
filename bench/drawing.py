"""The frame of the plots among the results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.figure import Figure
from table import RESULTS


@contextmanager
def drawing(name: str, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure of this size in inches, written to bench/results/NAME.svg once it is drawn.

    The same numbers give the same file, wherever it is drawn.
    """
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        figure.savefig(RESULTS / f"{name}.svg", metadata={"Date": None, "Creator": None})
