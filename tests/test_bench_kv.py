"""FP8 beside bfloat16 and seconds of policies, out of runs of the embedded reasoner; and all runs on a GPU."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from leanthink.entrypoints import cli

BENCH = Path(__file__).parent.parent / "bench"
sys.path.insert(0, str(BENCH))
import one_a_line  # noqa: E402
import real_kv  # noqa: E402

BRIEF = ["--model", "tiny", "--tasks", "sums", "--limit", "6", "--budgets", "24", "--recent-window", "4",
         "--eviction-interval", "4", "--max-answer-slots", "16", "--max-new-tokens", "48"]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three finished runs: together in both dtypes, and policies one after another."""
    folder = tmp_path_factory.mktemp("runs")
    for name, options in {
        "auto": ["--policies", "full,sinks,window", "--together", "--kv-cache-dtype", "auto"],
        "fp8": ["--policies", "full,sinks,window", "--together", "--kv-cache-dtype", "fp8"],
        "alone": ["--policies", "sinks,window"],
    }.items():
        assert cli.run(["eval", *BRIEF, *options, "--out", str(folder / name)]) == 0
    return {name: str(folder / name) for name in ("auto", "fp8", "alone")}


@pytest.mark.slow
def test_fp8_stands_beside_bfloat16(runs, tmp_path):
    real_kv.main(["--out", str(tmp_path), "--predictor", "none", "fp8", runs["auto"], runs["fp8"]])
    full, sinks, _ = one_a_line.read_table(tmp_path / "fp8.json", "cells")["cells"]
    assert (full["policy"], full["slots"], sinks["slots"], full["problems"]) == ("full", None, 28, 6)
    assert full["bytes_per_slot"][0] == 4 * full["bytes_per_slot"][1]  # float32 on a CPU
    for cell in (full, sinks):
        value, low, high = cell["fp8_above"]
        assert low <= value <= high
        assert value == pytest.approx(cell["right"][1] - cell["right"][0])
        assert cell["only_right"][1] - cell["only_right"][0] == pytest.approx(6 * value / 100)
    table = real_kv.fp8_table(tmp_path / "fp8.json")
    assert "| `full` |" in table
    assert "| `sinks`, 28 slots |" in table


@pytest.mark.slow
def test_runs_that_differ_in_more_are_refused(runs, tmp_path, capsys):
    with pytest.raises(SystemExit):
        real_kv.main(["--out", str(tmp_path), "fp8", runs["auto"], runs["alone"]])
    assert "asked other problems, or other policies and budgets" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit):
        real_kv.main(["--out", str(tmp_path), "fp8", runs["fp8"], runs["auto"]])
    assert "give the run in FP8 last" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_seconds_are_those_of_policies_that_ran_alone(runs, tmp_path, capsys):
    real_kv.main(["--out", str(tmp_path), "seconds", runs["alone"]])
    cells = one_a_line.read_table(tmp_path / "seconds.json", "cells")["cells"]
    assert [(cell["policy"], cell["answers"]) for cell in cells] == [("sinks", 6), ("window", 6)]
    for cell in cells:
        assert 0 < cell["half_ended"] <= cell["nine_tenths_ended"] <= cell["seconds"]
        assert cell["longest"] <= 48
        assert cell["tokens"] <= 6 * 48
    assert "| `window` |" in real_kv.seconds_table(tmp_path / "seconds.json")
    with pytest.raises(SystemExit):
        real_kv.main(["--out", str(tmp_path), "seconds", runs["auto"]])
    assert "leave out --together" in " ".join(capsys.readouterr().err.split())


def test_the_commands_of_all_runs_on_a_gpu_are_understood(tmp_path, capfd):
    for name in ("choose-gsm8k", "fit-gsm8k", "gsm8k"):
        (tmp_path / f"{name}.jsonl").touch()
    made = ["make", "-n", "-f", "bench/gpu.mk", f"PROBLEMS={tmp_path}", f"OUT={tmp_path}/gpu", f"RESULTS={tmp_path}"]
    printed = subprocess.run(made, cwd=BENCH.parent, capture_output=True, text=True, check=True).stdout
    printed = printed.replace("\\\n", " ")
    lines = [shlex.split(re.split(r" > | && |; ", line)[0]) for line in printed.splitlines()]
    commands = [words[3:] for words in lines if words[:3] == ["python", "-m", "leanthink"]]
    assert [words[0] for words in commands].count("bench") == 5
    assert {words[0] for words in commands} == {"bench", "predictor", "eval"}
    for words in commands:
        assert cli.run([*words, "--help"]) == 0, f"{words}: {capfd.readouterr().err}"
    scripts = {words[1] for words in lines if words[0] == "python" and words[1] != "-m"}
    assert scripts == {"bench/junit_results.py", "bench/speed_results.py", "bench/real_kv.py"}
