from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3ForCausalLM

from leanthink.models.tiny.model import tiny_config
from leanthink.rl.run import make_config

RESEARCH = Path(__file__).parent.parent / "research"
sys.path.insert(0, str(RESEARCH))
import deepcompress_real as real  # noqa: E402
import deepcompress_real_table as table  # noqa: E402


def options_of(*words: str) -> Any:
    options = real.make_parser().parse_args(["train", *words])
    options.problems, options.name = [Path("problems.jsonl")], "run"
    return options


@pytest.mark.parametrize("arm", real.ARMS)
def test_the_settings_of_every_arm_are_accepted_and_a_batch_is_as_large_as_is_said(arm: str) -> None:
    args = make_config(real.settings_of(options_of(arm)))
    assert args.generation_batch_size == real.GROUPS * real.ROLLOUTS
    assert args.steps_per_generation == 2 * args.gradient_accumulation_steps, "two updates"
    assert (args.oversample == 1) == bool(args.all_correct_weight)


def test_a_setting_can_be_changed() -> None:
    settings = real.settings_of(options_of("ours", "--set", "target_length=100", "--set", "learning_rate=2e-5"))
    assert settings["target_length"] == 100
    assert make_config(settings).learning_rate == 2e-5


def test_a_run_ends_when_enough_groups_have_taught_and_its_batch_is_used_up() -> None:
    enough = real.Enough(groups=60, seconds=1000)
    state, control = SimpleNamespace(global_step=1), SimpleNamespace(should_training_stop=False)
    for filled in (0.0, 0.25):  # 32 and 24 groups, then 32 more
        enough.on_log(None, state, control, logs={"dynamic_sampling/filled": filled, "loss": 0.0})
    enough.on_log(None, state, control, logs={"loss": 0.0})  # an update that generates nothing
    state.global_step = 2
    enough.on_step_end(None, state, control)
    assert (enough.taught, control.should_training_stop) == (56, False)
    enough.on_log(None, state, control, logs={"dynamic_sampling/filled": 0.0})
    state.global_step = 3
    enough.on_step_end(None, state, control)
    assert not control.should_training_stop, "half of the batch is left"
    state.global_step = 4
    enough.on_step_end(None, state, control)
    assert control.should_training_stop


def test_a_run_without_time_ends_with_its_batch() -> None:
    enough, control = real.Enough(groups=60, seconds=0), SimpleNamespace(should_training_stop=False)
    enough.on_step_end(None, SimpleNamespace(global_step=2), control)
    assert control.should_training_stop


def test_adapters_that_were_kept_are_folded_in_as_peft_folds_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(tiny_config(layers=2, hidden=64, heads=2, kv_heads=1, mlp=64))
    plain = {name: weight.clone() for name, weight in model.state_dict().items()}
    lora = real.SETTINGS["lora"]
    trained = get_peft_model(
        model, LoraConfig(r=lora["r"], lora_alpha=lora["alpha"], target_modules="all-linear", init_lora_weights=False)
    )
    for name, weight in trained.named_parameters():
        if "lora_" in name:
            weight.data.copy_(weight.to(torch.bfloat16))
    real.Adapters(tmp_path / "a.pt").on_train_end(None, None, None, model=trained)
    wanted = trained.merge_and_unload().state_dict()
    again = Qwen3ForCausalLM(tiny_config(layers=2, hidden=64, heads=2, kv_heads=1, mlp=64))
    again.load_state_dict(plain)
    real.merge(again, tmp_path / "a.pt")
    assert any(not torch.equal(plain[name], wanted[name]) for name in plain)
    for name, weight in again.state_dict().items():
        torch.testing.assert_close(weight, wanted[name], atol=1e-6, rtol=1e-5)


def run_of(arm: str, seed: int, right: list[int], tokens: list[int]) -> dict[str, Any]:
    found = {"samples": 2, "greedy_right": right, "greedy_tokens": tokens}
    found |= {"right": [2 * one for one in right], "tokens": [2 * one for one in tokens]}
    return {"arm": arm, "seed": seed, "name": f"{arm}-{seed}", "evaluation": {"math": found}}


def test_intervals_hold_the_problems_and_the_seeds() -> None:
    runs = [run_of("grpo", 1, [1, 1, 0, 0], [10, 10, 10, 10]), run_of("grpo", 2, [1, 1, 1, 1], [10, 10, 10, 10]),
            run_of("ours", 1, [1, 0, 1, 1], [5, 5, 5, 5]), run_of("ours", 2, [1, 0, 1, 1], [5, 5, 5, 5])]  # fmt: skip
    arms = table.arms_of(runs)
    assert list(arms) == ["grpo", "ours"]
    # means of the seeds: 0.5 and 1.0; 0.75 and 0.75: squares 0.125 and 0, two degrees of freedom
    assert table.seed_variance(arms, "math", "greedy right") == pytest.approx(0.0625)
    same = torch.ones(4).double()
    value, low, high = table.interval(table.mean(same), 4, 0.0625 / 2)
    assert (value, value - low, high - value) == pytest.approx((1, 1.96 * 0.03125**0.5, 1.96 * 0.03125**0.5))
    right, points, tokens, change = table.cells(arms, "ours", "math", "greedy right", "greedy tokens")
    assert (right.split()[0], points.split()[0], tokens, change) == ("75.0", "+0.0", "5 [5, 5]", "-50.0 [-50.0, -50.0]")


def test_the_table_has_a_row_for_each_arm_and_the_start_has_no_seeds(tmp_path: Path) -> None:
    start = run_of("start", 0, [1, 0, 0, 0], [20, 20, 20, 20]) | {"name": "start"}
    for run in (start, run_of("grpo", 1, [1, 1, 0, 0], [10, 10, 10, 10]), run_of("cap", 1, [1, 1, 0, 0], [4, 4, 4, 4])):
        (tmp_path / f"{run['name']}.json").write_text(json.dumps(run))
    lines = table.summary(tmp_path).splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith(("| start", "| grpo", "| cap"))]
    assert [row[0].strip("| ") for row in rows] == ["start", "grpo", "cap"] * 2, "greedy, then sampled"
    assert rows[0][1:3] == ["", "25.0 [0.0, 75.0]"]
    assert rows[2][5].startswith("-60.0")
