"""Part `vllm-baseline`: vLLM, where it is installed, in the cells of `prompts`, `decode` and `throughput`."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from leanthink.engine.bench import vllm_process
from leanthink.engine.bench.fixture import Fixture, free_memory
from leanthink.engine.bench.plot import speeds
from leanthink.engine.bench.vllm_process import Asked
from leanthink.models.tiny import weights_path

METHOD = (
    "vllm.LLM with its core in a process of its own and its own defaults, prefix caching off, greedy, token ids in and "
    "out, times by its core's clock; our model is given back before. Ratios say how many times as fast ours is: "
    "medians of prompts, mean steps (of horizon with as many slots as a budget), tokens per second"
)


def vllm_baseline(fixture: Fixture) -> dict[str, Any]:
    """The cells of those of its parts that are asked for too; of all three if none is. Ends the use of the model."""
    if importlib.util.find_spec("vllm") is None:
        return {"error": "vLLM is not installed here (docs/vllm.md), so it is not measured"}
    asked_for = tuple(part for part in vllm_process.MEASURES if part in fixture.options.parts)
    folder = Path(tempfile.mkdtemp(prefix="leanthink-vllm-"))
    found = _measured(_asked(fixture, asked_for or tuple(vllm_process.MEASURES), folder), folder)
    if "error" not in found:
        shutil.rmtree(folder)
    for cell in found["cells"]:
        if ratio := {} if "error" in cell else _ratio(cell, fixture):
            cell["ratio_to_ours"] = ratio
    return {"method": METHOD} | found


def _asked(fixture: Fixture, parts: tuple[str, ...], folder: Path) -> Asked:
    """What the process is told; the model is on the device no longer."""
    options, config = fixture.options, fixture.model.config
    is_shape = options.shape not in (None, "tiny")
    if is_shape:
        config.architectures, config.dtype = [type(fixture.model).__name__], fixture.dtype
        config.save_pretrained(folder)
    del fixture.model
    free_memory()
    return Asked(
        options=options,
        parts=parts,
        model=str(folder) if is_shape else options.model or str(weights_path()),
        dtype=str(fixture.dtype).removeprefix("torch."),
        vocabulary=config.vocab_size,
        random_weights=is_shape,
        kv_slots=int(options.kv_gib * 2**30) // fixture.bytes_per_slot,
    )


def _measured(asked: Asked, folder: Path) -> dict[str, Any]:
    """What the process found before it ended, and how it failed if it did."""
    asked_path, found_path, log = (folder / name for name in ("asked", "found.json", "log.txt"))
    asked_path.write_bytes(pickle.dumps(asked))
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    environment.pop("LEANTHINK_VLLM", None)  # our plugin
    command = [sys.executable, "-m", vllm_process.__name__, str(asked_path), str(found_path)]
    with log.open("wb") as file:
        done = subprocess.run(command, env=environment, stdout=file, stderr=file, check=False)
    found: dict[str, Any] = json.loads(found_path.read_text()) if found_path.exists() else {"cells": []}
    if done.returncode:
        errors = [line for line in log.read_text(errors="replace").splitlines() if "Error" in line]
        found["error"] = f"vLLM ended with {done.returncode}, its log is {log}: {' / '.join(errors[:3])}"
    return found


def _ratio(cell: dict[str, Any], fixture: Fixture) -> dict[str, float]:
    """Of what was measured of both."""
    if cell["part"] == "throughput":
        return {name: speed / cell["tokens_per_second"] for name, speed in speeds({"parts": fixture.parts}).items()}
    if cell["part"] == "decode":
        place, mean = (cell["batch"], cell["slots"]), cell["step_ms"]["mean"]
        steps = {"full": fixture.cells.get(place, {})}
        steps["horizon"] = fixture.horizon_cells.get(place, {}).get("horizon", {})
        return {name: mean / ours["step_ms"]["mean"] for name, ours in steps.items() if "step_ms" in ours}
    for ours in fixture.parts.get("prompts", {}).get("cells", []):
        if all(ours[name] == cell[name] for name in ("prompts", "tokens")) and "ms" in ours["leanthink"]:
            names = ("ms", "first_token_median_ms", "first_token_p99_ms")
            return {name: cell[name]["median"] / ours["leanthink"][name]["median"] for name in names}
    return {}
