"""JSON files whose longest lists have an entry a line: half as long as with every number on a line of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

DIGITS = 5


def write(path: Path, document: dict[str, Any], *names: str) -> None:
    """Write the document, each entry of the lists that go by these names on its own line, after all else."""
    rest = [f"{_text(key)}:{_text(value)}" for key, value in document.items() if key not in names]
    lists = [f"{_text(name)}:[\n{_lines(map(_text, document[name]))}\n]" for name in names]
    path.write_text(f"{{\n{_lines([*rest, *lists])}\n}}\n", encoding="utf-8")


def write_table(path: Path, document: dict[str, Any], *names: str) -> None:
    """`write`, with the keys of a list's entries once, as its first line; an entry has null for one that it lacks.

    A key whose values are objects with the same keys has these beside it: {"budget": ["slots", "window"]}.
    """
    write(path, {**document, **{name: _table(document[name]) for name in names}}, *names)


def read_table(path: Path, *names: str) -> dict[str, Any]:
    """What `write_table` was given; every entry has all keys, with None for those that it lacked."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {**document, **{name: _entries(document[name]) for name in names}}


def rounded(value: Any) -> Any:
    """The same with `DIGITS` significant digits in every float."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value


def _table(entries: Sequence[dict[str, Any]]) -> list[list[Any]]:
    head: list[Any] = []
    columns = []
    for key in dict.fromkeys(key for entry in entries for key in entry):
        column = [entry.get(key) for entry in entries]
        keys = {tuple(value) if isinstance(value, dict) else () for value in column if value is not None}
        inner = keys.pop() if len(keys) == 1 else ()
        head.append({key: inner} if inner else key)
        columns.append([[value[name] for name in inner] if inner and value else value for value in column])
    return [head, *map(list, zip(*columns, strict=True))]


def _entries(table: Sequence[list[Any]]) -> list[dict[str, Any]]:
    return [dict(map(_pair, table[0], line)) for line in table[1:]]


def _pair(column: str | dict[str, list[str]], value: Any) -> tuple[str, Any]:
    if isinstance(column, str):
        return column, value
    ((key, inner),) = column.items()
    return key, None if value is None else dict(zip(inner, value, strict=True))


def _text(value: Any) -> str:
    return json.dumps(rounded(value), allow_nan=False, separators=(",", ":"))


def _lines(texts: Iterable[str]) -> str:
    return ",\n".join(texts)
