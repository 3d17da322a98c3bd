"""Problems to train on, as a data set of TRL, and the way back from its columns to a problem that can be graded.

Columns: `prompt` (chat messages), `id`, `problem`, `answer`, `family` and `level` (None where there are none), `grader`
and `facts` (what that grader needs, as JSON).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanthink.data.grading.grading import check_gold, is_solved
from leanthink.data.gym import gym_facts, gym_problems, scores_one
from leanthink.data.problems import Problem, read_problems
from leanthink.data.tasks import registry
from leanthink.data.tasks.problem import Problem as Task
from leanthink.data.tasks.problem import Split
from leanthink.utils.errors import UsageError, unknown

if TYPE_CHECKING:
    from datasets import Dataset

GOLD, TASK, GYM = "gold", "task", "reasoning-gym"  # graders: by the gold, by the task's family, by the environment
BOXED = r"Put the final answer in \boxed{}."


def from_jsonl(path: str | Path, *, instruction: str = "") -> Dataset:
    """A file of {"id", "problem", "answer"}; `instruction` is put after each problem.

    Raises:
        UsageError: no such file, a bad line, or an answer that cannot be graded.
    """
    records = ((problem.id, problem.problem, problem.answer) for problem in read_problems(path))
    return _graded_by_gold(records, instruction)


def from_columns(
    dataset: Dataset, *, problem: str = "problem", answer: str = "answer", id: str | None = None, instruction: str = ""
) -> Dataset:
    """Any data set with a column of problems and one of answers; without ids they are row-0, row-1, ...

    Raises:
        UsageError: a column is not there, or a row has no answer, or one that cannot be graded.
    """
    for name in filter(None, (problem, answer, id)):
        if name not in dataset.column_names:
            raise unknown("column", name, dataset.column_names)
    ids = [f"row-{index}" for index in range(len(dataset))] if id is None else [str(value) for value in dataset[id]]
    return _graded_by_gold(zip(ids, dataset[problem], dataset[answer], strict=True), instruction)


def from_tasks(
    families: Sequence[str],
    levels: Sequence[int] | Mapping[int, int],
    count: int,
    seed: int = 0,
    split: Split = "train",
) -> Dataset:
    """Embedded tasks, graded by their own families: `count` of each family and level, or what `levels` maps it to.

    Raises:
        UsageError: as of `leanthink.data.tasks.registry.sample`.
    """
    counts = levels if isinstance(levels, Mapping) else dict.fromkeys(levels, count)
    cells = [(family, level) for family in families for level in counts]
    sampled = [task for cell in cells for task in registry.sample(*cell, counts[cell[1]], seed, split)]
    return _dataset(
        _row(task.id, task.prompt, task.answer, grader=TASK, facts=task.facts, family=task.family, level=task.level)
        for task in sampled
    )


def from_gym(
    environments: Mapping[str, Mapping[str, Any]], count: int, seed: int = 0, *, instruction: str = BOXED
) -> Dataset:
    """`count` entries of each environment of reasoning-gym, graded by its `score_answer`: a score of 1 is right.

    Args:
        environments: by name, the settings of each; {} for its defaults.
        count: entries of each.
        seed: same seed, same entries.
        instruction: put after each question; what is graded is the content of the box.

    Raises:
        UsageError: reasoning-gym is not installed, or it has no such environment, or refuses the settings.
    """
    rows = []
    for name, settings in environments.items():
        for index, problem in enumerate(gym_problems(name, settings, count, seed)):
            facts = json.loads(gym_facts(name, settings, count, seed, index=index))
            question = f"{problem.problem}\n\n{instruction}"
            rows.append(_row(problem.id, question, problem.answer, grader=GYM, facts=facts, family=name))
    return _dataset(rows)


def check_answers(dataset: Dataset) -> None:
    """Raise UsageError unless every row has an answer to grade by."""
    if "answer" not in dataset.column_names:
        raise UsageError(
            f"the data have no column 'answer', only {', '.join(dataset.column_names)}: nothing could be graded; "
            "name the column of the right answers, or make the data with leanthink.rl.data"
        )
    for index, answer in enumerate(dataset["answer"]):
        if not isinstance(answer, str) or not answer.strip():
            raise UsageError(
                f"row {index} of the data has answer {answer!r}: give the right answer as text, or drop it"
            )


def grade(columns: Mapping[str, Any], text: str, *, think_tags: bool) -> bool | None:
    """Whether `text` solves the problem of these columns; None where there is no answer to grade by.

    With `think_tags` a thought that was never closed is wrong, whatever it says.
    """
    if not columns.get("answer"):
        return None
    return is_solved(problem_of(columns), text, think_tags=think_tags)


def problem_of(columns: Mapping[str, Any]) -> Problem:
    """The problem of one row, with the check of its grader. Raises UsageError for a grader nobody knows."""
    grader = columns.get("grader") or GOLD
    if grader not in (GOLD, TASK, GYM):
        raise unknown("grader", grader, (GOLD, TASK, GYM))
    check = None
    if grader == TASK:
        facts = json.loads(columns["facts"])  # tuples have become lists, which no check minds
        fields = {"prompt": columns["problem"], "answer": columns["answer"], "key": columns["id"], "facts": facts}
        check = partial(registry.is_correct, Task(family=columns["family"], level=columns["level"], **fields))
    elif grader == GYM:
        check = partial(scores_one, columns["facts"])
    text = columns.get("problem") or ""
    return Problem(id=str(columns.get("id") or ""), problem=text, answer=columns["answer"], check=check)


def _graded_by_gold(records: Iterable[tuple[str, str, str]], instruction: str) -> Dataset:
    rows = []
    for id, problem, answer in records:
        if answer is None or not str(answer).strip():
            raise UsageError(f"problem {id!r} has no answer to grade by: give one, or drop the problem")
        check_gold(str(answer))
        text = f"{problem}\n\n{instruction}" if instruction else problem
        rows.append(_row(id, text, str(answer), grader=GOLD))
    return _dataset(rows)


def _row(
    id: str,
    problem: str,
    answer: str,
    *,
    grader: str,
    facts: Any = None,
    family: str | None = None,
    level: int | None = None,
) -> dict[str, Any]:
    messages = [{"role": "user", "content": problem}]
    columns = {"prompt": messages, "id": id, "problem": problem, "answer": answer, "family": family, "level": level}
    return {**columns, "grader": grader, "facts": json.dumps(facts)}


def _dataset(rows: Iterable[dict[str, Any]]) -> Dataset:
    from datasets import Dataset

    made = list(rows)
    if not made:
        raise UsageError("no problem to train on: ask for at least one")
    dataset: Dataset = Dataset.from_list(made)
    return dataset
