"""What a training run is resumed from: the same settings, and the last checkpoint that is whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from leanthink.rl.resume import as_recorded, check_same, check_whole, last_whole_checkpoint
from leanthink.rl.run import check_settings
from leanthink.rl.run_log import truncate
from leanthink.rl.trainer import TELEMETRY
from leanthink.utils.errors import CannotWrite, DamagedFile, LeanThinkWarning, UsageError
from rl_runs import make_trainer, weights

BEGUN: dict[str, Any] = {"data": {"tasks": ["sums"]}, "temperature": 1.0, "max_steps": 20, "learning_rate": 1e-4}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints 1 to 3 of a small run."""
    folder: Path = tmp_path_factory.mktemp("run")
    trainer, _ = make_trainer(folder)
    trainer.train()
    return folder


def begun(folder: Path, **more: Any) -> dict[str, Any]:
    settings = {**BEGUN, "out": str(folder)}
    (folder / "run.json").write_text(json.dumps({"settings": settings | more, "birth": {}}))
    return settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 1.5),
        ("seed", 3),
        ("alpha", 0.5),
        ("model", "other"),
        ("data", {"tasks": ["bases"]}),
        ("lora", {}),
        ("target_length", 64),
    ],
)
def test_a_run_is_not_resumed_under_other_settings(name: str, value: Any, tmp_path: Path) -> None:
    settings = begun(tmp_path)
    with pytest.raises(UsageError, match=rf"other settings \({name}: .* there, .* asked for\)"):
        check_same({**settings, name: value}, tmp_path)


def test_how_long_and_how_watched_may_change_and_what_is_left_out_is_its_default(tmp_path: Path) -> None:
    settings = begun(tmp_path, seed=0, dtype="float32")
    check_same({**settings, "max_steps": 30, "save_steps": 7, "logging_steps": 2, "out": "elsewhere"}, tmp_path)
    del settings["temperature"]
    check_same(settings, tmp_path)
    adapted = begun(tmp_path, lora={"r": 16, "alpha": 32})
    check_same({**adapted, "lora": {}}, tmp_path)
    with pytest.raises(UsageError, match=r'lora: {"r": 16, "alpha": 32.*"r": 8'):
        check_same({**adapted, "lora": {"r": 8}}, tmp_path)


def test_run_json_has_keys_of_its_own_for_some_settings(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"settings": {"rule": "penalty", "decay": 0.9}, "birth": {}}')
    check_same({"length_reward_mode": "penalty", "ema_decay": 0.9}, tmp_path)
    with pytest.raises(UsageError, match=r"ema_decay: 0\.9 there, 0\.8 asked for"):
        check_same({"length_reward_mode": "penalty", "ema_decay": 0.8}, tmp_path)
    budget = {"slots": 8, "recent_window": 4}
    given = {"ema_decay": 0.9, "alpha": 0.2, "rollout_policy": "sinks: num_sinks = 2", "rollout_budget": budget}
    written = {"decay": 0.9, "alpha": 0.2, "rollout_policy": "sinks:num_sinks=2"}
    assert as_recorded(given) == written | {"rollout_budget": {"slots": 8, "window": 4}}


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin"],
)
def test_a_checkpoint_cut_in_half_is_passed_over_for_the_one_before_it(
    name: str, trained: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(trained, tmp_path / "run"))
    settings = begun(out)
    half(out / "checkpoint-3" / name)
    with pytest.raises(DamagedFile, match="cannot be read"):
        check_whole(out / "checkpoint-3")
    with pytest.warns(LeanThinkWarning, match=rf"{name} cannot be read.*going on from checkpoint-2"):
        assert check_settings(settings, resume=True, overwrite=False) == (out, str(out / "checkpoint-2"))
    shutil.rmtree(out / "checkpoint-2")
    shutil.rmtree(out / "checkpoint-1")
    with pytest.raises(UsageError, match=r"no checkpoint in .*, and 1 that cannot be read.*: overwrite it"):
        check_settings(settings, resume=True, overwrite=False)


def test_going_on_before_a_checkpoint_that_was_cut_comes_to_the_same_weights(trained: Path, tmp_path: Path) -> None:
    whole, _ = make_trainer(tmp_path / "whole")
    whole.train()
    out = Path(shutil.copytree(trained, tmp_path / "run"))
    half(out / "checkpoint-3" / "optimizer.pt")
    (out / "checkpoint-3" / "left.over").write_text("of the attempt before")
    last, _ = last_whole_checkpoint(out)
    again, _ = make_trainer(out)
    again.train(resume_from_checkpoint=str(last))
    assert weights(again) == weights(whole)
    check_whole(out / "checkpoint-3")
    assert not (out / "checkpoint-3" / "left.over").exists()


def test_a_run_that_is_done_takes_no_further_step(trained: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(trained, tmp_path / "run"))
    for max_steps in (3, 2):
        again, seen = make_trainer(out, max_steps=max_steps)
        again.train(resume_from_checkpoint=str(out / "checkpoint-3"))
        assert (again.state.global_step, list(seen), (out / "checkpoint-4").exists()) == (3, [], False)
    assert weights(again) != weights(make_trainer(tmp_path / "start")[0])


def test_a_checkpoint_that_does_not_fit_the_disk_is_one_error_and_those_before_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    trainer, _ = make_trainer(tmp_path)
    save, saved = torch.save, []

    def full(*given: Any, **more: Any) -> None:
        saved.append(given)
        if trainer.state.global_step == 2:
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
        save(*given, **more)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CannotWrite, match="checkpoint-2 cannot be written"):
        trainer.train()
    assert saved
    assert last_whole_checkpoint(tmp_path)[0] == tmp_path / "checkpoint-1"


def test_a_damaged_line_of_the_log_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step"\n')
    with pytest.raises(DamagedFile, match=r"log.jsonl cannot be read.*remove it"):
        truncate(tmp_path / "log.jsonl", 1)


@pytest.mark.parametrize(("asked", "told"), [(None, False), ("1", False), ("0", True)])
def test_no_hub_is_told_of_a_run_unless_it_is_asked_for(
    asked: str | None, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl.trainer import base_trainer

    sent: list[Any] = []
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *given, **more: sent.append(given))
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv(TELEMETRY, raising=False)
    if asked is not None:
        monkeypatch.setenv(TELEMETRY, asked)
    make_trainer(tmp_path)
    assert bool(sent) is told


def test_a_checkpoint_whose_log_has_nan_as_transformers_writes_it_is_whole(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text('{"global_step": 3, "log_history": [{"grad_norm": NaN}]}')
    check_whole(tmp_path)
