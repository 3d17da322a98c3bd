"""The parts of bench/vllm_gpu.py about random weights of the shape of an 8B model: steps and throughput."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import vllm_speed as speed
from vllm_parts import BLOCK, Report, await_turn, engine, extra_args

LONG = (256, 512, 16384)  # requests, and tokens of each prompt and output
LONG_GIB = 40  # of cache
RANKS_SLOTS = 80 * 1024  # of 128 KiB each


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


# Of each part: a run's name, rows and slots, and what a budget leaves of the thought and a policy, if there is one. The
# prompt never moves: of 256 slots of a thought few do, of a long thought nearly all.
ALONE = (("20x4000", speed.FEW), ("64x3000", speed.MANY), ("20x4000 again", speed.FEW))
PLUGIN = (
    ("20x4000 no budget", speed.FEW),
    ("64x3000 no budget", speed.MANY),
    ("20x4000 long prompt", speed.FEW, 256),
    ("64x3000 long prompt", speed.MANY, 256),
    ("20x4000 no budget again", speed.FEW),
    ("20x4000 half thought", speed.FEW, 1920),
)
LONGER = (
    ("20x4000 no budget", speed.FEW),
    ("20x4000 random", speed.FEW, 256, "random"),
    ("20x4000 long thought", speed.FEW, 3712),
    ("64x3000 half thought", speed.MANY, 1408),
)
HEAD = (PLUGIN[0], *PLUGIN[2:4])  # with a set for each kv head


def part_shape(
    report: Report, work: Path, *, runs: Sequence[tuple[Any, ...]], plugin: bool = True, tables: str | None = None
) -> None:
    """These runs in turn; then a profile, in files of this name."""
    client = report_client(report, work, plugin=plugin)
    if client is None:
        return
    for name, *how in runs:
        run = speed.bounded_steps if len(how) > 1 else speed.full_steps
        report.step(name, partial(run, client, *how))
    if tables == "plugin":
        report.step("moves_speed", speed.moves_speed)
    if tables is not None:
        budget = 256 if plugin else None
        report.step("profile", lambda: speed.profile(client, speed.FEW, work / f"profile-{tables}", budget))


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
    """Throughput of two GPUs, tensor parallel, with the slots that 10 GiB of cache hold on one."""
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
                num_gpu_blocks_override=RANKS_SLOTS // BLOCK + 1,
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
