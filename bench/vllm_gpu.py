"""The plugin inside vLLM on a GPU: does it run, are its tokens right, what does a step cost, how many tokens a second?

    python bench/vllm_gpu.py --out vllm_gpu.json [--parts load,alone,plugin,ours,shape-alone,shape-plugin]

Needs vLLM's CUDA build, and the plugin installed so that vLLM finds it. Every part runs in a process of its own, says
on its own what went wrong, and writes what it found as soon as it has it.

- `load`, `alone`, `plugin`, `ours`, `fp8` (FP8 weights and cache), `fp8-checkpoint` (weights that are in FP8 before,
  `-cache`: the cache too, `-channel`: a scale a row), `http` (vLLM's server) and `ranks` (two GPUs) are about `tiny`,
  `real-...` about a real model (`--real`). They run side by side, as nothing is timed there.
- `shape-...` (steps), `long-...` (throughput of long thoughts in 40 GiB; a number is the budget) and
  `ranks-big-...` (throughput on two GPUs) are about random weights of the shape of an 8B model. They may start beside
  others, and measure one after the other with nothing beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import vllm_fp8
import vllm_real
import vllm_shape
import vllm_speed as speed
import vllm_tiny
import vllm_tokens
from vllm_parts import Report
from vllm_shape import part_shape

TOGETHER: dict[str, Callable[[Report, Path], None]] = {
    "load": vllm_tiny.part_load,
    "alone": vllm_tiny.part_alone,
    "plugin": vllm_tiny.part_plugin,
    "ours": vllm_tiny.part_ours,
    "fp8": vllm_fp8.part_fp8,
    "fp8-checkpoint": partial(vllm_fp8.part_fp8_checkpoint, kind="fp8", cache="auto"),
    "fp8-checkpoint-cache": partial(vllm_fp8.part_fp8_checkpoint, kind="fp8", cache="fp8"),
    "fp8-checkpoint-channel": partial(vllm_fp8.part_fp8_checkpoint, kind="fp8-channel", cache="auto"),
    "http": vllm_tiny.part_http,
    "ranks": vllm_tiny.part_ranks,
    "real-ours": vllm_real.part_real_ours,
    "real-alone": vllm_real.part_real_alone,
    "real-plugin": vllm_real.part_real_plugin,
    "real-fp8": vllm_real.part_real_fp8,
    "real-fp8-alone": vllm_real.part_real_fp8_alone,
}
IN_TURN: dict[str, Callable[[Report, Path], None]] = {
    "shape-alone": partial(part_shape, runs=vllm_shape.ALONE, plugin=False, tables="alone"),
    "shape-plugin": partial(part_shape, runs=vllm_shape.PLUGIN, tables="plugin"),
    "shape-head": partial(part_shape, runs=vllm_shape.HEAD, tables="head"),
    "shape-long": partial(part_shape, runs=vllm_shape.LONGER),
    "long-alone": partial(vllm_shape.part_long, budget=None),
    "long-4096": partial(vllm_shape.part_long, budget=4096),
    "long-2048": partial(vllm_shape.part_long, budget=2048),
    "long-1024": partial(vllm_shape.part_long, budget=1024),
    "ranks-big-alone": partial(vllm_shape.part_ranks_big, plugin=False),
    "ranks-big-plugin": partial(vllm_shape.part_ranks_big, plugin=True),
}
PARTS = TOGETHER | IN_TURN
DEFAULT = ("load", "alone", "plugin", "ours", "shape-alone", "shape-plugin")
LIMIT = 400  # seconds of a part that is not timed
MEASURES = 600  # seconds that a timed part may take when its turn has come, its start included
BESIDE = 110  # GiB of a GPU that holds two engines of the shape
BEGAN = time.monotonic()


def main() -> None:
    """Run the parts, each in a process of its own, and put together what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(DEFAULT))
    parser.add_argument("--work", type=Path, default=Path("vllm_gpu_work"))
    parser.add_argument("--long-seconds", type=float, default=420, help="that each part long-... measures at most")
    parser.add_argument("--real", type=json.loads, help="model, problems, horizon and count, as JSON")
    parser.add_argument("--part", help="run this one here")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.part:
        report = Report(options.work / f"part-{options.part}.json")
        PARTS[options.part](report, options.work)
        return
    asked = options.parts.split(",")
    if unknown := set(asked) - PARTS.keys():
        parser.error(f"unknown parts {sorted(unknown)}: choose of {', '.join(PARTS)}")
    asked_for = {"real": options.real, "long_seconds": options.long_seconds}
    (options.work / "asked.json").write_text(json.dumps(asked_for))
    for told in (*options.work.glob("turn-*"), *options.work.glob("ready-*")):
        told.unlink()
    beside, in_turn = [part for part in TOGETHER if part in asked], [part for part in IN_TURN if part in asked]
    early = in_turn[: 2 if memory_gib() >= BESIDE and not any("long" in part for part in in_turn) else 1]
    started = {part: start_part(part, options) for part in beside}
    if in_turn:
        speed.shape_folder(options.work)
    started |= {part: start_part(part, options) for part in early}
    for part in beside:
        wait_for(part, started[part], LIMIT, options)
    for part in early:
        end = time.monotonic() + MEASURES
        while not (options.work / f"ready-{part}").exists() and started[part].poll() is None:
            if time.monotonic() > end:
                break
            time.sleep(0.1)
    for part in in_turn:
        process = started.get(part) or start_part(part, options)
        (options.work / f"turn-{part}").touch()
        wait_for(part, process, MEASURES, options)
    print("all done", flush=True)


def memory_gib() -> float:
    """Of the first GPU; 0 where there is none."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", "--id=0"]
    try:
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024
    except (OSError, subprocess.CalledProcessError, ValueError):
        return 0.0


def wait_for(part: str, process: subprocess.Popen[bytes], seconds: float, options: argparse.Namespace) -> None:
    """Until it has ended, or for so long; with it go the processes that it started."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    print(f"[{part}] ended with {process.returncode} after {time.monotonic() - BEGAN:.0f} s", flush=True)
    write(options)


def start_part(part: str, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """The process, in a group of its own."""
    own = part in (*IN_TURN, "ranks")  # a core of its own, as users run it
    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if own else "0",
        "VLLM_CACHE_ROOT": str((options.work / f"cache-{part}").resolve()),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.resolve()), os.environ.get("PYTHONPATH", "")]),
    }
    environment.pop("LEANTHINK_VLLM", None)
    if (settings := settings_of(part, options)) is not None:
        environment["LEANTHINK_VLLM"] = json.dumps(settings)
    log = (options.work / f"log-{part}.txt").open("wb")
    command = [sys.executable, __file__, "--out", str(options.out), "--work", str(options.work), "--part", part]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def settings_of(part: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """What the plugin is told; None where it is not used."""
    if part in ("load", "plugin", "fp8", "http", "ranks"):
        return {"policies": list(vllm_tiny.POLICIES), "max_thought_slots": 512}
    if part.startswith("fp8-checkpoint"):
        return {"policies": ["horizon", "random"], "max_thought_slots": 512,
                "predictors": {"horizon": str(vllm_fp8.predictor())}, "ignore_predictor_mismatch": True}  # fmt: skip
    if part in ("real-plugin", "real-fp8"):
        predictors = {"horizon": options.real["horizon"]} if "horizon" in options.real else {}
        policies = list(vllm_real.policies(options.work))
        return {"policy": policies[0], "policies": policies, "max_thought_slots": 512, "predictors": predictors}
    if not part.startswith(("shape", "long", "ranks")) or part.endswith("alone"):
        return None
    name = "head" if part == "shape-head" else "shared"
    predictor = str((options.work / "shape" / f"{name}.safetensors").resolve())
    return {"policies": ["horizon", "random"], "max_thought_slots": 4224,
            "predictors": {"horizon": predictor}, "ignore_predictor_mismatch": True}  # fmt: skip


def write(options: argparse.Namespace) -> None:
    """All that is known by now."""
    found: dict[str, Any] = {"compared": vllm_tokens.compared(options.work, vllm_tiny.POLICIES, vllm_tiny.BUDGET)}
    for path in sorted(options.work.glob("part-*.json")):
        found[path.stem.removeprefix("part-")] = json.loads(path.read_text())
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
