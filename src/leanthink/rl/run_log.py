"""What a training run writes beside TRL's checkpoints, and the line that tells how it goes.

`log.jsonl`: an object for each time something is logged, with `step` (optimiser steps done), `epoch` and every metric
by its name, null where there was nothing to take a mean of: TRL's own (`loss`, `entropy`, `clip_ratio/...`,
`completions/...`, `step_time` in seconds), those of `leanthink.rl.trl_reward.metrics`, `dynamic_sampling/...` and
`rollouts/seconds`, which of the step's time went into generating and judging, all rounds together. Metrics of an
evaluation begin with `eval_`. With several rounds or steps since the line before, a metric is their mean. The last line
has the run's time, `train_runtime`.

`rollouts.jsonl`: an object for each group that was generated in training, dropped ones too: `step` (the first that
could learn from it, 1 for the first of all), `round` (of dynamic sampling, from 0), `id`, `family` and `level` of the
problem (null where unknown), `beta`, and lists with an entry for each response: `tokens`, `thought_tokens`, `right`
(null: not graded), `closed`, `length_reward`, `reward`, `self_checks`.

A run that goes on drops what was written after the checkpoint that it goes on from.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from leanthink.rl.run_files import LOG, ROLLOUTS
from leanthink.rl.trl_reward import Scored
from leanthink.utils.file_reading import parse_json, reading
from leanthink.utils.file_writing import LineFile, replacing

QUIET_S = 30  # how long nothing is told at most, where rounds of generation take that long


class RunLog(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Writes both files, on the main process only.

    Args:
        folder: of the run.
        writes: whether this is the main process.
        tell: is told a line for each logging step, and while a batch is slow to fill; None for silence.
    """

    def __init__(self, folder: Path, *, writes: bool, tell: Callable[[str], None] | None = None) -> None:
        self.folder, self.writes, self.tell = folder, writes, tell
        self.latest: dict[str, Any] = {}  # the latest metrics of training
        self._told_at = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Start both files, or cut them to what the checkpoint knows."""
        self._told_at = time.monotonic()
        if not self.writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (LOG, ROLLOUTS):
            truncate(self.folder / name, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **others: Any) -> None:
        """Write a line of the log, and tell how it goes."""
        if not self.writes or logs is None:
            return
        record = {"step": state.global_step} | {name: _plain(value) for name, value in logs.items()}
        self._append(LOG, [record])
        if "loss" in record:
            self.latest = record
            self._say(progress_line(record, state.max_steps))

    def on_scored(self, step: int, number: int, scored: Scored) -> None:
        """Write the groups of a generation batch."""
        if self.writes:
            self._append(ROLLOUTS, group_records(step + 1, number, scored))
            if time.monotonic() - self._told_at >= QUIET_S:
                self._say(round_line(step + 1, number, scored))

    def _say(self, line: str) -> None:
        self._told_at = time.monotonic()
        if self.tell is not None:
            self.tell(line)

    def _append(self, name: str, records: list[dict[str, Any]]) -> None:
        file = LineFile(self.folder / name)
        try:
            file.append(*(json.dumps(record, allow_nan=False) for record in records))
        finally:
            file.close()


def group_records(step: int, number: int, scored: Scored) -> list[dict[str, Any]]:
    """The lines of `rollouts.jsonl` for a generation batch."""
    records = []
    group = scored.correct_BG.shape[1]
    for b, beta in enumerate(scored.beta_B.tolist()):
        judged = scored.judged[b * group : (b + 1) * group]
        rights = [_plain(one.correct) for one in judged]
        first = judged[0]
        record: dict[str, Any] = {"step": step, "round": number, "id": first.id, "family": first.family}
        record |= {"level": first.level, "beta": _rounded(beta)}
        record |= {
            "tokens": [one.tokens for one in judged],
            "thought_tokens": [one.thought_tokens for one in judged],
            "right": [None if right is None else bool(right) for right in rights],
            "closed": [one.closed for one in judged],
            "length_reward": [_rounded(value) for value in scored.length_reward_BG[b].tolist()],
            "reward": [_rounded(value) for value in scored.reward_BG[b].tolist()],
            "self_checks": [one.checks for one in judged],
        }
        records.append(record)
    return records


def progress_line(record: dict[str, Any], steps: int) -> str:
    """Reward, accuracy, thought tokens on simple and hard problems, β and seconds, as far as they are known.

    A step that goes on with the responses of an earlier one has loss and rate alone.
    """
    loss = [("loss", "loss", ".4f"), ("rate", "learning_rate", ".2g")] if record.get("reward") is None else []
    told = [f"step {record['step']}/{steps}"]
    for words, name, digits in (
        ("reward", "reward", ".3f"),
        ("accuracy", "accuracy", ".3f"),
        ("thought tokens, simple", "simple/thought_tokens", ".0f"),
        ("thought tokens, hard", "hard/thought_tokens", ".0f"),
        ("β", "beta", ".3f"),
        *loss,
        ("seconds", "step_time", ".1f"),
    ):
        value = record.get(name)
        if value is not None:
            told.append(f"{words} {value:{digits}}")
    return "  ".join(told)


def round_line(step: int, number: int, scored: Scored) -> str:
    """What a round of generation for this step brought, in one line."""
    mixed, groups = int(scored.mixed_B.sum()), len(scored.mixed_B)
    told = f"step {step}: round {number + 1} generated, {mixed} of {groups} groups with right and wrong responses"
    return f"{told}  accuracy {scored.observed:.3f}"


def truncate(path: Path, step: int) -> None:
    """Drop the lines after this step, and one that was not finished; without steps the file starts empty.

    Raises:
        DamagedFile: a line that is finished cannot be read.
        CannotWrite: there is no room for the file.
    """
    lines = path.read_bytes().splitlines(keepends=True) if step and path.exists() else []
    with reading(path, "log of a run", f"remove it to go on without what it tells of the first {step} steps"):
        kept = [line for line in lines if line.endswith(b"\n") and parse_json(line)["step"] <= step]
    with replacing(path) as draft:
        draft.write_bytes(b"".join(kept))


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rounded(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None
