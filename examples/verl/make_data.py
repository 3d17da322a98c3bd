"""Writes embedded tasks as files of prompts for verl: `python examples/verl/make_data.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from leanthink.data.tasks.registry import FAMILIES
from leanthink.integrations.verl.data import write_parquet
from leanthink.rl.data import from_tasks

folder = Path(sys.argv[1])
write_parquet(from_tasks(list(FAMILIES), [1, 2, 3], 256), folder / "train.parquet")
write_parquet(from_tasks(list(FAMILIES), [1, 2, 3], 16, split="held-out"), folder / "val.parquet")
