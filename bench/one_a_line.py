"""JSON files whose longest list has an entry a line: half as long as with every number on a line of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DIGITS = 6


def write(path: Path, document: dict[str, Any], name: str) -> None:
    """Write the document, each entry of the list that goes by this name on its own line, after all else."""
    rest = {key: value for key, value in document.items() if key != name}
    head = json.dumps(rounded(rest), indent=1, allow_nan=False).removesuffix("\n}")
    entries = (json.dumps(rounded(entry), allow_nan=False, separators=(",", ":")) for entry in document[name])
    lines = ",\n".join(f"  {entry}" for entry in entries)
    path.write_text(f'{head},\n "{name}": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def rounded(value: Any) -> Any:
    """The same with six significant digits in every float."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value
