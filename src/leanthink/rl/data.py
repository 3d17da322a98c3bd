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

from leanthink.data.grading.answer_normalisation import Tolerance
from leanthink.data.grading.grading import check_gold, is_solved
from leanthink.data.gym import gym_facts, gym_problems, scores_one
from leanthink.data.problems import Problem, read_gold, read_problems
from leanthink.data.public_datasets import NAMES, PUBLIC, load_rows, numbered, read_public, training_set
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
    return _dataset(_gold_row(problem, instruction) for problem in read_problems(path))


def from_dataset(
    source: str, *, name: str | None = None, split: str | None = None, instruction: str | None = None, **columns: str
) -> Dataset:
    """One of `PUBLIC` (its training split; NAME=FOLDER: a copy), or a file, a folder or a name of the hub.

    With `name` (the configuration) or `columns` (as of `from_columns`) it is none of `PUBLIC`. Raises UsageError.
    """
    public, is_copy, folder = source.partition("=")
    exists = Path(source).exists()
    known = None if exists and public not in PUBLIC else training_set(public, split)
    if is_copy and not exists:
        if known is None:
            raise unknown("public set", public, NAMES)
        if name or columns:
            given = ", ".join([*(["name"] if name else []), *columns])
            raise UsageError(f"{source} with {given}: of rows of your own give the folder alone, dataset={folder!r}")
    if known is None or name or columns:
        return from_columns(load_rows(source, name, split or "train"), instruction=instruction or "", **columns)
    problems = read_public(public.lower(), known, folder if is_copy else None)
    text = known.instruction if instruction is None else instruction
    return _dataset(_gold_row(problem, text) for problem in problems if problem.answer)


def from_columns(
    dataset: Dataset, *, problem: str = "problem", answer: str = "answer", id: str | None = None, instruction: str = ""
) -> Dataset:
    """Any data set with columns of problems (texts or chats) and answers; without ids they are row-0, row-1, ...

    `reward_model.ground_truth` is the column that is a field of another.

    Raises:
        UsageError: a column is not there, or a row's problem is none, or its answer cannot be graded.
    """
    flat = dataset.flatten()
    names = [problem, answer, *filter(None, (id,))]
    for name in names:
        if name not in flat.column_names:
            raise unknown("column", name, flat.column_names)
    rows = []
    for index, row in numbered(flat.select_columns(names), "the data set"):
        *before, last = _messages(row[problem], f"row {index}: the column {problem!r}")
        gold = read_gold(row[answer], f"row {index}: the column {answer!r}")
        given = f"row-{index}" if id is None or row[id] is None else str(row[id])
        rows.append(_gold_row(Problem(id=given, problem=last["content"], answer=gold), instruction, before))
    return _dataset(rows)


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
            f"the data have no column 'answer', only {', '.join(dataset.column_names)}: name it to `from_columns`"
        )
    for index, answer in enumerate(dataset["answer"]):
        if not isinstance(answer, str) or not answer.strip():
            raise UsageError(
                f"row {index} of the data has answer {answer!r}: give the right answer as text, or drop it"
            )


def grade(columns: Mapping[str, Any], text: str, *, think_tags: bool) -> bool | None:
    """Whether `text` solves the problem of these columns; None where there is no answer to grade by.

    With `think_tags` a thought that was never closed is wrong, whatever it says. Columns that do not name their grader
    are a data set's own: the answer is what `read_gold` takes for one. Raises UsageError.
    """
    answer = columns.get("answer")
    if answer is None or answer == "":
        return None
    return is_solved(problem_of(columns), text, think_tags=think_tags)


def problem_of(columns: Mapping[str, Any]) -> Problem:
    """The problem of one row, with the check of its grader. Raises UsageError for an unknown grader, or no answer."""
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
    is_ours = columns.get("grader") is not None
    allowed = is_ours and grader == GOLD and json.loads(columns.get("facts") or "null")
    answer = columns["answer"] if is_ours else read_gold(columns["answer"], "the column 'answer'")
    fields = {"id": str(columns.get("id") or ""), "problem": columns.get("problem") or "", "answer": answer}
    return Problem(**fields, tolerance=Tolerance(**(allowed or {})), check=check)


def _messages(asked: Any, where: str) -> list[dict[str, str]]:
    """A problem as chat messages, the user's last. Raises UsageError."""
    chat = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    is_chat = isinstance(chat, list) and all(isinstance(one, dict) and _is_message(one) for one in chat)
    if not is_chat or not chat or chat[-1]["role"] != "user" or not chat[-1]["content"].strip():
        raise UsageError(
            f"{where} is {asked!r}: give a text, or messages of role and content, both texts, the user's last"
        )
    return [{"role": one["role"], "content": one["content"]} for one in chat]


def _is_message(one: dict[str, Any]) -> bool:
    return isinstance(one.get("role"), str) and isinstance(one.get("content"), str)


def _gold_row(problem: Problem, instruction: str, before: Sequence[dict[str, str]] = ()) -> dict[str, Any]:
    check_gold(problem.answer)
    text = f"{problem.problem}\n\n{instruction}" if instruction else problem.problem
    return _row(problem.id, text, problem.answer, grader=GOLD, facts=vars(problem.tolerance), before=before)


def _row(
    id: str,
    problem: str,
    answer: str,
    *,
    grader: str,
    facts: Any = None,
    family: str | None = None,
    level: int | None = None,
    before: Sequence[dict[str, str]] = (),
) -> dict[str, Any]:
    messages = [*before, {"role": "user", "content": problem}]
    columns = {"prompt": messages, "id": id, "problem": problem, "answer": answer, "family": family, "level": level}
    return {**columns, "grader": grader, "facts": json.dumps(facts)}


def _dataset(rows: Iterable[dict[str, Any]]) -> Dataset:
    from datasets import Dataset

    made = list(rows)
    if not made:
        raise UsageError("no problem to train on: ask for at least one")
    dataset: Dataset = Dataset.from_list(made)
    return dataset
