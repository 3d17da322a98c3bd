"""Problems to solve and their golds, read from JSONL or taken from the embedded tasks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from leanthink.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question and its gold.

    `exact` golds are numbers or plain strings to be reproduced as they stand; the others are mathematics, of which
    every equal form is right.
    """

    id: str
    problem: str
    answer: str
    exact: bool = False


class Task(Protocol):
    """What an embedded task (`leanthink.tiny.tasks.Problem`) must carry to be evaluated."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def prompt(self) -> str: ...  # noqa: D102
    @property
    def answer(self) -> str: ...  # noqa: D102


def from_tasks(tasks: Iterable[Task]) -> list[Problem]:
    """Embedded tasks as problems; their golds are compared as they stand."""
    return [Problem(id=task.id, problem=task.prompt, answer=task.answer, exact=True) for task in tasks]


def read_problems(path: str | os.PathLike[str]) -> list[Problem]:
    """The problems of a JSONL file with the string fields `id`, `problem`, `answer`; others are the data set's own.

    Raises:
        UsageError: no such file, no problem in it, a bad line or an id given twice; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no file of problems at {path}: give a JSONL file with the fields id, problem, answer")
    problems: list[Problem] = []
    line_of: dict[str, int] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            problem = _from_line(line, where=f"{path}, line {number}")
            if problem.id in line_of:
                raise UsageError(f"{path}, line {number}: id {problem.id!r} was used in line {line_of[problem.id]}")
            line_of[problem.id] = number
            problems.append(problem)
    if not problems:
        raise UsageError(f"{path} holds no problem: one JSON object a line was expected")
    return problems


def _from_line(line: bytes, *, where: str) -> Problem:
    try:
        record: Any = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not a line of JSON ({error})") from None
    if not isinstance(record, dict):
        raise UsageError(f"{where}: a JSON object was expected, got {type(record).__name__}")
    for name in ("id", "problem", "answer"):
        value = record.get(name)
        if not isinstance(value, str) or not value.strip():
            given = "is missing" if name not in record else f"is {value!r}"
            raise UsageError(f"{where}: the field {name!r} {given}; it must be a string that is not empty")
    return Problem(id=record["id"], problem=record["problem"], answer=record["answer"])
