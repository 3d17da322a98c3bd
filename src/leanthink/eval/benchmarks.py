"""Where benchmarks come from: public data sets by name, JSONL files, the embedded tasks, families of reasoning-gym."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from leanthink.data.grading.answer_normalisation import EXACT, Tolerance
from leanthink.data.grading.grading import last_boxed
from leanthink.data.gym import gym_problems
from leanthink.data.problems import STEP_BY_STEP, Problem, from_tasks, read_problems
from leanthink.data.tasks import registry
from leanthink.data.tasks.problem import Split
from leanthink.eval.configurations import Benchmark
from leanthink.utils.errors import UsageError, unknown

CHOOSE = r"Please reason step by step, and put the letter of your choice within \boxed{}."
LETTERS = "ABCD"
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PublicSet:
    """A data set on the Hugging Face hub and how its rows become problems.

    Attributes:
        hub_id, config, split: what `datasets.load_dataset` is asked for.
        columns: those that `read` reads; a row that lacks one is refused.
        read: a row and its number to a problem; None for a row that cannot be graded.
        instruction: put after each problem.
        about: what it is, for `--help` and the documentation.
    """

    hub_id: str
    split: str
    columns: tuple[str, ...]
    read: Callable[[Row, int], Problem | None]
    about: str
    config: str | None = None
    instruction: str = STEP_BY_STEP


def _columns(prefix: str, problem: str, answer: str, id: str | None = None) -> dict[str, Any]:
    """Columns and reader of a set that has problem and answer as they are."""

    def read(row: Row, number: int) -> Problem:
        name = number if id is None else row[id]
        return Problem(id=f"{prefix}-{name}", problem=row[problem], answer=str(row[answer]).strip().strip("$"))

    return {"columns": tuple(filter(None, (problem, answer, id))), "read": read}


def _aime(row: Row, number: int) -> Problem:
    """Answers are whole numbers, in some copies with zeros before them."""
    return Problem(id=f"aime-{row['id']}", problem=row["problem"], answer=str(int(row["answer"])))


def _amc(row: Row, number: int) -> Problem:
    """Answers are numbers, mostly whole ones."""
    return Problem(id=f"amc23-{row['id']}", problem=row["question"], answer=f"{float(row['answer']):g}")


def _gsm8k(row: Row, number: int, prefix: str = "gsm8k") -> Problem:
    """The answer is what follows the last #### of the solution."""
    answer = row["answer"].rpartition("####")[2].strip().replace(",", "")
    return Problem(id=f"{prefix}-{number}", problem=row["question"], answer=answer)


def _minerva(row: Row, number: int) -> Problem:
    """Physics, chemistry and astronomy: rounded numbers, so 1 % is allowed."""
    answer = str(row["answer"])
    gold = last_boxed(answer) or answer
    return Problem(id=f"minerva-{number}", problem=row["question"], answer=gold, tolerance=Tolerance(relative=0.01))


def _olympiad(row: Row, number: int) -> Problem | None:
    """Text-only competition mathematics; several answers stand in one string, and some allow an absolute error."""
    answers = [answer.strip().strip("$").rstrip(".") for answer in row["final_answer"] or []]
    if not answers or not answers[0]:
        return None
    error = str(row["error"] or "").split(",")[0]
    tolerance = Tolerance(absolute=float(error)) if _is_float(error) else EXACT
    return Problem(
        id=f"olympiadbench-{row['id']}", problem=row["question"], answer=", ".join(answers), tolerance=tolerance
    )


def _is_float(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False


def _gpqa(row: Row, number: int) -> Problem:
    """Four options in an order that is drawn from the question's own id, so that it is the same in every run."""
    name = str(row["Record ID"])
    options = [row["Correct Answer"], *(row[f"Incorrect Answer {index}"] for index in (1, 2, 3))]
    order = list(range(4))
    random.Random(hashlib.sha256(name.encode()).hexdigest()).shuffle(order)
    listed = "\n".join(f"({LETTERS[at]}) {str(options[option]).strip()}" for at, option in enumerate(order))
    return Problem(id=f"gpqa-{name}", problem=f"{row['Question'].strip()}\n\n{listed}", answer=LETTERS[order.index(0)])


PUBLIC: dict[str, PublicSet] = {
    "math-500": PublicSet(
        hub_id="HuggingFaceH4/MATH-500", split="test", about="500 competition problems of MATH",
        **_columns("math500", "problem", "answer", "unique_id"),
    ),
    "aime-2024": PublicSet(
        hub_id="HuggingFaceH4/aime_2024", split="train", about="AIME I and II of 2024, 30 problems",
        columns=("id", "problem", "answer"), read=_aime,
    ),
    "aime-2025": PublicSet(
        hub_id="math-ai/aime25", split="test", about="AIME I and II of 2025, 30 problems",
        columns=("id", "problem", "answer"), read=_aime,
    ),
    "amc-2023": PublicSet(
        hub_id="math-ai/amc23", split="test", about="AMC 12 of 2023 without the options, 40 problems",
        columns=("id", "question", "answer"), read=_amc,
    ),
    "gsm8k": PublicSet(
        hub_id="openai/gsm8k", config="main", split="test", about="1319 grade-school word problems",
        columns=("question", "answer"), read=_gsm8k,
    ),
    "gsm8k-train": PublicSet(
        hub_id="openai/gsm8k", config="main", split="train", about="7473 more, to train on and fit predictors to",
        columns=("question", "answer"), read=partial(_gsm8k, prefix="gsm8k-train"),
    ),
    "gaokao-2023-en": PublicSet(
        hub_id="MARIO-Math-Reasoning/Gaokao2023-Math-En", split="train", about="385 problems of school tests",
        **_columns("gaokao2023en", "question", "answer"),
    ),
    "olympiadbench": PublicSet(
        hub_id="Hothan/OlympiadBench", config="OE_TO_maths_en_COMP", split="train",
        about="674 open-ended olympiad problems in English, text only",
        columns=("id", "question", "final_answer", "error"), read=_olympiad,
    ),
    "minerva": PublicSet(
        hub_id="math-ai/minervamath", split="test", about="272 problems of undergraduate science; numbers to 1 %",
        columns=("question", "answer"), read=_minerva,
    ),
    "gpqa-diamond": PublicSet(
        hub_id="Idavidrein/gpqa", config="gpqa_diamond", split="train",
        about="198 multiple-choice questions of graduate science; access is granted on the hub",
        columns=("Record ID", "Question", "Correct Answer", *(f"Incorrect Answer {index}" for index in (1, 2, 3))),
        read=_gpqa, instruction=CHOOSE,
    ),
}  # fmt: skip


def public(name: str, where: str | Path | None = None) -> Benchmark:
    """A public data set, from the hub or from a copy of its repository in a folder.

    Raises:
        UsageError: an unknown name, no `datasets`, a set that cannot be had, or one with other columns.
    """
    if name not in PUBLIC:
        raise unknown("benchmark", name, PUBLIC)
    known = PUBLIC[name]
    source = known.hub_id if where is None else str(where)
    rows = _rows(known, name, source, is_folder=where is not None)
    problems = [problem for number, row in enumerate(rows) if (problem := known.read(row, number)) is not None]
    told = " ".join(filter(None, (source, known.config, known.split)))
    return Benchmark(name=name, source=told, problems=tuple(problems), instruction=known.instruction)


def _rows(known: PublicSet, name: str, source: str, *, is_folder: bool) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"the benchmark {name} needs datasets: pip install 'leanthink[eval]'") from error
    if is_folder and not Path(source).is_dir():
        raise UsageError(
            f"there is no folder {source!r}: give a copy of the repository {known.hub_id}, or {name} alone"
        )
    try:
        rows = datasets.load_dataset(source, known.config, split=known.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        told = " ".join(str(error).split())[:300]
        raise UsageError(
            f"the benchmark {name} cannot be loaded from {source} ({told}): check network and access, "
            f"or give a copy of the repository as {name}=FOLDER"
        ) from error
    missing = [column for column in known.columns if column not in rows.column_names]
    if missing:
        raise UsageError(
            f"{source} is no copy of {known.hub_id}: it has no column {missing[0]!r}, "
            f"only {', '.join(rows.column_names)}"
        )
    return rows


def from_file(path: Path, tolerance: Tolerance = EXACT) -> Benchmark:
    """A JSONL file with the fields id, problem, answer; raises like `read_problems`."""
    problems = tuple(replace(problem, tolerance=tolerance) for problem in read_problems(path))
    return Benchmark(name=path.stem, source=path.name, problems=problems, instruction=STEP_BY_STEP)


def from_families(
    families: Sequence[str], levels: Sequence[int], count: int, seed: int, split: Split = "held-out"
) -> Benchmark:
    """`count` embedded tasks of each family and level; raises like `leanthink.data.tasks.registry.sample`."""
    chosen = [
        task for family in families for level in levels for task in registry.sample(family, level, count, seed, split)
    ]
    told = f"{count} {split} of each of {', '.join(families)}; levels {', '.join(map(str, levels))}; seed {seed}"
    return Benchmark(name="tasks", source=told, problems=tuple(from_tasks(chosen)))


def from_gym(family: str, count: int, seed: int) -> Benchmark:
    """`count` entries of a family of reasoning-gym with its default settings; raises like `gym_problems`."""
    problems = tuple(gym_problems(family, {}, count, seed))
    told = f"reasoning-gym {family}, {count} entries, seed {seed}"
    return Benchmark(name=f"gym-{family}", source=told, problems=problems, instruction=STEP_BY_STEP)
