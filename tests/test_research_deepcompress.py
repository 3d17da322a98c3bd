from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, Qwen3ForCausalLM

from leanthink.models.loading import load
from leanthink.models.tiny import train
from leanthink.models.tiny.checkpoint import save_weights
from leanthink.models.tiny.model import tiny_config
from leanthink.models.tiny.tokenizer import END, PAD
from leanthink.rl.old_names import current_names

RESEARCH = Path(__file__).parent.parent / "research"
sys.path.insert(0, str(RESEARCH))
import deepcompress  # noqa: E402
import deepcompress_pilot  # noqa: E402
import deepcompress_run  # noqa: E402
import deepcompress_table as table  # noqa: E402

STAND_IN = """#!/bin/sh
echo "$@" >> said
mkdir -p brief.work/start brief.work/predictors brief.work/weights/ours-1
touch brief.work/start/config.json brief.work/predictors/horizon.safetensors
"""
SMALL = ("--families", "sums,bases", "--asked", "2", "--group", "4", "--max-tokens", "16", "--eval-tokens", "12")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of the embedded reasoner's kind that ends some responses early."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(tiny_config(layers=1, hidden=64, heads=2, kv_heads=1, mlp=64))
    model.generation_config = GenerationConfig(eos_token_id=[END, *range(40)], pad_token_id=PAD)
    folder = tmp_path_factory.mktemp("start")
    save_weights(model, folder)
    return folder


def run_of(arm: str, seed: int, right: list[int], tokens: list[int], **more: Any) -> dict[str, Any]:
    """A result with four problems, of levels 1, 2, 5 and 5."""
    problems = {"id": ["a", "b", "c", "d"], "level": [1, 2, 5, 5], "right": right, "thought_tokens": tokens}
    problems |= {"unfinished": [0, 0, 0, 1], "checks": [0, 1, 2, 3]}
    settings = {"steps": 4, "mastered_weight": 0.2}
    evaluation = {"seed": 7, "samples": 4, "temperature": 0.6, "problems": problems}
    return {"arm": arm, "seed": seed, "settings": settings, "evaluation": evaluation, **more}


@pytest.mark.slow
def test_the_real_script_trains_evaluates_and_sums_up(start: Path, tmp_path: Path) -> None:
    out, weights = tmp_path / "out", tmp_path / "weights"
    words = ["--start", start, "--arms", "start,none,ours", "--steps", "2", "--levels", "1:3,2:2", "--prompts", "2",
             "--micro", "4", "--clip", "0.5", "--temperature", "1.2",
             "--parallel", "2", "--out", out, "--weights", weights, *SMALL]  # fmt: skip
    command = [sys.executable, str(RESEARCH / "deepcompress.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in out.iterdir()} == {"start-1.json", "none-1.json", "ours-1.json", "summary.md"}
    result = json.loads((out / "ours-1.json").read_text())
    assert result["birth"].keys() >= {"command", "commit", "hardware", "torch"}
    assert result["settings"]["levels"] == {"1": 3, "2": 2}
    training = result["training"]
    assert (training["max_grad_norm"], training["temperature"]) == (0.5, 1.2)
    assert training["ema_decay"] == pytest.approx(0.5 ** (1 / 0.23))
    assert [step["step"] for step in result["curve"]] == [1, 2]
    for step in result["curve"]:
        assert step.keys() >= {"accuracy", "thought_tokens", "beta", "pass_ratio/average", "entropy"}
        assert min(step["rollout_seconds"], step["update_seconds"]) > 0
        assert step["dynamic_sampling/rounds"] == 1
    assert result["stopped"] is None
    problems = result["evaluation"]["problems"]
    assert len(problems["id"]) == 2 * 5 * 2
    assert problems["level"][:4] == [5] * 4
    assert [row["level"] for row in result["evaluation"]["levels"]] == [None, 1, 2, 3, 4, 5]
    assert "| ours 0.15 | 1 | 0.0 [0.0, 0.0] | +0.0 [+0.0, +0.0] |" in done.stdout
    assert done.stdout.endswith((out / "summary.md").read_text())
    trained, _ = load(weights / "none-1", device="cpu")
    assert trained.config.num_hidden_layers == 1


def test_the_pilot_tells_pass_ratios_by_level_and_family(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deepcompress.main(["--pilot", "--start", str(start), "--out", str(tmp_path), *SMALL]) == 0
    rows = json.loads((tmp_path / "pilot.json").read_text())["rows"]
    assert [(row["level"], row["family"]) for row in rows[:4]] == [(1, None), (1, "sums"), (1, "bases"), (2, None)]
    assert [len(row["pass_ratios"]) for row in rows[:2]] == [4, 2]
    assert rows[0]["thought_tokens"]["n"] == 16
    out = capsys.readouterr().out
    assert "| 1 | sums | 2 | 0.00 |" in out
    assert "| 1 | other | 1.00 | 0.000 |" in out, "a random model has none of the teacher's styles"


def test_a_pilot_row_is_that_of_its_groups() -> None:
    found = {"level": [1] * 6, "family": ["sums"] * 4 + ["bases"] * 2, "right": [1, 1, 1, 0, 0, 0]}
    found |= {"thought_tokens": [2, 4, 6, 8, 1, 1], "unfinished": [0, 0, 0, 1, 0, 0]}
    row = deepcompress_pilot._pilot_row(found, 2, 1, "sums")
    assert row["pass_ratios"] == [1.0, 0.5]
    assert (row["all_right"], row["all_wrong"], row["unfinished"]) == (0.5, 0, 0.25)
    assert row["thought_tokens"]["mean"] == 5
    assert deepcompress_pilot._pilot_row(found, 2, 1, None)["all_wrong"] == pytest.approx(1 / 3)


def test_styles_are_told_by_how_a_thought_begins() -> None:
    assert [deepcompress_pilot._style(text) for text in ("Short. 1+1", "In steps. 2", "In steps, checking all. 3")] == [
        "terse",
        "plain",
        "thorough",
    ]
    found = {"level": [1, 1, 1, 2], "right": [1, 0, 1, 1], "thought_tokens": [2, 4, 9, 8]}
    assert deepcompress_pilot._style_rows(found, ["terse", "terse", "plain", "plain"], 1) == [
        {"level": 1, "style": "terse", "share": 2 / 3, "right": 0.5, "thought_tokens": 3},
        {"level": 1, "style": "plain", "share": 1 / 3, "right": 1.0, "thought_tokens": 9},
    ]


def test_samples_of_a_problem_are_averaged() -> None:
    found = {"id": ["a", "a", "b", "b"], "level": [1, 1, 2, 2], "right": [1, 0, 1, 1], "thought_tokens": [4, 8, 1, 1]}
    assert deepcompress_run.averaged(found, 2) == {
        "id": ["a", "b"],
        "level": [1, 2],
        "right": [0.5, 1],
        "thought_tokens": [6, 1],
    }


def test_the_summary_is_the_mean_of_seeds_paired_by_problem() -> None:
    none = [run_of("none", 1, [1, 0, 0, 0], [10, 20, 40, 80]), run_of("none", 2, [1, 1, 0, 1], [10, 20, 40, 80])]
    ours = [run_of("ours", 1, [1, 1, 1, 1], [5, 10, 20, 40]), run_of("ours", 3, [0, 0, 0, 0], [99, 99, 99, 99])]
    found = table.compared(ours, none, (1, 2, 3, 4, 5))
    assert found["right"] is not None
    assert found["right"][0] == 0.5
    assert found["right_against"] is not None
    assert found["right_against"][0] == 0.75, "over seed 1, which both have: + 0, 1, 1, 1"
    assert found["tokens_against"] == pytest.approx([-0.5, -0.5, -0.5]), "half of the tokens of each problem"
    assert table.compared(none, none, (5,))["right_against"] is None
    hard = table.compared([run_of("start", 9, [0, 0, 0, 0], [40, 40, 40, 40])], none, (5,))
    assert hard["right_against"] is not None
    assert hard["right_against"][0] == -0.25, "against the mean of both seeds"
    assert hard["tokens_against"] is not None
    assert hard["tokens_against"][0] == pytest.approx(-1 / 3)


def test_the_summary_knows_every_arm() -> None:
    assert tuple(deepcompress_run.ARMS) == table.ORDER


def test_every_weight_of_ours_is_an_arm() -> None:
    runs = [run_of("ours", seed, [1] * 4, [1] * 4) for seed in (2, 1, 3)]
    runs[2]["settings"] = {"steps": 4, "mastered_weight": 0.05}
    found = table.by_arm([*runs, run_of("none", 1, [1] * 4, [1] * 4)])
    assert {arm: [run["seed"] for run in of_arm] for arm, of_arm in found.items()} == {
        "none": [1],
        "ours 0.05": [3],
        "ours 0.2": [1, 2],
    }
    assert list(found) == ["none", "ours 0.05", "ours 0.2"]


def test_the_summary_in_words() -> None:
    curve = [{"step": i, "accuracy": i / 4, "rollout_seconds": 2.0, "update_seconds": 0.5} for i in range(1, 5)]
    runs = [
        run_of("none", 1, [1, 1, 1, 1], [10, 20, 30, 40], curve=curve),
        run_of("ours", 1, [1, 1, 1, 1], [4, 8, 12, 16], curve=curve[:2], stopped="time was up"),
        {"arm": "bonus", "seed": 1, "settings": {"steps": 4, "mastered_weight": 0.2}, "error": "status 1: a | b"},
    ]
    text = table.summary(runs)
    assert "| none | 1 | 100.0 [100.0, 100.0] | - | 25 [" in text
    assert "| ours 0.2 | 1 | 100.0 [100.0, 100.0] | +0.0 [+0.0, +0.0] | 10 [" in text
    assert text.count("| -60.0 % [-60.0, -60.0] |") == 3
    assert "| ours 0.2 | 100.0 / 4 | 100.0 / 8 | - | - | 100.0 / 14 | 25.0 | 1.50 |" in text
    assert "| none | 1 | 4 of 4 | 62.5 | - | - | - | - | - | 2 | 0.5 |  |" in text
    assert "| ours 0.2 | 1 | 2 of 4 | 37.5 | - | - | - | - | - | 2 | 0.5 | time was up |" in text
    assert "| bonus | 1 | 0 of 4 | - | - | - | - | - | - | - | - | status 1: a / b |" in text


def test_intervals_by_level_hold_their_means() -> None:
    rows = table.by_level(run_of("none", 1, [1, 0, 1, 0], [10, 20, 30, 50])["evaluation"]["problems"])
    assert [(row["level"], row["n"]) for row in rows] == [(None, 4), (1, 1), (2, 1), (5, 2)]
    assert rows[0]["accuracy"] == [0.5, 0, 1]
    assert rows[1]["accuracy"] == [1, 1, 1]
    assert rows[3]["thought_tokens"] == [40, 30, 50]
    assert rows[3]["unfinished"] == 0.5


def test_results_of_different_problems_are_not_compared(tmp_path: Path) -> None:
    other = run_of("ours", 1, [1] * 4, [1] * 4)
    other["evaluation"]["problems"]["id"] = ["a", "b", "c", "e"]
    (tmp_path / "a.json").write_text(json.dumps(run_of("none", 1, [1] * 4, [1] * 4)))
    (tmp_path / "b.json").write_text(json.dumps(other))
    with pytest.raises(table.UsageError, match="none-1 and ours-1 were asked different problems"):
        table.read(tmp_path)


def test_the_recipe_of_the_brief_model_gives_every_command_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o755)
    recipe = RESEARCH.parent / "examples" / "tiny-brief.sh"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run([recipe, "brief"], env=environment, cwd=tmp_path, check=True, capture_output=True)
    said = [line.split() for line in (tmp_path / "said").read_text().splitlines()]
    assert [words[0] for words in said] == ["-m", "-m", "research/deepcompress.py", "bench/fit_tiny.py"]
    for words in said[:2]:
        options, _ = train.parse(words[2:])
        assert options.steps is not None
    monkeypatch.chdir(tmp_path)
    options = deepcompress.make_parser().parse_args(said[2][1:])
    deepcompress.check(options)
    wanted = json.loads((RESEARCH / "results" / "deepcompress" / "blind" / "ours-1.json").read_text())
    recorded = current_names(wanted["training"], tell=False)  # by a version whose settings had other names
    trained = {name: value for name, value in recorded.items() if name not in ("model", "out")}
    ours = deepcompress_run.settings_of("ours", 1, options)
    assert trained == {name: json.loads(json.dumps(ours[name])) for name in trained}
    assert (tmp_path / "brief" / "horizon.safetensors").is_file()


def test_a_run_that_would_be_late_stops_at_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(deepcompress_run.time, "time", lambda: clock[0])
    limit, control = deepcompress_run.TimeLimit(130.0), SimpleNamespace(should_training_stop=False)
    for step, now in enumerate((112.0, 116.0, 122.0), 1):  # the first step took 12 s, the longest other 6
        assert not control.should_training_stop
        clock[0] = now
        limit.on_step_end(None, SimpleNamespace(global_step=step, max_steps=9), control)
    assert not control.should_training_stop, "one of 6 s still fits"
    clock[0] = 125.0
    limit.on_step_end(None, SimpleNamespace(global_step=4, max_steps=9), control)
    assert control.should_training_stop
    assert limit.stopped == "time was up after 4 of 9 steps"


def test_waves_share_the_time() -> None:
    options = SimpleNamespace(seeds=[1, 2], arms=["start", "none", "ours"], parallel=3, limit_s=100.0)
    jobs = deepcompress.jobs_of(options, 1000.0)
    assert [(job.name, job.until) for job in jobs] == [
        ("start-1", 1100), ("none-1", 1050), ("ours-1", 1050), ("none-2", 1050), ("ours-2", 1100),
    ]  # fmt: skip


def test_an_arm_that_fails_is_reported_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stand_in(job: Any, place: int, arguments: list[str], options: Any) -> Any:
        with (options.work / f"{job.name}.log").open("w") as log:
            code = "raise SystemExit('no room')" if job.arm == "none" else "pass"
            return subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log)

    monkeypatch.setattr(deepcompress, "start", stand_in)
    (tmp_path / "ours-1.json").write_text(json.dumps(run_of("ours", 1, [1] * 4, [1] * 4)))
    words = ["--arms", "none,ours", "--out", str(tmp_path), "--work", str(tmp_path / "work")]
    assert deepcompress.main(words) == 1
    assert json.loads((tmp_path / "none-1.json").read_text())["error"] == "status 1: no room"
    assert "none-1 ended with status 1: no room" in capsys.readouterr().out
    assert "| none | 1 | 0 of 80 |" in (tmp_path / "summary.md").read_text()


def test_a_run_that_is_late_is_killed_and_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = "import time; time.sleep(60)"

    def stand_in(job: Any, place: int, arguments: list[str], options: Any) -> Any:
        job.until = 0.0
        (options.work / f"{job.name}.log").write_text("step 1/80\n")
        (options.out / f"{job.name}.json").write_text(json.dumps({"arm": "none", "seed": 1, "train_seconds": 9}))
        return subprocess.Popen([sys.executable, "-c", sleeper])

    monkeypatch.setattr(deepcompress, "start", stand_in)
    words = ["--arms", "none", "--out", str(tmp_path), "--work", str(tmp_path / "work")]
    assert deepcompress.main(words) == 1
    result = json.loads((tmp_path / "none-1.json").read_text())
    assert result["error"] == "killed: it was late"
    assert result["train_seconds"] == 9


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--arms", "none,our"], "Did you mean 'ours'?"),
        (["--families", "sum"], "Did you mean 'sums'?"),
        (["--seeds", "1,x"], "'x' is no whole number"),
        (["--levels", "1,2"], "give each level with a count"),
        (["--levels", "6:3"], "unknown level 6"),
        (["--steps", "0"], "--steps 0: at least 1"),
        (["--clip", "0"], "--clip 0: above 0"),
        (["--temperature", "0"], "--temperature 0: above 0"),
        (["--micro", "7"], "--micro 7 does not divide the 512 responses"),
        (["--reserve-s", "600"], "leaves nothing"),
        (["--start", "nowhere"], "--start 'nowhere' is no folder with a model"),
        (["--table"], "holds no result of a run"),
    ],
)
def test_bad_input_is_refused_with_the_fix(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        deepcompress.main([*words, "--out", str(tmp_path)])
    assert told in capsys.readouterr().err
