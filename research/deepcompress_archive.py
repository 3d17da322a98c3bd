"""Archives results of `research/deepcompress.py`: `python research/deepcompress_archive.py OUT.tar.xz FOLDER...`.

A folder is an experiment and is called in the archive as it is here. Of each run there goes in what a table, a plot or
a test reads: all settings, every problem of the evaluation, and of the training curve the metrics in CURVES for each
step, four digits of each, and those in LAST, too, for the last steps, six digits of each.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepcompress_table import LAST_STEPS, SHOWN, Run

CURVES = ("step", "accuracy", "thought_tokens", "self_checks", "rollout_seconds", "update_seconds")
LAST = tuple(name for name in SHOWN if name not in CURVES)
DIGITS, LAST_DIGITS = 4, 6


def main(arguments: Sequence[str]) -> None:
    """Write the archive; the same results give the same bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    options = parser.parse_args(arguments)
    with tarfile.open(options.archive, "w:xz", preset=9) as archive:
        for folder in sorted(options.folders):
            for path in sorted(folder.glob("*.json")):
                content = json.dumps(archived(json.loads(path.read_text()))).encode() + b"\n"
                entry = tarfile.TarInfo(f"{folder.name}/{path.name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


def archived(run: Run) -> Run:
    """What the archive holds of a run."""
    kept = dict(run)
    if "curve" in run:
        steps = run["curve"]
        whole, last = steps[:-LAST_STEPS], steps[-LAST_STEPS:]
        kept["curve"] = [_only(step, CURVES, DIGITS) for step in whole]
        kept["curve"] += [_only(step, CURVES + LAST, LAST_DIGITS) for step in last]
    if "evaluation" in run:
        problems = {name: [_short(value) for value in values] for name, values in run["evaluation"]["problems"].items()}
        kept["evaluation"] = {**run["evaluation"], "problems": problems}
        kept["evaluation"].pop("levels", None)  # means of these problems
    return kept


def _only(step: dict[str, Any], names: Sequence[str], digits: int) -> dict[str, Any]:
    return {name: _rounded(step[name], digits) for name in names if name in step}


def _rounded(value: Any, digits: int) -> Any:
    return _short(float(f"{value:.{digits}g}")) if isinstance(value, float) else value


def _short(value: Any) -> Any:
    """A whole number without its `.0`."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


if __name__ == "__main__":
    main(sys.argv[1:])
