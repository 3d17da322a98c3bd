"""The parts of bench/vllm_gpu.py about a real model: right answers and equal tokens, in vLLM and in our engine.

`real-ours` writes the model as a folder that vLLM reads; the others wait for it. What is given to `--real` is a JSON
object: `model` (a GGUF file), `problems` (a JSONL file), `horizon` (a predictor of it), `count`, `policies` (of
POLICIES; all if left out).
"""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from vllm_parts import SIZES, Report, Stepper, answers, engine, params, report_engine, request_seeds

TOKENS, ROWS, WINDOW = 1024, 100, 16
BUDGETS = {"140": 140, "62": 62}  # half and a quarter of what its thoughts on GSM8K hold
POLICIES = ("horizon", "random", "sinks")


def asked_of(policy: str, slots: int) -> dict[str, Any]:
    """What a request says."""
    return {"budget": slots, "recent_window": WINDOW, "eviction_interval": WINDOW, "policy": policy}


def given(work: Path) -> dict[str, Any]:
    """What `--real` says."""
    found: dict[str, Any] = json.loads((work / "asked.json").read_text())["real"]
    return found


def policies(work: Path) -> tuple[str, ...]:
    """Those that are asked for."""
    return tuple(given(work).get("policies", POLICIES))


def problems(work: Path) -> list[Any]:
    """Those of the file, the first ones."""
    from leanthink.data.problems import read_problems

    real = given(work)
    return read_problems(Path(real["problems"]))[: real["count"]]


def folder(work: Path) -> Path:
    """The model's, when it is there."""
    while not (work / "real" / "done").exists():
        time.sleep(0.2)
    return work / "real"


def prompts(work: Path, tokenizer: Any) -> list[list[int]]:
    """As `leanthink eval` asks."""
    from leanthink.data.problems import STEP_BY_STEP
    from leanthink.models.prompt import encode_prompt

    texts = [f"{one.problem}\n\n{STEP_BY_STEP}" for one in problems(work)]
    return [list(encode_prompt(tokenizer, 0, text)) for text in texts]


def noted(work: Path, name: str, tokenizer: Any, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Which answers are right; all of it is written."""
    from leanthink.data.grading.grading import is_solved

    texts = [tokenizer.decode(one["ids"], skip_special_tokens=True) for one in found]
    right = [is_solved(one, text, think_tags=False) for one, text in zip(problems(work), texts, strict=True)]
    for answer, is_right in zip(found, right, strict=True):
        answer["right"] = is_right
    (work / f"tokens-real-{name}.json").write_text(json.dumps(found))
    return {"right": sum(right), "of": len(right), "tokens": sum(len(one["ids"]) for one in found)}


def part_real_ours(report: Report, work: Path) -> None:
    """Our own engine, in the same dtype."""
    from leanthink import Budget, Sampling, generate, load

    def start() -> str:
        real = given(work)
        held.extend(load(real["model"], device="cuda"))
        if hasattr(held[0].config, "quantization_config"):  # of a GGUF file, whose weights are dense by now
            del held[0].config.quantization_config
            held[0].hf_quantizer = None
        held[0].save_pretrained(work / "real")
        held[1].save_pretrained(work / "real")
        (work / "real" / "done").touch()
        return str(held[0].dtype)

    held: list[Any] = []
    report.step("start", start)
    model, tokenizer = held
    asked = prompts(work, tokenizer)
    samplings = [Sampling(max_new_tokens=TOKENS, seed=seed) for seed in request_seeds(len(asked))]

    def run(name: str, policy: str, slots: int | None) -> dict[str, Any]:
        budget = None if slots is None else Budget(slots=slots, recent_window=WINDOW, eviction_interval=WINDOW)
        more = {"predictor": given(work)["horizon"]} if policy == "horizon" else {}
        done = generate(
            model, tokenizer, asked, policy=policy, budget=budget, sampling=samplings, max_rows=ROWS, **more
        )
        found = [{"ids": list(one.token_ids), "evictions": one.evictions, "peak": one.peak_slots} for one in done]
        return noted(work, f"ours-{name}", tokenizer, found)

    report.step("full", lambda: run("full", "full", None))
    for policy in policies(work):
        for label, slots in BUDGETS.items():
            name = f"{policy}-{label}"
            report.step(name, partial(run, name, policy, slots))


def vllm_answers(
    report: Report, work: Path, name: str, *, plugin: bool, asked_policies: tuple[str, ...] = (), **more: Any
) -> None:
    """Without a budget, and with each."""
    from transformers import AutoTokenizer

    where = folder(work)
    tokenizer = AutoTokenizer.from_pretrained(where)

    def make() -> Stepper:
        return Stepper(
            engine(
                plugin=plugin, model=str(where), max_model_len=2048, max_num_seqs=ROWS, max_num_batched_tokens=4096,
                kv_cache_memory_bytes=8 << 30, gpu_memory_utilization=0.3, sizes=[*SIZES, 80, 100], **more,
            )
        )  # fmt: skip

    stepper = report_engine(report, make)
    if stepper is None:
        return
    ids = prompts(work, tokenizer)

    def run(label: str, asked: dict[str, Any] | None) -> dict[str, Any]:
        given = [params(TOKENS, asked, logprobs=2, seed=seed) for seed in request_seeds(len(ids))]
        ran = stepper.run(list(zip(ids, given, strict=True)))
        told = noted(work, f"{name}-{label}", tokenizer, answers(ran))
        return told | {"steps": len(ran["ends"]), "graph_replays": ran["graph_replays"]}

    report.step("full", lambda: run("full", None))
    for policy in asked_policies:
        for label, slots in BUDGETS.items():
            asked = asked_of(policy, slots)
            report.step(f"{policy}-{label}", partial(run, f"{policy}-{label}", asked))


def part_real_alone(report: Report, work: Path) -> None:
    """VLLM without the plugin."""
    vllm_answers(report, work, "alone", plugin=False)


def part_real_plugin(report: Report, work: Path) -> None:
    """The plugin."""
    vllm_answers(report, work, "plugin", plugin=True, asked_policies=policies(work))


def part_real_fp8(report: Report, work: Path) -> None:
    """The plugin with weights and cache in FP8, made so on the spot."""
    more = {"quantization": "fp8", "kv_cache_dtype": "fp8"}
    vllm_answers(report, work, "fp8", plugin=True, asked_policies=("horizon",), **more)


def part_real_fp8_alone(report: Report, work: Path) -> None:
    """VLLM with the same, without the plugin."""
    vllm_answers(report, work, "fp8-alone", plugin=False, quantization="fp8", kv_cache_dtype="fp8")
