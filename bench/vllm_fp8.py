"""The parts of bench/vllm_gpu.py about the embedded reasoner in FP8: made so by vLLM, or in a checkpoint before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import quantised_checkpoint
from vllm_parts import Report, answers, params, report_engine, request_seeds
from vllm_tiny import BUDGET, TOKENS, correct, prompts, tiny_engine


def predictor() -> Path:
    """Of `horizon`, which a quantised copy borrows."""
    from leanthink.models.tiny import predictors_path

    return predictors_path() / "horizon.safetensors"


def part_fp8(report: Report, work: Path) -> None:
    """Weights and cache in FP8, made so on the spot: without a budget, and with one."""
    fp8_answers(report, work, {"quantization": "fp8", "kv_cache_dtype": "fp8"})


def part_fp8_checkpoint(report: Report, work: Path, *, kind: str, cache: str) -> None:
    """The same of a checkpoint that is in FP8, written here; its predictor is borrowed."""
    from leanthink.models.tiny import weights_path

    folder = work / report.path.stem
    shutil.rmtree(folder, ignore_errors=True)
    report.step("write", lambda: {"weights": quantised_checkpoint.write(weights_path(), folder, kind)})
    fp8_answers(report, work, {"model": folder, "kv_cache_dtype": cache})


def fp8_answers(report: Report, work: Path, options: dict[str, Any]) -> None:
    """What an engine with these options answers without a budget, and with one."""
    part = report.path.stem.removeprefix("part-")
    stepper = report_engine(report, lambda: tiny_engine(plugin=True, **options))
    if stepper is None:
        return
    report.found["quantization"] = stepper.engine.vllm_config.model_config.quantization
    for name, asked in (("full", None), *((one, BUDGET | {"policy": one}) for one in ("horizon", "random"))):

        def run(name: str = name, asked: dict[str, Any] | None = asked) -> dict[str, Any]:
            ids = prompts()
            given = [params(TOKENS, asked, seed=seed) for seed in request_seeds(len(ids))]
            ran = stepper.run(list(zip(ids, given, strict=True)))
            found = answers(ran)
            (work / f"tokens-{part}-{name}.json").write_text(json.dumps(found))
            return {"correct": correct(found), "of": len(found), "graph_replays": ran["graph_replays"]}

        report.step(name, run)
