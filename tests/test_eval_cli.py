"""`leanthink eval` as its users run it: killed and resumed, refused, and what it reports."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from command_line import refused, start
from leanthink.importance.inference_backend import LoadedModel
from leanthink.policies import Slots
from leanthink.policies.window import Window

KILLED = ["--tasks", "sums", "--levels", "1", "--count", 2, "--policies", "full,horizon", "--ratios", "2",
          "--recent-window", 8, "--eviction-interval", 16, "--samples", 2, "--temperature", 0.7,
          "--max-new-tokens", 150, "--max-num-seqs", 2, "--device", "cpu", "--json"]  # fmt: skip
SMALL = [
    "--tasks",
    "sums",
    "--levels",
    "1",
    "--count",
    2,
    "--max-new-tokens",
    30,
    "--recent-window",
    4,
    "--eviction-interval",
    4,
]
TIMES = ("seconds", "tokens_per_second")


def table(out: str) -> list[dict[str, Any]]:
    """The cells of a finished run, without what no clock gives twice."""
    return [{name: v for name, v in cell.items() if name not in TIMES} for cell in json.loads(out)["cells"]]


def keys(folder: Path) -> list[tuple[str, str, int]]:
    lines = (folder / "records.jsonl").read_text().splitlines()
    return [(found["cell"], found["id"], found["sample"]) for found in map(json.loads, lines)]


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_table_with_nothing_twice(inside: Any, tmp_path: Path) -> None:
    whole = inside("eval", *KILLED, "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err
    killed = tmp_path / "killed"
    with start("eval", *KILLED, "--out", killed) as process:
        deadline = time.monotonic() + 120
        while not (killed / "records.jsonl").exists() or len(keys_so_far(killed)) < 4:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "result.json").exists()
    with (killed / "records.jsonl").open("ab") as file:
        file.write(b'{"cell": "tasks/full", "id": "su')  # as if it had been killed in the middle of a line
    assert 4 <= len(keys_so_far(killed)) < 8
    finished = inside("eval", *KILLED, "--out", killed)
    assert finished.code == 0, finished.err
    assert table(finished.out) == table(whole.out)
    assert len(set(keys(killed))) == len(keys(killed)) == 2 * 2 * 2
    assert set(keys(killed)) == set(keys(tmp_path / "whole"))
    results = [json.loads((folder / "result.json").read_text()) for folder in (killed, tmp_path / "whole")]
    assert len(results[0]["births"]) == 2
    assert [cell["columns"] for cell in results[0]["cells"]] == [cell["columns"] for cell in results[1]["cells"]]
    again = inside("eval", *KILLED, "--out", killed)
    assert again.code == 0, again.err
    assert json.loads(again.out)["cells"] == json.loads(finished.out)["cells"], "nothing was left to do"


def keys_so_far(folder: Path) -> list[bytes]:
    return (folder / "records.jsonl").read_bytes().split(b"\n")[:-1]


def test_the_table_of_a_run_and_its_files(inside: Any, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    budgets = ["--policies", "full,horizon,sinks", "--budgets", "8,12", "--predictor", folder / "own.safetensors"]
    done = inside("eval", *SMALL, *budgets, "--model", folder, "--out", out)
    assert done.code == 0, done.err
    first = done.out.splitlines()
    assert first[0].startswith("tasks: 2 problems x 1 (2 held-out of each of sums; levels 1; seed 0)")
    rows = [line.split()[:2] for line in first if line.split()[:1] in (["full"], ["horizon"], ["sinks"])]
    cells = [["full", "all"], ["horizon", "8+4"], ["horizon", "12+4"], ["sinks", "8+4"], ["sinks", "12+4"]]
    assert rows == cells * 2
    assert "leanthink: tasks/sinks/12+4 window 4 answer 1024: 10 of 10" in done.err
    result = json.loads((out / "result.json").read_text())
    assert result["settings"]["predictors"].keys() == {"horizon"}
    assert result["benchmarks"]["tasks"]["problems"] == len(result["benchmarks"]["tasks"]["ids"]) == 2
    without = inside("eval", *SMALL, *budgets[:4], "--model", folder, "--out", out)
    refused(without, 2, "'horizon'", "none was given")
    for cell in result["cells"][1:]:
        assert max(cell["columns"]["peak_slots"]) > 0
        assert cell["most_slots"] <= 60 + cell["budget"]["slots"] + cell["budget"]["interval"]


def test_all_cells_together_give_the_same_answers_and_no_times(
    inside: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, complete = list[bool](), LoadedModel.complete

    def noted(*given: Any, **how: Any) -> Any:
        seen.append(how["enable_prefix_caching"])
        return complete(*given, **how)

    monkeypatch.setattr(LoadedModel, "complete", noted)
    common = [*SMALL, "--policies", "full,sinks,random", "--budgets", 8, "--model", folder, "--json"]
    apart = inside("eval", *common, "--out", tmp_path / "apart")
    common += ["--together", "--max-num-seqs", 2, "--no-enable-prefix-caching"]
    together = inside("eval", *common, "--out", tmp_path / "together")
    assert together.code == 0, together.err
    assert seen == [True] * 3 + [False] * 2
    assert table(together.out) == table(apart.out)
    seconds = [cell["seconds"] for cell in json.loads(together.out)["cells"]]
    assert seconds[0] is not None, "the full cache ran by itself"
    assert seconds[1:] == [None, None]


def test_a_file_of_problems_is_asked_with_an_instruction(inside: Any, folder: Path, tmp_path: Path) -> None:
    problems = tmp_path / "mine.jsonl"
    problems.write_text(
        '{"id": "a", "problem": "1+1?", "answer": "2"}\n{"id": "b", "problem": "pi?", "answer": "3.1"}\n'
    )
    common = [
        "--problems",
        problems,
        "--tolerance",
        0.1,
        "--policies",
        "full",
        "--max-new-tokens",
        8,
        "--model",
        folder,
    ]
    done = inside("eval", *common, "--limit", 1, "--out", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["cells"][0]["problems"] == 1
    refused(inside("eval", *common, "--out", tmp_path / "run"), 2, "other settings", "mine", '"problems": 1')
    refused(inside("eval", *common, "--limit", 1, "--instruction", "Now!", "--out", tmp_path / "run"), 2, "digest")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], ["nothing to evaluate on", "--tasks"]),
        (["--tasks", "sum"], ["unknown family 'sum'", "Did you mean 'sums'"]),
        (["--tasks", "sums", "--policies", "full,horizn"], ["unknown policy 'horizn'"]),
        (["--tasks", "sums", "--policies", "full,full"], ["full is there twice"]),
        (["--tasks", "sums", "--budgets", "64", "--ratios", "2"], ["exclude each other"]),
        (["--tasks", "sums", "--policies", "horizon", "--ratios", "2"], ["add full to --policies"]),
        (["--tasks", "sums", "--ratios", "0.5"], ["must be 1 or more"]),
        (["--tasks", "sums", "--ratios", "two"], ["give numbers"]),
        (["--tasks", "sums", "--budgets", "many"], ["--budgets 'many'", "whole numbers"]),
        (["--tasks", "sums", "--policies", "full", "--recent-window", "8"], ["policy full alone"]),
        (["--tasks", "sums", "--budgets", "16"], ["window=32 is larger than slots=16"]),
        (["--tasks", "sums", "--samples", "2"], ["--samples 2 at temperature 0"]),
        (["--tasks", "sums", "--samples", "0"], ["must be 1 or more"]),
        (["--tasks", "sums", "--limit", "0"], ["--limit must be 1 or more"]),
        (["--tasks", "sums", "--tolerance", "0.1"], ["--tolerance belongs to --problems"]),
        (["--tasks", "sums", "--predictor", "dynts=x"], ["unknown policy with a predictor 'dynts'", "horizon"]),
        (["--tasks", "sums", "--policies", "full,sinks", "--predictor", "x"], ["no policy of this run"]),
        (["--tasks", "sums", "--predictor", "nowhere"], ["there is no predictor at nowhere"]),
        (["--benchmarks", "math500"], ["unknown benchmark 'math500'", "Did you mean 'math-500'"]),
        (["--benchmarks", "gsm8k=nowhere"], ["no file or folder 'nowhere'", "openai/gsm8k"]),
        (["--problems", "nowhere.jsonl"], ["no file of problems"]),
        (["--gym", "chain_sun"], ["unknown reasoning-gym environment", "chain_sum"]),
    ],
)  # fmt: skip
def test_bad_options_are_refused_before_anything_is_loaded(
    inside: Any, tmp_path: Path, words: list[str], told: list[str]
) -> None:
    refused(inside("eval", *words, "--model", tmp_path / "no-model", "--out", tmp_path / "run"), 2, *told)
    assert not (tmp_path / "run").exists()


def test_a_predictor_of_another_model_is_refused_before_the_folder_is_made(
    inside: Any, folder: Path, tmp_path: Path
) -> None:
    given = ["--predictor", folder / "other.safetensors", "--model", folder, "--out", tmp_path / "run"]
    refused(inside("eval", *SMALL, *given), 2, "other.safetensors")
    assert not (tmp_path / "run").exists()


def test_interrupting_says_how_to_go_on(
    inside: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    common = ["eval", *SMALL, "--policies", "full", "--model", folder, "--out", out]
    common = [word for word in common if word not in ("--recent-window", "--eviction-interval", 4)]

    def interrupted(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield next(complete(*arguments, **options))
        raise KeyboardInterrupt

    complete = LoadedModel.complete
    monkeypatch.setattr(LoadedModel, "complete", interrupted)
    stopped = inside(*common)
    assert stopped.code == 130
    assert stopped.out == ""
    said = stopped.err.splitlines()
    assert said[-2:] == [
        f"leanthink: {out} holds every answer that was finished; the same command goes on with the rest",
        "leanthink: interrupted",
    ]
    assert len(keys(out)) == 1
    monkeypatch.undo()
    assert inside(*common).code == 0
    assert len(set(keys(out))) == len(keys(out)) == 2


def test_a_request_that_fails_is_named_and_all_others_are_written_down(
    inside: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    common = ["eval", *SMALL, "--policies", "window", "--budgets", 8, "--model", folder, "--out", out]
    seen: set[int] = set()

    def broken(policy: Window, slots: Slots) -> Tensor:
        seen.update(slots.seeds.tolist())
        return (-slots.ages.float()).masked_fill(slots.seeds[:, None] == min(seen), torch.nan)

    monkeypatch.setattr(Window, "score", broken)
    failed = inside(*common)
    assert failed.code == 1, failed.err
    assert re.search(r"sample \d of problem .* failed: a policy returned a score that is NaN", failed.err)
    assert "All others are written down" in failed.err
    written = keys(out)
    monkeypatch.undo()
    assert inside(*common).code == 0
    assert len(keys(out)) == len(set(keys(out))) > len(written) > 0


def test_policies_with_settings_are_policies_of_their_own(inside: Any, folder: Path, tmp_path: Path) -> None:
    specs = "full,snapkv,snapkv:kernel=5,observation=4,horizon:only=16,horizon"
    words = [*SMALL, "--policies", specs, "--predictor", f"horizon={folder / 'own.safetensors'}", "--budgets", 8]
    words += ["--model", folder, "--json", "--out", tmp_path / "run"]
    first = inside("eval", *words)
    assert first.code == 0, first.err
    names = ["full", "snapkv", "snapkv:observation=4,kernel=5", "horizon:only=16", "horizon"]
    assert [cell["policy"] for cell in json.loads(first.out)["cells"]] == names
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["policies"] == names
    assert settings["predictors"].keys() == {"horizon:only=16", "horizon"}
    assert len(set(settings["predictors"].values())) == 1
    cells = {cell for cell, _, _ in keys(tmp_path / "run")}
    assert "tasks/snapkv:observation=4,kernel=5/8+4 window 4 answer 1024" in cells
    written = (tmp_path / "run" / "records.jsonl").read_bytes()
    same = specs.replace("snapkv,", "snapkv:observation=8,").replace("kernel=5,observation=4", "observation=4,kernel=5")
    again = inside("eval", *[same if word == specs else word for word in words])
    assert again.code == 0, again.err
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == written, "nothing is asked again"
    other = [specs.replace("kernel=5", "kernel=3") if word == specs else word for word in words]
    refused(inside("eval", *other), 2, "other settings", "snapkv:observation=4,kernel=3")
    compared = inside("compare", tmp_path / "run")
    assert "snapkv:observation=4,kernel=5" in compared.out


def test_a_run_of_before_is_resumed(inside: Any, folder: Path, tmp_path: Path) -> None:
    """Header and names of cells have not changed."""
    old = [{4: 5}.get(word, word) for word in SMALL]  # a window of 5
    words = [*old, "--policies", "full,sinks", "--budgets", "8,12", "--max-answer-slots", 40, "--model", folder]
    words += ["--device", "cpu", "--json", "--out", tmp_path / "run"]
    assert inside("eval", *words).code == 0
    header = json.loads((tmp_path / "run" / "run.json").read_text())
    kept = {name: header["settings"][name] for name in ("policies", "budgets", "ratios", "slots")}
    assert kept == {
        "policies": ["full", "sinks"],
        "budgets": [{"slots": slots, "window": 5, "interval": 5, "answer": 40} for slots in (8, 12)],
        "ratios": [],
        "slots": {"window": 5, "interval": 5, "answer": 40},
    }
    records = tmp_path / "run" / "records.jsonl"
    lines = records.read_text().splitlines()
    cells = {json.loads(line)["cell"] for line in lines}
    assert cells == {"tasks/full", *(f"tasks/sinks/{slots}+5 window 5 answer 40" for slots in (8, 12))}
    records.write_text("\n".join(lines[:3]) + "\n")
    again = inside("eval", *words)
    assert again.code == 0, again.err
    assert sorted(keys(tmp_path / "run")) == sorted(
        (one["cell"], one["id"], one["sample"]) for one in map(json.loads, lines)
    )
    assert records.read_text().splitlines()[:3] == lines[:3]
