"""Problems to solve and their golds, read from JSONL or taken from the embedded tasks."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from leanthink.data.grading.answer_normalisation import EXACT, Tolerance
from leanthink.data.tasks import registry
from leanthink.data.tasks.problem import Problem as Task
from leanthink.utils.errors import UsageError
from leanthink.utils.file_reading import is_text, parse_json

# What is put after a problem of a file, unless something else is asked for: traces, fits and evaluations agree on it.
STEP_BY_STEP = r"Please reason step by step, and put your final answer within \boxed{}."
STRUCTURE = re.compile(r"""(?:[\[({]\s*)+["']""")  # a mapping or a list of texts, written out


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question and its gold.

    `check` tells whether the content of an answer's box (None: there was no box) is right; None: the answer is
    mathematics, and every form equal to the gold is right, numbers within the tolerance too.
    """

    id: str
    problem: str
    answer: str
    tolerance: Tolerance = EXACT
    check: Callable[[str | None], bool] | None = field(default=None, repr=False, compare=False)


def from_tasks(problems: Iterable[Task]) -> list[Problem]:
    """Embedded tasks (`leanthink.data.tasks.registry.sample`) as problems, each checked by its own family."""
    return [
        Problem(id=task.id, problem=task.prompt, answer=task.answer, check=partial(registry.is_correct, task))
        for task in problems
    ]


def after_hashes(text: str) -> str:
    """What follows the last #### of a solution as GSM8K has it; all of any other text."""
    return text.rpartition("####")[2].strip()


def read_gold(value: object, where: str) -> str:
    """A text or a number as gold; of a solution as GSM8K has it what follows the last ####.

    Raises UsageError, which begins with `where`: it is neither, empty, of several lines, a structure, or a whole number
    that a reader of files has rounded to a float, with which no right answer agrees.
    """
    if isinstance(value, float) and _was_rounded(value):
        raise UsageError(f"{where} is {value!r}, a whole number rounded to what a float holds: give it as a text")
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    gold = after_hashes(str(value)) if is_number or isinstance(value, str) else ""
    if not gold or "\n" in gold or STRUCTURE.match(gold):
        raise UsageError(
            f"{where} is {value!r}, no final answer: give a text or a number (of a structure "
            "the field: reward_model.ground_truth), or drop the row"
        )
    return gold


def _was_rounded(value: float) -> bool:
    """Whether it has all the digits of a float, and more than these tell of a whole number: few are meant so."""
    large = 2**53 <= abs(value) < math.inf
    return large and len(Decimal(repr(value)).normalize().as_tuple().digits) > 15


def read_problems(path: str | os.PathLike[str]) -> list[Problem]:
    """The problems of a JSONL file with the fields `problem`, `answer` and `id`; others are the data set's own.

    An answer or id may be a number and is then taken as it is written; a problem without an id gets its line's number.

    Raises:
        UsageError: no such file, no problem in it, a bad line or an id given twice; the message names file, line and
            field.
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
            problem = _from_line(line, number, where=f"{path}, line {number}")
            if problem.id in line_of:
                raise UsageError(f"{path}, line {number}: id {problem.id!r} was used in line {line_of[problem.id]}")
            line_of[problem.id] = number
            problems.append(problem)
    if not problems:
        raise UsageError(f"{path} holds no problem: one JSON object a line was expected")
    return problems


def _from_line(line: bytes, number: int, *, where: str) -> Problem:
    try:
        record: Any = parse_json(line, parse_int=_Written, parse_float=_Written)
    except ValueError as error:
        raise UsageError(f"{where}: not a line of JSON ({error})") from None
    if not isinstance(record, dict):
        raise UsageError(f"{where}: a JSON object was expected, got {type(record).__name__}")
    if record.get("id") is None:
        record["id"] = str(number)
    for name in ("id", "problem", "answer"):
        value = record.get(name)
        if not isinstance(value, str) or not value.strip() or (name == "problem" and isinstance(value, _Written)):
            given = "is missing" if name not in record else f"is {value!r}"
            wanted = "a text" if name == "problem" else "a text or a number"
            raise UsageError(f"{where}: the field {name!r} {given}; it must be {wanted} that is not empty")
        if not is_text(value):
            raise UsageError(f"{where}: the field {name!r} has half of a surrogate pair, which is no text")
    answer = read_gold(str(record["answer"]), f"{where}: the field 'answer'")
    return Problem(id=str(record["id"]), problem=record["problem"], answer=answer)


class _Written(str):
    """A number of JSON as it is written there: 18.50 stays 18.50, and 40 digits stay 40."""

    __slots__ = ()
    __repr__ = str.__str__
