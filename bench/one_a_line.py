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


def write_table(path: Path, document: dict[str, Any], name: str) -> None:
    """`write`, with the keys of all entries once, under `columns`; an entry has null for one that it lacks."""
    columns = list(dict.fromkeys(key for entry in document[name] for key in entry))
    table = [[entry.get(key) for key in columns] for entry in document[name]]
    write(path, {**document, "columns": columns, name: table}, name)


def read_table(path: Path, name: str) -> dict[str, Any]:
    """What `write_table` was given; every entry has all keys, with None for those that it lacked."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    columns = document.pop("columns")
    return {**document, name: [dict(zip(columns, entry, strict=True)) for entry in document[name]]}


def rounded(value: Any) -> Any:
    """The same with six significant digits in every float."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value
