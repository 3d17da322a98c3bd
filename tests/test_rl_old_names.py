"""Settings and arguments of before: they still work, and say once what they are called now."""

from __future__ import annotations

import inspect
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from leanthink.entrypoints.cli.train import Method
from leanthink.integrations.verl.settings import Settings
from leanthink.rl.config import DeepCompressConfig
from leanthink.rl.old_names import NOW, current_names
from leanthink.rl.resume import as_recorded, check_same
from leanthink.rl.rewards import deepcompress_reward, dual_length_reward, moving_average
from leanthink.rl.run import check_settings, make_config
from leanthink.rl.trl_reward import DeepCompressReward
from leanthink.utils import deprecated
from leanthink.utils.errors import UsageError

OLD = {"rule": "penalty", "start": 0.5, "decay": 0.9, "mastered_weight": 0.0, "max_rounds": 3}
PRESENT = {NOW[name]: value for name, value in OLD.items()}


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deprecated, "_told", set())


def told(made: Any) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = made()
    for warning in caught:
        assert issubclass(warning.category, FutureWarning)
        assert warning.filename == __file__, "the line of the user who wrote the old name"
    return value, [str(warning.message).split(":")[0] for warning in caught]


def test_a_config_takes_old_names_and_says_each_once(tmp_path: Path) -> None:
    plain: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "num_generations": 8}
    config, said = told(lambda: DeepCompressConfig(**plain, **OLD))
    here = "DeepCompressConfig({}=)"
    assert said == [f"{here.format(name)} is called {here.format(NOW[name])} now" for name in OLD]
    assert {name: getattr(config, name) for name in PRESENT} == PRESENT
    assert told(lambda: DeepCompressConfig(**plain, **OLD))[1] == []
    values, said = told(lambda: [getattr(config, name) for name in OLD])
    assert (values, len(said)) == (list(OLD.values()), len(OLD)), "read by old names too"


def test_an_old_attribute_says_what_it_is_called_now() -> None:
    reward = DeepCompressReward(max_length=9, ema_decay=0.5)
    said = ["DeepCompressReward.decay is called DeepCompressReward.ema_decay now"]
    assert told(lambda: reward.decay) == (0.5, said)
    assert not hasattr(reward, "max_rounds"), "it never had it"


@pytest.mark.parametrize(
    ("function", "old", "present"),
    [
        (lambda **k: deepcompress_reward([[1, 3]], [[1, 1]], 0.5, **k), {"rule": "bonus", "keep_mastered": True},
         {"length_reward_mode": "bonus", "keep_all_correct": True}),
        (lambda **k: dual_length_reward([[1, 3]], [[1, 1]], [0.5], **k), {"keep_mastered": True},
         {"keep_all_correct": True}),
        (lambda **k: torch.tensor(moving_average(1.0, 0.0, **k)), {"decay": 0.25}, {"ema_decay": 0.25}),
        (lambda **k: torch.tensor(DeepCompressReward(max_length=9, **k).ema_decay), {"decay": 0.25, "start": 0.5},
         {"ema_decay": 0.25, "ema_initial_value": 0.5}),
        (lambda **k: torch.tensor(Settings(responses=2, max_length=9, **k).all_correct_weight),
         {"mastered_weight": 0.25}, {"all_correct_weight": 0.25}),
    ],
)  # fmt: skip
def test_functions_take_old_names_by_keyword(function: Any, old: dict[str, Any], present: dict[str, Any]) -> None:
    wanted = function(**present)
    with pytest.warns(FutureWarning) as warned:
        found = function(**old)
    torch.testing.assert_close(found, wanted)
    said = [re.split(r"\W+", str(one.message).split(" is ")[0].rstrip("=)"))[-1] for one in warned]
    assert sorted(said) == sorted(old)


def test_old_names_are_in_no_signature() -> None:
    for function in (deepcompress_reward, DeepCompressReward, DeepCompressConfig, Settings):
        assert not {*inspect.signature(function).parameters} & {*NOW}


def test_settings_of_a_run_may_have_old_names(tmp_path: Path) -> None:
    settings = {"data": {"tasks": ["sums"]}, "out": str(tmp_path / "run"), "num_generations": 8}
    with pytest.raises(UsageError, match="decay is called ema_decay now, and both are given: leave decay out"):
        current_names({"decay": 0.9, "ema_decay": 0.9})
    present, said = told(lambda: current_names({**settings, **OLD}))
    assert (present, len(said)) == (settings | PRESENT, len(OLD))
    check_settings(present, resume=False, overwrite=False)
    config = make_config(present)
    assert {name: getattr(config, name) for name in PRESENT} == PRESENT


def test_a_run_of_before_is_resumed_under_present_names(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"settings": {"rule": "penalty", "decay": 0.9}, "birth": {}}')
    check_same({"length_reward_mode": "penalty", "ema_decay": 0.9}, tmp_path)
    check_same({"rule": "penalty", "decay": 0.9}, tmp_path)
    with pytest.raises(UsageError, match=r"ema_decay: 0\.9 there, 0\.8 asked for"):
        check_same({"length_reward_mode": "penalty", "ema_decay": 0.8}, tmp_path)
    assert as_recorded({"ema_decay": 0.9, "alpha": 0.2}) == {"decay": 0.9, "alpha": 0.2}, "files keep their keys"


def test_flags_win_over_a_file_of_settings_with_old_names() -> None:
    in_file = told(lambda: current_names({"decay": 0.9, "alpha": 0.1}))[0]
    assert in_file | Method(ema_decay=0.8, ema_initial_value="observed").settings == {
        "ema_decay": 0.8,
        "alpha": 0.1,
        "ema_initial_value": "observed",
    }
