"""Public data sets: by name, from the hub or a copy in a folder, and how their rows become problems."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leanthink.data.grading.answer_normalisation import EXACT, Tolerance
from leanthink.data.grading.grading import last_boxed
from leanthink.data.problems import STEP_BY_STEP, Problem, after_hashes
from leanthink.utils.errors import UsageError

CHOOSE = r"Please reason step by step, and put the letter of your choice within \boxed{}."
LETTERS, WRONG = "ABCD", [f"Incorrect Answer {index}" for index in (1, 2, 3)]
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PublicSet:
    """A data set on the Hugging Face hub and how its rows become problems.

    Attributes:
        hub_id, config, split: what `datasets.load_dataset` is asked for.
        columns: those that `read` reads; a row that lacks one is refused.
        read: a row and its number to a problem; None for a row that cannot be graded.
        instruction: put after each problem.
    """

    hub_id: str
    split: str
    columns: tuple[str, ...]
    read: Callable[[Row, int], Problem | None]
    config: str | None = None
    instruction: str = STEP_BY_STEP


def _stated(text: str) -> str:
    """An answer as it is, or what a solution has in its last box."""
    boxed = last_boxed(text)
    return (text if boxed is None else boxed).strip().strip("$")


def _number(text: str) -> str:
    """Without zeros before or behind it."""
    return f"{float(text):g}"


def _after_hashes(text: str) -> str:
    """Without the commas of thousands."""
    return after_hashes(text).replace(",", "")


def _columns(
    prefix: str, problem: str, answer: str, id: str | None = None, gold: Callable[[str], str] = _stated, **more: Any
) -> dict[str, Any]:
    """Columns and reader of a set that has a problem and what `gold` makes an answer of."""

    def read(row: Row, number: int) -> Problem:
        name = number if id is None else row[id]
        for column, kind in ((problem, str), (answer, str | int | float)):
            if not isinstance(row[column], kind):
                raise ValueError(f"its column {column!r} is {row[column]!r}")
        return Problem(id=f"{prefix}-{name}", problem=row[problem], answer=gold(str(row[answer])), **more)

    return {"columns": tuple(filter(None, (problem, answer, id))), "read": read}


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
    options = [row["Correct Answer"], *(row[name] for name in WRONG)]
    order = list(range(4))
    random.Random(hashlib.sha256(name.encode()).hexdigest()).shuffle(order)
    listed = "\n".join(f"({LETTERS[at]}) {str(options[option]).strip()}" for at, option in enumerate(order))
    return Problem(id=f"gpqa-{name}", problem=f"{row['Question'].strip()}\n\n{listed}", answer=LETTERS[order.index(0)])


PUBLIC: dict[str, PublicSet] = {
    "math-500": PublicSet(hub_id="HuggingFaceH4/MATH-500", split="test",
        **_columns("math500", "problem", "answer", "unique_id")),
    "aime-2024": PublicSet(hub_id="HuggingFaceH4/aime_2024", split="train",
        **_columns("aime", "problem", "answer", "id", _number)),
    "aime-2025": PublicSet(hub_id="math-ai/aime25", split="test",
        **_columns("aime", "problem", "answer", "id", _number)),
    "amc-2023": PublicSet(hub_id="math-ai/amc23", split="test",
        **_columns("amc23", "question", "answer", "id", _number)),
    "gsm8k": PublicSet(hub_id="openai/gsm8k", config="main", split="test",
        **_columns("gsm8k", "question", "answer", gold=_after_hashes)),
    "gsm8k-train": PublicSet(hub_id="openai/gsm8k", config="main", split="train",
        **_columns("gsm8k-train", "question", "answer", gold=_after_hashes)),
    "math-train": PublicSet(hub_id="DigitalLearningGmbH/MATH-lighteval", split="train",
        **_columns("math-train", "problem", "solution")),
    "deepmath-103k": PublicSet(hub_id="zwhe99/DeepMath-103K", split="train",
        **_columns("deepmath", "question", "final_answer")),
    "dapo-17k": PublicSet(hub_id="open-r1/DAPO-Math-17k-Processed", config="all", split="train",
        **_columns("dapo", "prompt", "solution")),
    "gaokao-2023-en": PublicSet(hub_id="MARIO-Math-Reasoning/Gaokao2023-Math-En", split="train",
        **_columns("gaokao2023en", "question", "answer")),
    "olympiadbench": PublicSet(hub_id="Hothan/OlympiadBench", config="OE_TO_maths_en_COMP", split="train",
        columns=("id", "question", "final_answer", "error"), read=_olympiad),
    "minerva": PublicSet(hub_id="math-ai/minervamath", split="test",
        **_columns("minerva", "question", "answer", tolerance=Tolerance(relative=0.01))),
    "gpqa-diamond": PublicSet(hub_id="Idavidrein/gpqa", config="gpqa_diamond", split="train",
        columns=("Record ID", "Question", "Correct Answer", *WRONG), read=_gpqa, instruction=CHOOSE),
}  # fmt: skip


NAMES = tuple(dict.fromkeys(name.removesuffix("-train") for name in PUBLIC))  # as `training_set` takes them
OTHERWISE = (
    "check spelling, network and configuration (`name`), or give a file or a folder; "
    f"public sets by name are {', '.join(NAMES)}"
)

KINDS = {"parquet": "parquet", "jsonl": "json", "json": "json", "csv": "csv", "arrow": "arrow"}  # of files, by endings


def training_set(name: str, split: str | None = None) -> PublicSet | None:
    """The public set of this name, in any case, and of its splits that for training or the one asked for."""
    name, whole = name.lower(), (split or "train").partition("[")[0]
    known = PUBLIC.get(f"{name}-{whole}") or PUBLIC.get(name) or PUBLIC.get(f"{name}-train")
    return known and replace(known, split=split or known.split)


def read_public(name: str, known: PublicSet, where: str | Path | None = None) -> list[Problem]:
    """The problems of a public set, from the hub or a copy of it: the repository, or a file or a folder of its rows.

    Raises UsageError.
    """
    source = known.hub_id if where is None else str(where)
    columns = f"the columns {', '.join(known.columns)}"
    if where is not None and not (source and Path(source).exists()):
        raise UsageError(
            f"there is no file or folder {source!r}: give a copy of the repository {known.hub_id}, or {name} alone"
        )
    rows = load_rows(
        source,
        known.config,
        known.split,
        is_copy=where is not None,
        cure=f"give {name}=FOLDER, which needs no network: a copy of the repository {known.hub_id}, or files of its "
        f"split {known.split} with {columns}",
    )
    missing = [column for column in known.columns if column not in rows.column_names]
    if missing:
        raise UsageError(
            f"{source} is no copy of {known.hub_id}: it has no column {missing[0]!r}, "
            f"only {', '.join(rows.column_names)}; give a copy with {columns}, or rows of your own by their path alone"
        )
    rows = rows.select_columns([*known.columns])
    problems = []
    for number, row in numbered(rows, source):
        try:
            problem = known.read(row, number)
        except (AttributeError, TypeError, ValueError) as error:
            raise UsageError(
                f"row {number} of {source} is none of {known.hub_id} ({error}): mend or drop it, or give rows of your "
                "own by their path alone"
            ) from error
        if problem is not None:
            problems.append(problem)
    return problems


def load_rows(source: str, config: str | None, split: str, *, is_copy: bool = False, cure: str = "") -> Any:
    """Of a file, what `save_to_disk` wrote, a folder or a name of the hub. Raises UsageError, which ends in the cure.

    A copy may be the rows alone: a file, which has no splits, or a folder of files, which has no configurations.
    `split` may be parts of one, as `datasets` writes them: train[:100], train[1:3]+train[7:8].
    """
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"{source} needs datasets: pip install 'leanthink[eval]'") from error
    path, whole = Path(source), split.partition("[")[0]
    saved = path / whole if (path / "dataset_dict.json").is_file() else path
    if (saved / "state.json").is_file() and whole != split:
        raise UsageError(f"split={split!r} of {source}: what `save_to_disk` wrote is read whole; give split={whole!r}")
    kind = _kind_of(path) if path.is_file() else None
    try:
        if (saved / "state.json").is_file():
            return datasets.load_from_disk(saved)
        if kind is not None:
            if is_copy:
                split = split.replace(whole, "train")
            return datasets.load_dataset(kind, data_files=source, split=split)
        if is_copy and config not in datasets.get_dataset_config_names(source):
            config = None
        return datasets.load_dataset(source, config, split=split)
    except Exception as error:  # of parsers of other packages; StopIteration is what an empty file ends in
        told = " ".join(f"{error} {error.__cause__ or ''}".split())[:300] or type(error).__name__
        raise UsageError(f"{source} cannot be loaded ({told}): {cure or OTHERWISE}") from error


def numbered(rows: Any, source: str) -> Iterator[tuple[int, Row]]:
    """The rows with their numbers. Raises UsageError for one that is not UTF-8, which a reader of JSON lets through."""
    try:
        yield from enumerate(rows)
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} has a text that is not UTF-8 ({error}): save it as such") from error


def _kind_of(path: Path) -> str:
    """What `datasets` calls files with such an ending. Raises UsageError: it would look for others on the hub."""
    ending = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if path.stat().st_size == 0:
        raise UsageError(f"{path} is empty: give a file with a row for each problem")
    if ending not in KINDS:
        raise UsageError(f"{path} is no file of rows, by its name: give one that ends in .{', .'.join(KINDS)}")
    return KINDS[ending]
