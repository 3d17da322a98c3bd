from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3ForCausalLM

from leanthink.data.tasks import registry
from leanthink.models.loading import load
from leanthink.models.predictor import load_predictor
from leanthink.models.tiny.model import tiny_config
from leanthink.rl.run import make_config
from leanthink.utils.errors import PredictorMismatch, UsageError

RESEARCH = Path(__file__).parent.parent / "research"
sys.path.insert(0, str(RESEARCH))
import deepcompress_real as real  # noqa: E402
import deepcompress_real_budgets as budgets  # noqa: E402
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


def test_adapters_are_kept_of_the_first_whole_batch_by_which_half_of_the_groups_have_taught(tmp_path: Path) -> None:
    enough = real.Enough(groups=60, seconds=1000)
    adapters = real.Adapters(tmp_path / "a.pt", enough)
    for step, taught in ((1, 29), (2, 29), (3, 61), (4, 61), (6, 93)):
        enough.taught = taught
        model = SimpleNamespace(state_dict=lambda step=step: {"lora_A": torch.tensor(float(step)), "others": step})
        adapters.on_step_end(None, SimpleNamespace(global_step=step), None, model=model)
    assert [path.name for path in tmp_path.iterdir()] == ["a.half.pt"]
    assert torch.load(tmp_path / "a.half.pt") == {"lora_A": torch.tensor(4.0)}


def test_a_run_without_time_ends_with_its_batch() -> None:
    enough, control = real.Enough(groups=60, seconds=0), SimpleNamespace(should_training_stop=False)
    enough.on_step_end(None, SimpleNamespace(global_step=2), control)
    assert control.should_training_stop


SMALL = {
    "dtype": "float32", "think_tags": "true", "learning_rate": 1e-3, "num_generations": 2, "target_length": 32,
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4, "rollout_rows": 8,
    "max_completion_length": 96, "overlong_buffer": 0, "gradient_checkpointing": "false", "temperature": 1.2,
    "oversample": 1, "max_num_gen_batches": 1, "all_correct_weight": 0.5,
}  # fmt: skip


def written_problems(path: Path, count: int) -> Path:
    """A file of embedded problems, which `tiny` often solves."""
    found = registry.sample("equations", 1, count, 0, "train")
    lines = [json.dumps({"id": one.id, "problem": one.prompt, "answer": one.answer}) for one in found]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:nothing to learn from")
def test_a_run_that_was_cut_goes_on_from_its_checkpoint_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real, "STEP_BY_STEP", "")  # as `tiny` is asked
    problems = written_problems(tmp_path / "problems.jsonl", 8)
    sets = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]

    def run(folder: str, *more: str) -> dict[str, Any]:
        out = tmp_path / folder
        words = ["--model", "tiny", "--problems", problems, "--out", out, "--work", out, "--save-steps", 2, *sets]
        words += ["--seconds", 1300]  # where nothing teaches it would go on
        real.main(["train", "ours", *map(str, words), *more])
        found: dict[str, Any] = json.loads((out / "ours-1.json").read_text())
        return found | {"weights": torch.load(out / "ours-1.pt")}

    whole = run("whole", "--groups", "24")
    assert (whole["steps"], whole["resumed"]) == (6, 0)
    assert whole["taught"] >= 24

    on_step_end = real.Enough.on_step_end

    def cut(self: Any, args: Any, state: Any, control: Any, **others: Any) -> None:
        on_step_end(self, args, state, control, **others)
        if state.global_step == 4:
            raise KeyboardInterrupt  # before its checkpoint, after a line of the log

    monkeypatch.setattr(real.Enough, "on_step_end", cut)
    with pytest.raises(KeyboardInterrupt):
        run("cut", "--groups", "24")
    monkeypatch.undo()
    monkeypatch.setattr(real, "STEP_BY_STEP", "")
    out = tmp_path / "cut" / "ours-1"
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-2"]
    assert '"step": 3' in (out / "log.jsonl").read_text()
    assert not (out / "checkpoint-2" / "model.safetensors").exists(), "adapters alone"
    with pytest.raises(UsageError, match=r"other settings \(temperature: 1.2 there, 1.0 asked for"):
        run("cut", "--groups", "24", "--resume", "--set", "temperature=1.0")

    state = json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())
    before = state["stateful_callbacks"]["Enough"]["attributes"]
    assert 0 < before["taught"] < 24
    state["stateful_callbacks"]["Enough"]["attributes"]["before"] = 1000.0  # as of a longer run
    (out / "checkpoint-2" / "trainer_state.json").write_text(json.dumps(state))
    again = run("cut", "--groups", "24", "--resume")
    assert (again["steps"], again["taught"], again["resumed"]) == (6, whole["taught"], 1)
    assert 1000 < again["seconds"] < 1100
    assert [line[:-2] for line in again["curve"]] == [line[:-2] for line in whole["curve"]], "but for seconds"
    assert len(whole["curve"]) == 3, "one for each generation batch"
    assert list(again["weights"]) == list(whole["weights"])
    assert all(torch.equal(again["weights"][name], weight) for name, weight in whole["weights"].items())
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-6"], "the end is one, too"


def test_checkpoints_are_asked_for_and_lie_between_generation_batches(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_config(real.settings_of(options_of("ours"))).save_strategy == "no"
    args = make_config(real.settings_of(options_of("ours", "--save-steps", "4")))
    assert (args.save_strategy, args.save_steps, args.save_total_limit) == ("steps", 4, 1)
    for wrong in ("3", "0"):
        with pytest.raises(SystemExit):
            options_of("ours", "--save-steps", wrong)
        assert f"{wrong}: must be a multiple of 2" in capsys.readouterr().err


def test_adapters_that_were_kept_are_folded_in_as_peft_folds_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(tiny_config(layers=2, hidden=64, heads=2, kv_heads=1, mlp=64))
    plain = {name: weight.clone() for name, weight in model.state_dict().items()}
    lora = {"r": 8, "alpha": 4}  # as changed by --set
    trained = get_peft_model(
        model, LoraConfig(r=lora["r"], lora_alpha=lora["alpha"], target_modules="all-linear", init_lora_weights=False)
    )
    for name, weight in trained.named_parameters():
        if "lora_" in name:
            weight.data.copy_(weight.to(torch.bfloat16))
    real.keep(trained, tmp_path / "a.pt")
    wanted = trained.merge_and_unload().state_dict()
    again = Qwen3ForCausalLM(tiny_config(layers=2, hidden=64, heads=2, kv_heads=1, mlp=64))
    again.load_state_dict(plain)
    real.merge(again, tmp_path / "a.pt", lora)
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
    assert list(table.arms_of([run_of("ours", 1, [1], [1]) | {"name": "ours-x"}, run_of("ours", 1, [1], [1])])) == [
        "ours", "ours-x"
    ], "not another seed of it"  # fmt: skip
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
    start["evaluation"]["math"] |= {"samples": 0, "right": [0] * 4, "tokens": [0] * 4}
    (tmp_path / "start.json").write_text(json.dumps(start))
    assert "math, greedy:" in table.summary(tmp_path)
    assert "sampled" not in table.summary(tmp_path), "one of them has no samples"


def test_a_quarter_of_what_is_held_is_window_and_another_is_the_interval() -> None:
    held = {(310, 4): (62, 16, 16), (620, 2): (294, 16, 16), (140, 4): (27, 8, 8), (6, 4): (1, 1, 1)}
    for (thought, times), (slots, window, interval) in held.items():
        found = budgets.budget_of(thought, times)
        assert (found.slots, found.recent_window, found.eviction_interval) == (slots, window, interval)


def test_the_start_and_an_arm_are_answered_in_less_memory_by_predictors_of_their_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(real, "TOKENS", 60)
    problems, others = written_problems(tmp_path / "asked.jsonl", 3), written_problems(tmp_path / "others.jsonl", 4)
    model, _ = load(folder, device="cpu", dtype=torch.bfloat16)
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", init_lora_weights=False))
    real.keep(adapted, tmp_path / "ours-1.pt")
    run = {"arm": "ours", "seed": 1, "name": "ours-1", "settings": {"lora": {"r": 2, "alpha": 4}}}
    (tmp_path / "ours-1.json").write_text(json.dumps(run))
    words = ["--model", folder, "--problems", problems, "--predictor-problems", others, "--predictor-steps", 3]
    words += ["--out", tmp_path, "--work", tmp_path, "--device", "cpu", "--rows", 8]
    for arm in ("start", "ours"):
        real.main(["budgets", arm, *map(str, words)])
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("start", "ours-1")}
    for name, run in found.items():
        assert (run["predictor"]["problems"], run["predictor"]["traces"]) == (4, 4), name
        caches = run["budgets"]["asked"]["caches"]
        assert list(caches) == ["full", "2x", "4x"]
        thought = sum(caches["full"]["tokens"]) / 3  # nothing closes it
        for times in (2, 4):
            budget = caches[f"{times}x"]["budget"]
            assert budget["slots"] + budget["interval"] == round(thought / times)
        full, half, quarter = (caches[cache]["slot_steps"] for cache in caches)
        assert all(map(float.__gt__, map(float, full), map(float, half))), name
        assert all(map(float.__gt__, map(float, half), map(float, quarter))), name
    trained, _ = load(tmp_path / "ours-1.merged", device="cpu", dtype=torch.bfloat16)
    load_predictor(tmp_path / "ours-1.safetensors", trained)
    with pytest.raises(PredictorMismatch):
        load_predictor(tmp_path / "start.safetensors", trained)

    for file in (merged := tmp_path / "ours-1.merged").iterdir():
        file.unlink()
    real.main(["merge", "ours", *map(str, words)])
    for name, weight in load(merged, device="cpu", dtype=torch.bfloat16)[0].state_dict().items():
        torch.testing.assert_close(weight, trained.state_dict()[name])
    (tmp_path / "ours-1.pt").rename(tmp_path / "ours-1.half.pt")
    real.main(["merge", "ours", *map(str, words), "--half", "--set", "lora={r: 2, alpha: 4}"])
    (tmp_path / "ours-1.half.pt").rename(tmp_path / "ours-1.pt")
    for name, weight in load(tmp_path / "ours-1.half.merged", device="cpu", dtype=torch.bfloat16)[0].named_parameters():
        assert torch.equal(weight, trained.get_parameter(name))
    made = (tmp_path / "ours-1.safetensors").stat().st_mtime_ns
    real.main(["budgets", "ours", *map(str, words), "--resume"])
    again = json.loads((tmp_path / "ours-1.json").read_text())
    assert again["budgets"]["asked"]["caches"] == found["ours-1"]["budgets"]["asked"]["caches"]
    assert (tmp_path / "ours-1.safetensors").stat().st_mtime_ns == made, "traces, labels, predictor, answers are there"
    capsys.readouterr()
    real.main(["table", "--out", str(tmp_path)])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| start", "| ours"))]
    assert [row.split(" | ")[:2] for row in rows] == [
        [f"| {arm}", cache] for arm in ("start", "ours") for cache in ("full", "2x", "4x")
    ]


def test_slot_steps_per_right_answer_are_compared_with_the_starts_full_cache() -> None:
    def asked(arm: str, **caches: tuple[list[int], list[int]]) -> dict[str, Any]:
        budget = {"slots": 20, "window": 8, "interval": 8, "answer": 64}
        found = {
            name: {"budget": None if name == "full" else budget, "right": right, "tokens": steps, "slot_steps": steps}
            for name, (right, steps) in caches.items()
        }
        return {"arm": arm, "name": arm, "budgets": {"math": {"caches": found}}}

    start = [asked("start", full=([1, 1, 0, 0], [40, 40, 40, 40]))]
    ours = [asked("ours", full=([1, 1, 1, 1], [10, 10, 10, 10]), half=([1, 1, 0, 0], [5, 5, 5, 5]))]
    assert budgets.cells(start, start, "math", "full") == [
        "", "50.0 [0.0, 100.0]", "", "40 [40, 40]", "80 [40, nan]", ""
    ]  # fmt: skip
    slots, right, points, tokens, cost, fewer = budgets.cells(ours, start, "math", "half")
    assert (slots, right.split()[0], points) == ("28", "50.0", "+0.0 [+0.0, +0.0]")
    assert (tokens, cost.split()[0], fewer.split()[0]) == ("5 [5, 5]", "10", "8.00")
    assert budgets.cells(ours, None, "math", "full")[2::3] == ["", ""]


def test_all_runs_share_the_gpus_and_only_what_is_missing_is_run_again(tmp_path: Path) -> None:
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(
        f'#!/bin/bash\necho "begin $CUDA_VISIBLE_DEVICES $2 $*" >> {log}; sleep 0.1; echo "end $CUDA_VISIBLE_DEVICES" '
        f'>> {log}; [[ "$*" != *"train cap "*"--seed 2"* || -e {tmp_path}/mended ]]'
    )
    python.chmod(0o755)
    command = ["make", "-k", "-j", "7", "-f", str(RESEARCH / "deepcompress_real.mk"), f"OUT={tmp_path}/out"]
    command += [f"PYTHON={python}", "GPUS=2", "SLOTS=2"]

    def done() -> list[str]:
        log.write_text("")
        subprocess.run(command, capture_output=True, timeout=60)
        lines, held = [line.split(" ", 3) for line in log.read_text().splitlines()], [0, 0]
        for what, gpu, *_ in lines:
            held[int(gpu)] += 1 if what == "begin" else -1
            assert max(held) <= 2, "slots of a GPU"
        words = [line[3].split() for line in lines if line[0] == "begin"]
        return [f"{line[1]} {line[line.index('--as') + 1]}" for line in words]

    first = done()
    names = [f"{arm}-{seed}" for arm in real.ARMS for seed in (1, 2)]
    assert len(first) == len(set(first))
    assert set(first) >= {f"train {name}" for name in (*names, "ours-late-1")}
    for before, after in (("train grpo-1", "evaluate grpo-1"), ("merge grpo-1", "train ours-late-1"),
                          ("evaluate start", "budgets start"), ("evaluate ours-1", "budgets ours-1")):  # fmt: skip
        assert first.index(before) < first.index(after)
    assert "evaluate cap-2" not in first, "its training failed"
    (tmp_path / "mended").touch()
    assert done() == ["train cap-2", "evaluate cap-2"]
