"""The Pareto plots of a comparison: accuracy against what it costs, one line for each policy over its budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

from leanthink.eval.compare import Entry, front
from leanthink.eval.metrics import Metrics
from leanthink.utils.svg import INK, RUNS, plot

MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "*": "★"}
SIZE = (4.4, 2.8)  # inches
Cost = Literal["peak slots", "KV × steps, GB"]


@dataclass(frozen=True)
class Look:
    """Colour and symbol of a policy: an index into the page's colours, and one into MARKERS."""

    color: int
    marker: int

    @property
    def symbol(self) -> str:
        """As text."""
        return list(MARKERS.values())[self.marker]


def looks(names: Sequence[str]) -> dict[str, Look]:
    """One for each name; they are distinct for up to 64 of them."""
    size = len(RUNS)
    return {name: Look(at % size, (at + at // size) % len(MARKERS)) for at, name in enumerate(names)}


def cost(found: Metrics, kind: Cost) -> float:
    """What an answer costs: slots at its fullest moment, or bytes held at each step, added up, in GB times steps."""
    return found.peak_slots if kind == "peak slots" else found.kv_byte_steps / 1e9


def on_front(entries: Sequence[Entry], kind: Cost) -> list[bool]:
    """Which entries no other one beats in accuracy at the same cost or less."""
    return front([(cost(entry.metrics, kind), entry.metrics.accuracy.value or 0.0) for entry in entries])


def pareto(title: str, lines: Mapping[str, Sequence[Entry]], style: Mapping[str, Look], kind: Cost) -> Markup:
    """Accuracy with its interval over the cost, on a logarithmic scale; the front is a thin dashed line."""

    def draw(axes: Any) -> None:
        for name, entries in lines.items():
            _line(axes, entries, style[name], kind)
        everything = [entry for entries in lines.values() for entry in entries]
        best = sorted(
            (cost(entry.metrics, kind), 100 * (entry.metrics.accuracy.value or 0.0))
            for entry, wins in zip(everything, on_front(everything, kind), strict=True)
            if wins
        )
        axes.step(*zip(*best, strict=True), where="post", color=INK, linewidth=0.5, linestyle=(0, (4, 3)), zorder=1)
        axes.set_xscale("log")
        _ticks(axes, [cost(entry.metrics, kind) for entry in everything])
        axes.set_xlabel(kind)
        axes.set_ylabel("Pass@1, %")
        bounds = [(entry.metrics.accuracy.low or 0.0, entry.metrics.accuracy.high or 0.0) for entry in everything]
        axes.set_ylim(
            max(0.0, 100 * min(low for low, _ in bounds) - 3), min(100.0, 100 * max(high for _, high in bounds) + 3)
        )

    return plot(title, draw, SIZE)


def _line(axes: Any, entries: Sequence[Entry], look: Look, kind: Cost) -> None:
    points = sorted(entries, key=lambda entry: cost(entry.metrics, kind))
    xs = [cost(entry.metrics, kind) for entry in points]
    ys = [100 * (entry.metrics.accuracy.value or 0.0) for entry in points]
    bounds = [
        (y - 100 * (e.metrics.accuracy.low or 0.0), 100 * (e.metrics.accuracy.high or 0.0) - y)
        for y, e in zip(ys, points, strict=True)
    ]
    errors = [[max(0.0, low) for low, _ in bounds], [max(0.0, high) for _, high in bounds]]
    marker = list(MARKERS)[look.marker]
    style = {"marker": marker, "markersize": 4.5, "linewidth": 1.2, "elinewidth": 0.7, "capsize": 2, "clip_on": False}
    axes.errorbar(xs, ys, errors, color=RUNS[look.color], **style)  # not cut off at 0 and 100 %, where the axis ends


def _ticks(axes: Any, xs: Sequence[float]) -> None:
    """Plain numbers at 1, 2, 3, 5 and 7 times powers of ten, and a little room at both ends."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(min(xs) / 1.25, max(xs) * 1.25)
