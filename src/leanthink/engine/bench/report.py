"""A result as files and as lines to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from leanthink.utils.errors import UsageError

RESULT, PICTURE = "bench.json", "bench.png"


def check_new(folder: Path, *, overwrite: bool) -> None:
    """Raise UsageError for results that are there already, unless they may be replaced."""
    for path in (folder / RESULT, folder / PICTURE):
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists: give another --out, or --overwrite to replace it")


def write_result(result: dict[str, Any], folder: Path) -> Path:
    """`bench.json` in this folder; written after every part, so that nothing measured is lost."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RESULT
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    return path


def lines(part: str, found: dict[str, Any]) -> list[str]:
    """One line for each cell of a part: its plain numbers, of measured ones the median, of parts of it the same."""
    cells = next((found[key] for key in ("cells", "policies", "batches") if key in found), [found])
    shared = [] if cells == [found] else [f"{part}: {shown}" for shown in [_shown(found)] if shown]
    return [*shared, *(f"{part}: {_shown(cell)}" for cell in cells)]


def _shown(value: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_brief(entry)}" for key, entry in value.items() if not isinstance(entry, list))


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.4g}" if "median" in value else f"({_shown(value)})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
