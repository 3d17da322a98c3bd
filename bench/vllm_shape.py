"""The parts of bench/vllm_gpu.py about random weights of the shape of an 8B model: steps and throughput."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import vllm_speed as speed
from vllm_parts import Report, await_turn, engine, extra_args

LONG = (256, 512, 16384)  # requests, and tokens of each prompt and output
LONG_GIB = 40  # of cache


def report_client(report: Report, work: Path, *, plugin: bool, cache_gib: int = 26, **more: Any) -> Any:
    """The engine, ready, when its turn has come; None if it did not start."""
    report.step("folder", lambda: str(speed.shape_folder(work)))
    held: list[Any] = []

    def start() -> Any:
        cache = cache_gib * speed.GIB
        held.append(speed.speed_client(work, plugin=plugin, engine=engine, cache_bytes=cache, **more))
        return held[0].made_of

    report.step("start", start)
    await_turn(report, work)
    return held[0] if held else None


def part_shape_alone(report: Report, work: Path) -> None:
    """VLLM without the plugin."""
    client = report_client(report, work, plugin=False)
    if client is None:
        return
    report.step("20x4000", lambda: speed.full_steps(client, speed.FEW))
    report.step("64x3000", lambda: speed.full_steps(client, speed.MANY))
    report.step("20x4000 again", lambda: speed.full_steps(client, speed.FEW))
    report.step("profile", lambda: speed.profile(client, speed.FEW, work / "profile-alone", None))


def part_shape_plugin(report: Report, work: Path) -> None:
    """The plugin, first without a budget, then with evictions."""
    client = report_client(report, work, plugin=True)
    if client is None:
        return
    report.step("20x4000 no budget", lambda: speed.full_steps(client, speed.FEW))
    report.step("64x3000 no budget", lambda: speed.full_steps(client, speed.MANY))
    # The prompt never moves: of these few slots do, of a long thought nearly all.
    report.step("20x4000 long prompt", lambda: speed.bounded_steps(client, speed.FEW, 256))
    report.step("64x3000 long prompt", lambda: speed.bounded_steps(client, speed.MANY, 256))
    report.step("20x4000 no budget again", lambda: speed.full_steps(client, speed.FEW))
    report.step("20x4000 half thought", lambda: speed.bounded_steps(client, speed.FEW, 1920))
    report.step("moves_speed", speed.moves_speed)
    report.step("profile", lambda: speed.profile(client, speed.FEW, work / "profile-plugin", 256))


def part_shape_long(report: Report, work: Path) -> None:
    """More of the plugin: nearly all slots move; and a policy that predicts nothing."""
    client = report_client(report, work, plugin=True)
    if client is None:
        return
    report.step("20x4000 no budget", lambda: speed.full_steps(client, speed.FEW))
    report.step("20x4000 random", lambda: speed.bounded_steps(client, speed.FEW, 256, "random"))
    report.step("20x4000 long thought", lambda: speed.bounded_steps(client, speed.FEW, 3712))
    report.step("64x3000 half thought", lambda: speed.bounded_steps(client, speed.MANY, 1408))


def part_shape_head(report: Report, work: Path) -> None:
    """The plugin with a set for each kv head."""
    client = report_client(report, work, plugin=True)
    if client is None:
        return
    report.step("20x4000 no budget", lambda: speed.full_steps(client, speed.FEW))
    report.step("20x4000 long prompt", lambda: speed.bounded_steps(client, speed.FEW, 256))
    report.step("64x3000 long prompt", lambda: speed.bounded_steps(client, speed.MANY, 256))
    report.step("profile", lambda: speed.profile(client, speed.FEW, work / "profile-head", 256))


def long_seconds(work: Path) -> float:
    """How long is measured at most."""
    return float(json.loads((work / "asked.json").read_text())["long_seconds"])


def part_long(report: Report, work: Path, budget: int | None) -> None:
    """Long thoughts in 40 GiB, for as long as there is time: vLLM alone, or the plugin with this budget."""
    client = report_client(report, work, plugin=budget is not None, cache_gib=LONG_GIB, longest=sum(LONG[1:]),
                           rows=LONG[0])  # fmt: skip
    if client is not None:
        report.step("throughput", lambda: speed.long_throughput(client, *LONG, budget, long_seconds(work)))


def part_ranks_big(report: Report, work: Path, *, plugin: bool) -> None:
    """Throughput of two GPUs, tensor parallel, with as many slots as `big` has on one."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from leanthink.models.tiny import weights_path

    held: list[Any] = []

    def start() -> str:
        shape = str(speed.shape_folder(work))
        held.append(
            engine(
                plugin=plugin, model=shape, tokenizer=str(weights_path()), load_format="dummy", max_model_len=8192,
                max_num_seqs=64, max_num_batched_tokens=8192, tensor_parallel_size=2, gpu_memory_utilization=0.5,
                num_gpu_blocks_override=80 * 1024 // 16 + 1,
            )
        )  # fmt: skip
        return str(held[0].llm_engine.vllm_config.parallel_config.tensor_parallel_size)

    def run(budget: int | None) -> dict[str, Any]:
        extra = extra_args(speed.asked_of(budget))
        given = SamplingParams(temperature=0, max_tokens=4096, ignore_eos=True, detokenize=False, extra_args=extra,
                               output_kind=RequestOutputKind.FINAL_ONLY)  # fmt: skip
        asked_ids = [{"prompt_token_ids": one} for one in speed.random_prompts(96, 512, 7)]
        begin = time.perf_counter()
        done = held[0].generate(asked_ids, given, use_tqdm=False)
        seconds = time.perf_counter() - begin
        written = sum(len(output.outputs[0].token_ids) for output in done)
        return {
            "budget": budget,
            "tokens": written,
            "seconds": round(seconds, 2),
            "tokens_per_s": round(written / seconds, 1),
        }

    report.step("start", start)
    await_turn(report, work)
    if held:
        report.step("throughput", lambda: run(1024 if plugin else None))
