"""What a training run is resumed from: the same settings, and its last checkpoint that is whole."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch.utils.data import Sampler

from leanthink.policies.budget import file_keys
from leanthink.policies.policy_spec import canonical
from leanthink.rl.adapters import DEFAULTS
from leanthink.rl.run_files import RUN, about_run
from leanthink.utils.errors import DamagedFile, UsageError
from leanthink.utils.file_reading import INTEGER, check_kinds, parse_json, reading

# What run.json calls these settings.
FILE_KEYS = {
    "rule": "length_reward_mode",
    "start": "ema_initial_value",
    "decay": "ema_decay",
    "mastered_weight": "all_correct_weight",
    "max_rounds": "max_num_gen_batches",
}
STATE = "trainer_state.json"  # transformers writes it last
CURE = "go on from another checkpoint"
# Settings that may change from start to start: what they decide is how long, how watched and where, not what is learnt.
FREE = ("out", "max_steps", "num_train_epochs", "report_to", "run_name", "disable_tqdm", "rollout_rows", "push_to_hub",
        "rollout_enable_sleep_mode")  # fmt: skip
FREE_KINDS = ("save_", "logging_", "log_", "eval_", "hub_", "dataloader_")


def check_same(settings: Mapping[str, Any], out: Path) -> None:
    """Refuse to go on with settings other than those that the run was started with.

    Raises:
        UsageError: one that decides what is learnt differs; the message names each.
        DamagedFile: run.json cannot be read.
    """
    if not (out / RUN).is_file():
        return
    recorded = about_run(out / RUN).get("settings", {})
    before = {FILE_KEYS.get(key, key): value for key, value in recorded.items()}
    now = _as_json(settings)
    differing = [
        f"{name}: {_shown(before, name)} there, {_shown(now, name)} asked for"
        for name in sorted({*before, *now})
        if name not in FREE and not name.startswith(FREE_KINDS) and _value(before, name) != _value(now, name)
    ]
    if differing:
        raise UsageError(
            f"{out} holds a run with other settings ({'; '.join(differing)}): give the same ones to go on with it, "
            "another folder, or overwrite it"
        )


def as_recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as run.json has them."""
    keys = {name: key for key, name in FILE_KEYS.items()}
    return {keys.get(name, name): value for name, value in _as_json(settings).items()}


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Their values as run.json has them, under their own names."""
    recorded: dict[str, Any] = json.loads(json.dumps(dict(settings), default=str))
    budget, policy = recorded.get("rollout_budget"), recorded.get("rollout_policy")
    if isinstance(budget, dict):
        recorded["rollout_budget"] = file_keys(budget)
    if isinstance(policy, str):
        recorded["rollout_policy"] = canonical(policy)
    return recorded


def _value(settings: Mapping[str, Any], name: str) -> Any:
    """As given, or what a setting is that was left out; of adapters also a key that was."""
    value = settings[name] if name in settings else _defaults().get(name)
    return {**DEFAULTS, **value} if name == "lora" and isinstance(value, Mapping) else value


def _defaults() -> dict[str, Any]:
    from leanthink.rl.config import DeepCompressConfig

    own = {"model": "tiny", "dtype": "float32", "seed": 0}
    return {one.name: one.default for one in fields(DeepCompressConfig) if one.default is not MISSING} | own


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(_value(settings, name), default=str)


def last_whole_checkpoint(out: Path) -> tuple[Path | None, list[str]]:
    """The latest checkpoint that can be resumed from, and what is wrong with those after it."""
    wrong: list[str] = []
    folders = [folder for folder in out.glob("checkpoint-*") if folder.name.rpartition("-")[2].isdecimal()]
    for folder in sorted(folders, key=lambda folder: int(folder.name.rpartition("-")[2]), reverse=True):
        try:
            check_whole(folder)
        except (DamagedFile, OSError) as error:
            wrong.append(str(error))
        else:
            return folder, wrong
    return None, wrong


def check_whole(folder: Path) -> None:
    """Refuse a checkpoint that a killed process or a full disk left behind (DamagedFile, FileNotFoundError)."""
    with reading(folder / STATE, "state of a checkpoint", CURE):
        state = parse_json((folder / STATE).read_bytes(), parse_constant=float)  # transformers logs NaN as such
        check_kinds(state, {"global_step": INTEGER})
    for path in sorted(folder.glob("*.index.json")):
        with reading(path, "list of weights", CURE):
            shards = set(parse_json(path.read_bytes())["weight_map"].values())
        for shard in sorted(shards):
            if not (folder / shard).is_file():
                raise DamagedFile(f"{folder / shard} is missing: {CURE}")
    for path in sorted(folder.glob("*.safetensors")):
        with reading(path, "file of weights", CURE), safe_open(str(path), framework="pt"):
            pass
    for pattern in ("*.pt", "*.pth", "*.bin"):
        for path in sorted(folder.glob(pattern)):
            if not zipfile.is_zipfile(path):  # as torch has written files since 1.6: what they hold is told at the end
                raise DamagedFile(f"{path} cannot be read, it is truncated or no file of torch: {CURE}")


class SeededByEpoch(Sampler[int]):
    """TRL's sampler, seeded for each epoch: its own generator goes on, and a resumed run would start it anew."""

    def __init__(self, sampler: Any, seed: int, epoch: Callable[[], int]) -> None:
        self._sampler, self._seed, self._epoch = sampler, seed, epoch

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[int]:
        self._sampler.generator.manual_seed(self._seed + self._epoch())
        return iter(self._sampler)


class Resumable:
    """What a trainer of transformers does otherwise when a run goes on; stands before it among the bases of a class."""

    args: Any
    control: Any
    state: Any

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """TRL's, which forgets in which epoch a run went on."""
        sampler = super()._get_train_sampler(dataset)  # type: ignore[misc]  # of the trainer
        if not sampler.shuffle:
            return sampler
        return SeededByEpoch(sampler, self.args.seed, lambda: int(self.state.epoch or 0))

    def _run_epoch(self, **arguments: Any) -> None:
        """That of transformers, which looks after a step whether it was the last: a run that is done took one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**arguments)  # type: ignore[misc]  # of the trainer
