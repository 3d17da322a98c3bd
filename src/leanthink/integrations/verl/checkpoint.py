"""Begins a run of the advantage estimator, and keeps its moving average in verl's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from leanthink.integrations.verl.advantage import DeepCompressAdvantage
from leanthink.integrations.verl.average import read_average, write_average
from leanthink.integrations.verl.settings import settings_of
from leanthink.utils.errors import unknown

ADVANTAGE = DeepCompressAdvantage()  # of the run in this process
RESUME_MODES = ("auto", "disable", "resume_path")


class DeepCompressCheckpoint(CheckpointCallback):  # type: ignore[misc]  # verl is not there when types are checked
    """For `trainer.checkpoint_callback_class`: verl makes it with its whole configuration when a run begins.

    Raises:
        UsageError: a setting that DeepCompress cannot bear, or a checkpoint to go on from that has no average.
        DamagedFile: that checkpoint's average cannot be read.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        folder = resumed_from(config["trainer"])
        ADVANTAGE.begin(settings_of(config), None if folder is None else read_average(folder))

    def on_save(
        self, trainer: Any, global_step: int, checkpoint_dir: str, async_save: bool = False, **later: Any
    ) -> None:
        """Write the average beside the weights of this step."""
        assert ADVANTAGE.average is not None, "verl saves after a step, and a step computes advantages"
        write_average(Path(checkpoint_dir), ADVANTAGE.average, global_step)


def resumed_from(trainer: Mapping[str, Any]) -> Path | None:
    """The checkpoint that verl will go on from, found as verl finds it; None for a run from the start."""
    mode = trainer["resume_mode"]
    if mode not in RESUME_MODES:
        raise unknown("trainer.resume_mode", mode, RESUME_MODES)
    if mode == "disable":
        return None
    if mode == "resume_path":
        return Path(trainer["resume_from_path"])
    found = find_latest_ckpt_path(str(Path(trainer["default_local_dir"]).absolute()))
    return None if found is None else Path(found)
