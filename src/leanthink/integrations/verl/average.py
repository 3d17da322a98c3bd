"""The moving average of the pass ratio, as a file in a checkpoint."""

from __future__ import annotations

from pathlib import Path

from leanthink.utils.errors import DamagedFile, UsageError
from leanthink.utils.file_reading import parse_json, reading
from leanthink.utils.file_writing import write_json

FILE = "deepcompress.json"


def write_average(checkpoint: Path, average: float, step: int) -> None:
    """Put it into this checkpoint's folder, whole or not at all."""
    write_json(checkpoint / FILE, {"step": step, "average": average})


def read_average(checkpoint: Path) -> float:
    """The average of this checkpoint.

    Raises:
        UsageError: it was saved without one.
        DamagedFile: the file holds no average.
    """
    path = checkpoint / FILE
    if not path.is_file():
        raise UsageError(
            f"there is no {FILE} in {checkpoint}, and the run would go on with another average: resume from a "
            "checkpoint of a run with DeepCompress, or give trainer.resume_mode=disable"
        )
    with reading(path, "file with the average of pass ratios", "resume from another checkpoint"):
        average = parse_json(path.read_bytes())["average"]
    if isinstance(average, bool) or not isinstance(average, int | float) or not 0 <= average <= 1:
        raise DamagedFile(f"{path} has average {average!r}: a share from 0 to 1 was expected")
    return float(average)
