"""The script of the compounding table: its statistics by hand, and all four cells on a small random model."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from leanthink.data.tasks import registry
from leanthink.engine.outputs import Completion
from leanthink.utils.errors import UsageError

SCRIPTS = Path(__file__).parent.parent / "bench"


@pytest.fixture
def compounding(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    import compounding

    return compounding


def made(script: ModuleType, right: list[float], slot_steps: list[float]) -> Any:
    zeros = torch.zeros(len(right), dtype=torch.float64)
    found = {name: zeros for name in ("thought_P", "answer_P", "unfinished_P", "peak_slots_P")}
    tensors = (torch.tensor(values, dtype=torch.float64) for values in (right, slot_steps))
    return script.Outcome(**dict(zip(("right_P", "slot_steps_P"), tensors, strict=True)), **found)


def test_cost_per_right_answer_counts_the_steps_of_wrong_ones_too(compounding: ModuleType) -> None:
    problems = [SimpleNamespace(level=level) for level in (1, 1, 2, 2)]
    start = made(compounding, [1, 1, 0, 1], [100, 200, 300, 600])
    ours = made(compounding, [1, 1, 1, 1], [40, 60, 100, 200])
    found = compounding.measure(problems, ours, start, 0)
    assert (found["accuracy"], found["accuracy_change"][0]) == ([1.0, 1.0, 1.0], 0.25)
    assert (found["slot_steps"], found["slot_steps_per_right"][0]) == (400.0, 100.0)
    assert found["times_fewer"][0] == (1200 / 3) / (400 / 4)
    assert found["times_fewer"][1] < 4 < found["times_fewer"][2]
    assert found["by_level"][1] == {"accuracy": 1.0, "thought_tokens": 0.0, "slot_steps": 50.0}
    same = compounding.measure(problems, start, start, 0)
    assert (same["times_fewer"], same["accuracy_change"]) == ([1.0] * 3, [0.0] * 3), "drawn in pairs"


def test_nothing_right_has_no_cost_per_right_answer(compounding: ModuleType) -> None:
    problems, nothing = [SimpleNamespace(level=1)] * 3, made(compounding, [0, 0, 0], [5, 6, 7])
    found = compounding.measure(problems, nothing, nothing, 0)
    assert found["slot_steps_per_right"] == found["times_fewer"] == [None] * 3
    assert compounding.shown(found["times_fewer"], 1, ".2f") == "- [-, -]"


def test_outcomes_are_means_over_the_samples(compounding: ModuleType) -> None:
    (problem,) = registry.sample("sums", 1, 1, 1)
    facts: dict[str, Any] = {"text": "", "thought": "", "token_ids": (), "prompt_tokens": 1, "kept_slots": 1}
    facts |= {"evictions": 0, "peak_kv_bytes": 0, "full_kv_bytes": 0, "reserved_kv_bytes": 0, "answer_tokens": 4}
    right = f"\\boxed{{{problem.answer}}}"
    runs = [
        [Completion(answer=right, slot_steps=10, thought_tokens=6, peak_slots=3, finish_reason="stop", **facts)],
        [Completion(answer="no", slot_steps=30, thought_tokens=8, peak_slots=5, finish_reason="length", **facts)],
    ]
    found = compounding.outcome([problem], runs)
    assert [float(getattr(found, f"{name}_P")) for name in ("right", "slot_steps", "thought")] == [0.5, 20, 7]
    assert [float(getattr(found, f"{name}_P")) for name in ("answer", "unfinished", "peak_slots")] == [4, 0.5, 4]


def test_a_trained_model_needs_a_predictor_of_its_own(compounding: ModuleType) -> None:
    options = Namespace(start="tiny", start_predictor=None, trained="runs/x", trained_predictor=None)
    assert compounding.predictor_path("start", options).name == "horizon.safetensors"
    with pytest.raises(UsageError, match=r"--trained-predictor is missing: .*fit_tiny.py --model runs/x"):
        compounding.predictor_path("trained", options)


def test_the_scripts_need_neither_typer_nor_rich_nor_trl() -> None:
    code = f"""
import contextlib, runpy, sys
sys.modules["typer"] = sys.modules["rich"] = sys.modules["trl"] = None
sys.path.insert(0, {str(SCRIPTS)!r})  # a script's own folder is on the path where Python starts it
for script in ("compounding.py", "fit_tiny.py"):
    sys.argv = [script, "--help"]
    with contextlib.suppress(SystemExit):
        runpy.run_path({str(SCRIPTS)!r} + "/" + script, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n  --out OUT") == 2, done.stdout


def test_all_four_cells_on_a_small_model(
    compounding: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    own = folder / "own.safetensors"
    flags: dict[str, object] = {"start": folder, "trained": folder, "start-predictor": own, "trained-predictor": own}
    flags |= {"asked": 1, "levels": 1, "samples": 1, "max-new-tokens": 64, "interval": 4, "window": 4, "rows": 6}
    flags |= {"device": "cpu", "out": tmp_path}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["compounding.py", *words])
    compounding.main()
    result = json.loads((tmp_path / "compounding.json").read_text())
    assert (result["n"], result["samples"]) == (len(registry.FAMILIES), 1)
    assert [(row["model"], row["policy"]) for row in result["rows"]] == [
        *[("start", "full"), ("start", "horizon")],
        *[("trained", "full"), ("trained", "horizon")],
    ]
    full, bounded, *again = result["rows"]
    assert [row["greedy"] for row in again] == [full["greedy"], bounded["greedy"]]
    assert bounded["budget"]["slots"] + 4 == round(full["greedy"]["thought_tokens"] / 4)
    assert bounded["greedy"]["slot_steps"] < full["greedy"]["slot_steps"]
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(table) == 2 * (1 + 4)
