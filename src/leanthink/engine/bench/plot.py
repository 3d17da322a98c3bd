"""The picture of a result: steps as shares of the roofline, and tokens per second from a fixed memory."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

OURS, FULL = "#1f6f5c", "#b9b4a8"


def can_draw() -> bool:
    """Whether matplotlib, which is an extra, is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(result: dict[str, Any], path: Path) -> bool:
    """Write a PNG of the parts `decode`, `eviction` and `throughput`; False if none of them was measured."""
    from matplotlib.figure import Figure

    bars = {"step time: share of the roofline": roofline_shares(result), "tokens per second": speeds(result)}
    drawn = {title: found for title, found in bars.items() if found}
    if not drawn:
        return False
    figure = Figure(figsize=(5.5 * len(drawn), 0.8 + 0.45 * max(map(len, drawn.values()))), layout="constrained")
    for axes, (title, found) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn.items(), strict=True):
        colors = [FULL if label.startswith("full") else OURS for label in found]
        shown = axes.barh(list(found), list(found.values()), color=colors)
        axes.bar_label(shown, fmt="%.3g", padding=3, fontsize="small")
        axes.margins(x=0.15)
        axes.invert_yaxis()
        axes.set_title(title, fontsize="medium")
    figure.suptitle(f"{result['model']['name']}, {result['birth']['hardware']}", fontsize="medium")
    figure.savefig(path, dpi=120)
    return True


def roofline_shares(result: dict[str, Any]) -> dict[str, float]:
    """Share of the roofline by cell, of `full` and of `horizon`; cells without room are left out."""
    found: dict[str, float] = {}
    for cell in result["parts"].get("decode", {}).get("cells", []):
        if "error" not in cell:
            found[f"full {cell['batch']} x {cell['slots']}"] = cell["share_of_floor"]
    for cell in result["parts"].get("eviction", {}).get("cells", []):
        if "error" not in cell:
            found[f"horizon {cell['batch']} x {cell['budget']}"] = cell["horizon"]["share_of_floor"]
    return found


def speeds(result: dict[str, Any]) -> dict[str, float]:
    """Tokens per second by policy and budget."""
    rows = result["parts"].get("throughput", {}).get("policies", [])
    names = [row["policy"] + ("" if row["budget"] is None else f" {row['budget']}") for row in rows]
    return {name: row["tokens_per_second"] for name, row in zip(names, rows, strict=True) if "error" not in row}
