"""Problems of `leanthink.rl.data` as verl's files of prompts, and the way back to the columns that are graded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanthink.utils.errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset

SOURCE = "leanthink"
COLUMNS = ("id", "problem", "family", "level", "grader", "facts")  # beside the answer


def write_parquet(dataset: Dataset, path: str | Path) -> None:
    """Write problems as verl reads them (`data.train_files`, `data.val_files`); the file must not exist.

    Raises:
        UsageError: it exists.
    """
    from datasets import Dataset

    if Path(path).exists():
        raise UsageError(f"{path} exists: give another name, or delete it")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list([_as_verl(row, index) for index, row in enumerate(dataset)]).to_parquet(str(path))


def columns_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What `leanthink.rl.data.grade` needs of a row of verl's.

    Raises:
        UsageError: it has no right answer.
    """
    answer = (row.get("reward_model") or {}).get("ground_truth")
    if not isinstance(answer, str) or not answer.strip():
        raise UsageError(
            f"a row has reward_model.ground_truth={answer!r}: give the right answer as text, such as "
            "leanthink.integrations.verl.data.write_parquet does"
        )
    extra = row.get("extra_info") or {}
    return {"answer": answer, **{name: extra[name] for name in COLUMNS if name in extra}}


def _as_verl(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    return {
        "data_source": SOURCE,
        "prompt": row["prompt"],
        "reward_model": {"style": "rule", "ground_truth": row["answer"]},
        "extra_info": {"index": index, **{name: row[name] for name in COLUMNS}},
    }
