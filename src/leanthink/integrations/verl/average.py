"""The moving average of the pass ratio, as a file in a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path

from leanthink.errors import DamagedFile, UsageError

FILE = "deepcompress.json"


def write_average(checkpoint: Path, average: float, step: int) -> None:
    """Put it into this checkpoint's folder, whole or not at all."""
    unfinished = checkpoint / f"{FILE}.unfinished"
    unfinished.write_text(json.dumps({"step": step, "average": average}) + "\n")
    os.replace(unfinished, checkpoint / FILE)


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
    try:
        average = json.loads(path.read_bytes())["average"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{path} holds no average of pass ratios ({error!r})") from None
    if isinstance(average, bool) or not isinstance(average, int | float) or not 0 <= average <= 1:
        raise DamagedFile(f"{path} has average {average!r}: a share from 0 to 1 was expected")
    return float(average)
