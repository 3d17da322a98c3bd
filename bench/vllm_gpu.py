"""The plugin inside vLLM on a GPU: does it run, are its tokens right, what does a step cost, how many tokens a second?

    python bench/vllm_gpu.py --out vllm_gpu.json [--parts load,alone,plugin,ours,shape-plugin,shape-alone,shape-head]

Needs vLLM's CUDA build, and the plugin installed so that vLLM finds it. Every part runs in a process of its own, says
on its own what went wrong, and writes what it found as soon as it has it. `load`, `alone`, `plugin` and `ours` are
about `tiny` and run side by side, as nothing is timed there; `shape-*` are about random weights of the shape of an 8B
model and have the GPU for themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TOGETHER = ("load", "alone", "plugin", "ours")
IN_TURN = ("shape-plugin", "shape-alone", "shape-head")
LIMITS = {
    "load": 150,
    "alone": 240,
    "plugin": 300,
    "ours": 300,
    "shape-plugin": 360,
    "shape-alone": 300,
    "shape-head": 180,
}  # seconds
BUDGET = {"budget": 96, "window": 32, "interval": 32}
POLICIES = ("horizon", "dynts", "random", "window", "sinks")
COUNT, TOKENS, ROWS = 60, 900, 32
V2 = "leanthink.integrations.vllm.v2"
CHECKS = f"{V2}.checks:Checks"
SCHEDULER = f"{V2}.scheduler.BoundedAsyncScheduler"
SIZES = [1, 2, 4, 8, 16, 20, 24, 32, 40, 48, 64]
SHAPE = "llama-3.1-8b"
BLOCK = 16


class Report:
    """What one part found; written after each step, so that nothing is lost."""

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, dict[str, Any]()

    def step(self, name: str, run: Callable[[], Any]) -> Any:
        """Run it, note its result or the tail of its error, and go on."""
        start = time.perf_counter()
        try:
            result = run()
            self.found[name] = {"ok": True, "result": result}
        except BaseException as error:  # the next step may still say something
            result = None
            tail = traceback.format_exc()[-2500:]
            self.found[name] = {"ok": False, "error": f"{type(error).__name__}: {error}"[-800:], "traceback": tail}
        seconds = round(time.perf_counter() - start, 2)
        self.found[name]["seconds"] = seconds
        self.path.write_text(json.dumps(self.found))
        shown = json.dumps(self.found[name].get("result", self.found[name].get("error")))
        print(
            f"[{self.path.stem}] {name}: {'ok' if self.found[name]['ok'] else 'FAILED'} {seconds} s {shown[:300]}",
            flush=True,
        )
        return result


# What all parts share.


def problems() -> list[Any]:
    """Held-out problems of every family and of levels 2 to 5."""
    from leanthink.data.tasks import registry

    cells = [(family, level) for level in (2, 3, 4, 5) for family in registry.FAMILIES]
    each = -(-COUNT // len(cells))
    by_cell = [registry.sample(family, level, each, 1) for family, level in cells]
    return [problem for of_all in zip(*by_cell, strict=True) for problem in of_all][:COUNT]


def prompts() -> list[list[int]]:
    """Their tokens."""
    from transformers import AutoTokenizer

    from leanthink.models.prompt import encode_prompt
    from leanthink.models.tiny import weights_path

    tokenizer = AutoTokenizer.from_pretrained(weights_path())
    return [list(encode_prompt(tokenizer, 0, problem.prompt)) for problem in problems()]


def engine(*, plugin: bool, **options: Any) -> Any:
    """VLLM in this process, with full CUDA graphs for decoding."""
    from vllm import LLM

    given: dict[str, Any] = {
        "dtype": "bfloat16",
        "block_size": BLOCK,
        "async_scheduling": True,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "compilation_config": {"cudagraph_capture_sizes": SIZES, "cudagraph_mode": "FULL_AND_PIECEWISE"},
    }
    if plugin:
        given |= {"logits_processors": [CHECKS], "scheduler_cls": SCHEDULER}
    return LLM(**(given | options))


def inside(llm: Any) -> tuple[Any, Any]:
    """The engine's core and the model runner, where both are in this process."""
    core = llm.llm_engine.engine_core.engine_core
    worker = core.model_executor.driver_worker
    worker = getattr(worker, "worker", worker)
    return core, worker.model_runner


class Stepper:
    """Requests run by hand, with the time of every step and how it was run."""

    def __init__(self, llm: Any) -> None:
        self.llm, self.engine = llm, llm.llm_engine
        self.core, self.runner = inside(llm)
        self.count = self.graphs = 0
        manager = self.runner.cudagraph_manager
        if manager is None:  # nothing is captured on a CPU
            return
        replay = manager.run_fullgraph

        def counted(*given: Any, **more: Any) -> Any:
            self.graphs += 1
            return replay(*given, **more)

        manager.run_fullgraph = counted

    def run(self, asked: Sequence[tuple[list[int], Any]], after: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """All outputs in order, and when each step ended with how many tokens."""
        first, self.count = self.count, self.count + len(asked)
        for index, (ids, params) in enumerate(asked, first):
            self.engine.add_request(str(index), {"prompt_token_ids": ids}, params)
        done: dict[int, Any] = {}
        ends, running, self.graphs, start = [], [], 0, time.perf_counter()
        while self.engine.has_unfinished_requests():
            outputs = self.engine.step()
            for output in outputs:
                if output.finished:
                    done[int(output.request_id)] = output
            if outputs:
                ends.append(time.perf_counter() - start)
                running.append(len(self.core.scheduler.running))
            after()
        return {
            "outputs": [done[index] for index in range(first, self.count)],
            "ends": ends,
            "running": running,
            "graph_replays": self.graphs,
            "seconds": time.perf_counter() - start,
        }


def params(tokens: int, asked: dict[str, Any] | None = None, **more: Any) -> Any:
    """Greedy."""
    from vllm import SamplingParams

    extra = None if asked is None else {f"leanthink_{name}": value for name, value in asked.items()}
    return SamplingParams(temperature=0, max_tokens=tokens, extra_args=extra, **more)


# The parts.


def part_load(report: Report, work: Path) -> None:
    """Versions, the plugin's hooks, the kernel that moves slots beside its slow twin."""

    def versions() -> dict[str, Any]:
        from importlib.metadata import entry_points, version

        import torch
        import transformers
        import triton

        names = [point.value for point in entry_points(group="vllm.general_plugins")]
        return {"torch": torch.__version__, "triton": triton.__version__, "transformers": transformers.__version__,
                "vllm": version("vllm"), "gpu": torch.cuda.get_device_name(), "plugins": names}  # fmt: skip

    def hooks() -> dict[str, Any]:
        from vllm.plugins import load_general_plugins

        load_general_plugins()
        from vllm import ModelRegistry
        from vllm.v1.attention.backends.registry import AttentionBackendEnum

        found = AttentionBackendEnum.FLASH_ATTN.get_class()
        return {"backend": f"{found.__module__}.{found.__name__}", "models": len(ModelRegistry.get_supported_archs())}

    report.step("versions", versions)
    report.step("hooks", hooks)
    report.step("moves", moves)
    report.step("moves_speed", moves_speed)


def moves() -> dict[str, Any]:
    """The kernel against its slow twin, in both orders of memory and for shared sets, sets a layer and sets a head."""
    import torch

    from leanthink.integrations.vllm.v2.moves import Caches

    drawn, tried = random.Random(0), 0
    for trial in range(12):
        layers, blocks, heads, numbers = 3, 40, 2, drawn.choice([128, 256])
        raw = torch.randn(layers, blocks, heads, BLOCK, numbers, device="cuda").to(torch.bfloat16)
        if trial % 2:
            raw = raw.permute(1, 0, 2, 3, 4).contiguous().permute(1, 0, 2, 3, 4)
        twin = raw.clone(memory_format=torch.preserve_format)
        fast, slow = Caches(list(raw)), Caches(list(twin))
        kept_n = drawn.randint(1, 150)
        slots = kept_n + drawn.randint(0, 60)
        table = torch.randperm(blocks, device="cuda")[:32].view(2, 16).int()
        first = torch.tensor([drawn.randint(0, 40), 7], device="cuda")
        for sets in (1, layers, layers * heads):
            chosen = [torch.randperm(slots)[:kept_n].sort().values for _ in range(2 * sets)]
            kept = torch.stack(chosen).view(2, sets, kept_n).cuda()
            fast.move_at_once(table, first, kept)
            slow.move_plainly(table, first, kept)
            assert torch.equal(raw, twin), (trial, sets)
            tried += 1
    return {"cases": tried}


def moves_speed() -> dict[str, Any]:
    """Milliseconds to bring 20 requests of an 8B shape from 4064 slots back to 4000, nearly all of which move."""
    import torch

    from leanthink.integrations.vllm.v2.moves import Caches

    caches = torch.zeros(32, 20 * 260, 8, BLOCK, 256, dtype=torch.bfloat16, device="cuda")
    table = torch.randperm(20 * 260, device="cuda")[: 20 * 260].view(20, 260).int()
    first = torch.full((20,), 32, device="cuda")
    kept = torch.stack([torch.randperm(4064)[:4000].sort().values for _ in range(20)])[:, None].cuda()
    mover, found = Caches(list(caches)), {}
    for name, sets in (("shared", kept), ("per_head", kept.expand(-1, 256, -1).contiguous())):
        times = []
        for _ in range(5):
            torch.cuda.synchronize()
            start = time.perf_counter()
            mover.move_at_once(table, first, sets)
            torch.cuda.synchronize()
            times.append(1e3 * (time.perf_counter() - start))
        found[name] = round(statistics.median(times), 3)
    return found


def tiny_engine(*, plugin: bool) -> Stepper:
    """The embedded reasoner in a small cache."""
    from leanthink.models.tiny import weights_path

    return Stepper(
        engine(
            plugin=plugin,
            model=str(weights_path()),
            max_model_len=2048,
            max_num_seqs=ROWS,
            max_num_batched_tokens=2048,
            kv_cache_memory_bytes=2 << 30,
            gpu_memory_utilization=0.2,
        )
    )


def answers(ran: dict[str, Any]) -> list[dict[str, Any]]:
    """Tokens, why they ended, and by how much each likeliest token led the next, in nats."""
    found = []
    for output in ran["outputs"]:
        (choice,) = output.outputs
        gaps = []
        for ranked in choice.logprobs or ():
            best = sorted((entry.logprob for entry in ranked.values()), reverse=True)
            gaps.append(round(best[0] - best[1], 4) if len(best) > 1 else None)
        found.append({"ids": list(choice.token_ids), "reason": choice.finish_reason, "gaps": gaps})
    return found


def part_alone(report: Report, work: Path) -> None:
    """VLLM without the plugin: its greedy tokens."""
    stepper = report_engine(report, lambda: tiny_engine(plugin=False))
    if stepper is None:
        return
    for name in ("full", "again"):  # how far vLLM agrees with itself when other requests share its steps
        asked = [(ids, params(TOKENS, logprobs=2)) for ids in prompts()]
        order = list(range(len(asked)))
        if name == "again":
            random.Random(0).shuffle(order)

        def run(name: str = name, order: list[int] = order, asked: list[Any] = asked) -> dict[str, Any]:
            ran = stepper.run([asked[index] for index in order])
            back = dict(zip(order, answers(ran), strict=True))
            (work / f"tokens-alone-{name}.json").write_text(json.dumps([back[index] for index in range(len(order))]))
            return {"steps": len(ran["ends"]), "graph_replays": ran["graph_replays"]}

        report.step(name, run)


def report_engine(report: Report, make: Callable[[], Stepper]) -> Stepper | None:
    """The engine, and what it is made of."""
    held: list[Stepper] = []

    def start() -> dict[str, Any]:
        held.append(make())
        config = held[0].engine.vllm_config
        groups = held[0].runner.attn_groups
        layer = next(iter(held[0].runner.compilation_config.static_forward_context.values()))
        return {
            "runner": f"{type(held[0].runner).__module__}.{type(held[0].runner).__name__}",
            "state": type(held[0].runner.model_state).__name__,
            "model": f"{type(held[0].runner.model).__module__}.{type(held[0].runner.model).__name__}",
            "scheduler": type(held[0].core.scheduler).__name__,
            "async": bool(config.scheduler_config.async_scheduling),
            "graphs": str(config.compilation_config.cudagraph_mode),
            "backend": groups[0][0].backend.__name__,
            "cache": [list(layer.kv_cache.shape), list(layer.kv_cache.stride()), str(layer.kv_cache.dtype)],
        }

    report.step("start", start)
    return held[0] if held else None


def part_plugin(report: Report, work: Path) -> None:
    """The plugin: without a budget, with one under each policy, its bound, and that nothing is left."""
    stepper = report_engine(report, lambda: tiny_engine(plugin=True))
    if stepper is None:
        return
    ids = prompts()

    def tokens(name: str, asked: dict[str, Any] | None) -> dict[str, Any]:
        before = stepper.runner.model_state.rows.evictions
        ran = stepper.run([(one, params(TOKENS, asked, logprobs=2)) for one in ids])
        (work / f"tokens-plugin-{name}.json").write_text(json.dumps(answers(ran)))
        return {"steps": len(ran["ends"]), "graph_replays": ran["graph_replays"],
                "evictions_due": stepper.runner.model_state.rows.evictions - before}  # fmt: skip

    report.step("full", lambda: tokens("full", None))
    for policy in POLICIES:
        report.step(policy, lambda policy=policy: tokens(policy, BUDGET | {"policy": policy}))
    report.step("bound", lambda: bound(stepper, ids))
    report.step("preempted", lambda: preempted(stepper, ids, work))
    report.step("left", lambda: left(stepper))


def bound(stepper: Stepper, ids: list[list[int]]) -> dict[str, Any]:
    """Slots and blocks that any request ever held, beside what it may: looked at after every step."""
    asked = BUDGET | {"policy": "random", "answer": 64}
    most = BUDGET["budget"] + BUDGET["interval"]
    manager = stepper.core.scheduler.kv_cache_manager.coordinator.single_type_managers[0]
    seen = {"slots_over": -(10**9), "blocks_over": -(10**9)}

    def look() -> None:
        state = stepper.runner.model_state
        lengths = state.lengths_R.tolist()
        running = {request.request_id: request for request in stepper.core.scheduler.running}
        for request_id, request in running.items():
            blocks = len(manager.req_to_blocks.get(request_id, ()))
            may = request.num_prompt_tokens + most + 64
            seen["blocks_over"] = max(seen["blocks_over"], blocks - -(-may // BLOCK))
        longest = max((request.num_prompt_tokens for request in running.values()), default=0)
        if running:
            seen["slots_over"] = max(seen["slots_over"], max(lengths[: len(running)]) - longest - most - 64)

    stepper.runner.model_state.lengths_R.zero_()
    stepper.run([(one, params(TOKENS, asked)) for one in ids[:ROWS]], look)
    assert seen["slots_over"] <= 0, seen
    assert seen["blocks_over"] <= 0, seen
    return seen


def preempted(stepper: Stepper, ids: list[list[int]], work: Path) -> dict[str, Any]:
    """One request at a time, preempted once amid its thought: the same tokens as without."""
    asked, same, times = BUDGET | {"policy": "horizon"}, 0, 0
    scheduler = stepper.core.scheduler
    for one in ids[:3]:
        plain = stepper.run([(one, params(TOKENS, asked))])["outputs"][0].outputs[0].token_ids
        done: list[int] = []

        def once(done: list[int] = done) -> None:
            running = scheduler.running
            if not done and running and running[0].num_output_tokens >= 250:
                request = running.pop(0)
                scheduler._preempt_request(request, 0.0)
                done.append(1)

        again = stepper.run([(one, params(TOKENS, asked))], once)["outputs"][0].outputs[0].token_ids
        same += list(plain) == list(again)
        times += len(done)
    return {"requests": 3, "preempted": times, "same": same}


def left(stepper: Stepper) -> dict[str, Any]:
    """Blocks that nobody gave back."""
    import gc

    stepper.run([([1, 2, 3], params(1))])
    gc.collect()
    pool = stepper.core.scheduler.kv_cache_manager.block_pool
    missing = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
    assert missing == 0, missing
    return {"blocks_missing": missing}


def part_ours(report: Report, work: Path) -> None:
    """Our own engine on the same problems, in the same dtype."""
    from leanthink import Budget, Sampling, generate, load

    model, tokenizer = load("tiny", device="cuda")
    report.found["dtype"] = str(next(model.parameters()).dtype)
    budget = Budget(slots=BUDGET["budget"], window=BUDGET["window"], interval=BUDGET["interval"])
    for policy in ("full", *POLICIES):

        def run(policy: str = policy) -> dict[str, Any]:
            completions = generate(
                model, tokenizer, prompts(), policy=policy, budget=None if policy == "full" else budget,
                sampling=Sampling(max_new_tokens=TOKENS), max_rows=ROWS,
            )  # fmt: skip
            found = [{"ids": list(one.token_ids), "evictions": one.evictions} for one in completions]
            (work / f"tokens-ours-{policy}.json").write_text(json.dumps(found))
            return {"evictions": sum(one.evictions for one in completions)}

        report.step(policy, run)


# An 8B shape.


def shape_folder(work: Path) -> Path:
    """A config of the shape, and random predictors for it: one set for all, and one for each kv head."""
    import torch
    from transformers import AutoConfig

    from leanthink.engine.bench.shapes import SHAPES
    from leanthink.models.predictor import Predictor, save_predictor

    folder = work / "shape"
    folder.mkdir(exist_ok=True)
    kind, fields = SHAPES[SHAPE]
    config = AutoConfig.for_model(kind, **fields)
    config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
    config.bos_token_id, config.eos_token_id = 0, 1
    config.save_pretrained(folder)
    torch.manual_seed(0)
    sets = config.num_hidden_layers * config.num_key_value_heads
    for name, granularity, num_sets in (("shared", "model", 1), ("head", "head", sets)):
        predictor = Predictor(
            target="horizon", hidden_size=config.hidden_size, horizons=(16, 32, 64, 128, 256),
            offsets=(0, 1, 2, 4, 8, 12), granularity=granularity, num_sets=num_sets, width=1024,
        )  # fmt: skip
        save_predictor(predictor, folder / f"{name}.safetensors", base_fingerprint="0" * 64, data={}, metrics={})
    return folder


def shape_engine(work: Path, *, plugin: bool, cache_bytes: int) -> Stepper:
    """Weights that were never loaded."""
    from leanthink.models.tiny import weights_path

    return Stepper(
        engine(
            plugin=plugin,
            model=str(work / "shape"),
            tokenizer=str(weights_path()),
            load_format="dummy",
            max_model_len=8192,
            max_num_seqs=64,
            max_num_batched_tokens=8192,
            kv_cache_memory_bytes=cache_bytes,
            gpu_memory_utilization=0.8,
        )
    )


def random_prompts(count: int, tokens: int, seed: int) -> list[list[int]]:
    """Different from each other in every block."""
    drawn = random.Random(seed)
    return [[drawn.randrange(2, 250) for _ in range(tokens)] for _ in range(count)]


def steps(
    stepper: Stepper, rows: int, prompt: int, tokens: int, last: int, asked: dict[str, Any] | None
) -> dict[str, Any]:
    """Milliseconds of the last so many steps, in which all rows decode."""
    ids = random_prompts(rows, prompt, 100 * rows + prompt)
    ran = stepper.run([(one, params(tokens, asked, ignore_eos=True)) for one in ids])
    ends, running = ran["ends"], ran["running"]
    full = [index for index in range(1, len(ends)) if running[index - 1] == running[index] == rows][-last - 4 : -4]
    ms = [1e3 * (ends[index] - ends[index - 1]) for index in full]
    return {
        "rows": rows, "prompt": prompt, "tokens": tokens, "steps": len(ms), "graph_replays": ran["graph_replays"],
        "mean_ms": round(statistics.mean(ms), 3), "median_ms": round(statistics.median(ms), 3),
        "p95_ms": round(sorted(ms)[int(0.95 * len(ms))], 3), "most_ms": round(max(ms), 3),
        "lengths": stepper_lengths(stepper, rows),
    }  # fmt: skip


def stepper_lengths(stepper: Stepper, rows: int) -> list[int] | None:
    """Slots that attention read for each row in the last step."""
    lengths = getattr(stepper.runner.model_state, "lengths_R", None)
    return None if lengths is None else [int(lengths[:rows].min()), int(lengths[:rows].max())]


def throughput(stepper: Stepper, asked: dict[str, Any] | None) -> dict[str, Any]:
    """48 requests of 512 + 3072 tokens in whatever cache there is."""
    ids = random_prompts(48, 512, 7)
    ran = stepper.run([(one, params(3072, asked, ignore_eos=True)) for one in ids])
    written = sum(len(output.outputs[0].token_ids) for output in ran["outputs"])
    preemptions = sum(getattr(output, "num_preemptions", 0) or 0 for output in ran["outputs"])
    return {"tokens": written, "seconds": round(ran["seconds"], 2), "tokens_per_s": round(written / ran["seconds"], 1),
            "steps": len(ran["ends"]), "graph_replays": ran["graph_replays"], "preemptions": preemptions,
            "running_mean": round(statistics.mean(ran["running"]), 2)}  # fmt: skip


SMALL = 48 * 1024  # slots that throughput may use


def shrunk(stepper: Stepper, slots: int, run: Callable[[], Any]) -> Any:
    """With so many slots only: the other blocks are taken away meanwhile."""
    stepper.llm.reset_prefix_cache()
    pool = stepper.core.scheduler.kv_cache_manager.block_pool
    taken = pool.get_new_blocks(pool.get_num_free_blocks() - slots // BLOCK)
    try:
        return run()
    finally:
        pool.free_blocks(taken)


def part_shape_alone(report: Report, work: Path) -> None:
    """VLLM without the plugin."""
    report.step("folder", lambda: str(shape_folder(work)))
    stepper = report_engine(report, lambda: shape_engine(work, plugin=False, cache_bytes=26 << 30))
    if stepper is None:
        return
    stepper.run([(one, params(16, ignore_eos=True)) for one in random_prompts(20, 512, 1)])
    report.step("20x4000", lambda: steps(stepper, 20, 3600, 660, 256, None))
    report.step("64x3000", lambda: steps(stepper, 64, 2700, 460, 256, None))
    report.step("throughput", lambda: shrunk(stepper, SMALL, lambda: throughput(stepper, None)))


def part_shape_plugin(report: Report, work: Path) -> None:
    """The plugin, first without a budget, then with evictions."""
    report.step("folder", lambda: str(shape_folder(work)))
    stepper = report_engine(report, lambda: shape_engine(work, plugin=True, cache_bytes=26 << 30))
    if stepper is None:
        return
    stepper.run([(one, params(16, ignore_eos=True)) for one in random_prompts(20, 512, 1)])
    report.step("20x4000 no budget", lambda: steps(stepper, 20, 3600, 660, 256, None))
    report.step("64x3000 no budget", lambda: steps(stepper, 64, 2700, 460, 256, None))

    def held(slots: int, policy: str = "horizon") -> dict[str, Any]:
        return {"budget": slots, "window": 32, "interval": 64, "answer": 2, "policy": policy}

    # The prompt never moves: in the first of each pair few slots do, in the second nearly all.
    report.step("20x4000 long prompt", lambda: steps(stepper, 20, 3456, 832, 256, held(512)))
    report.step("64x3000 long prompt", lambda: steps(stepper, 64, 2432, 832, 256, held(512)))
    report.step("profile", lambda: profile(stepper, held(512), work))
    report.step("throughput 1024", lambda: shrunk(stepper, SMALL, lambda: throughput(stepper, held(1024))))
    report.step("20x4000 long thought", lambda: steps(stepper, 20, 256, 4100, 256, held(3712)))
    report.step("20x4000 random", lambda: steps(stepper, 20, 3456, 832, 256, held(512, "random")))


def part_shape_head(report: Report, work: Path) -> None:
    """The plugin with a set for each kv head."""
    report.step("folder", lambda: str(shape_folder(work)))
    stepper = report_engine(report, lambda: shape_engine(work, plugin=True, cache_bytes=26 << 30))
    if stepper is None:
        return
    asked = {"budget": 512, "window": 32, "interval": 64, "answer": 2, "policy": "horizon"}
    report.step("20x4000 long prompt", lambda: steps(stepper, 20, 3456, 832, 256, asked))
    report.step("profile", lambda: profile(stepper, asked, work, "head"))
    report.step("64x3000 long prompt", lambda: steps(stepper, 64, 2432, 832, 256, asked))


def profile(stepper: Stepper, asked: dict[str, Any], work: Path, sets: str = "shared") -> dict[str, Any]:
    """Where the time of 96 steps goes, one eviction of 20 rows and several stampings among them."""
    import torch
    from torch.profiler import ProfilerActivity

    seen = {"step": 0}
    profiler = torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])

    def after() -> None:
        seen["step"] += 1
        if seen["step"] == 700:
            profiler.start()
        if seen["step"] == 796:
            profiler.stop()

    ids = random_prompts(20, 3456, 5)
    stepper.run([(one, params(832, asked, ignore_eos=True)) for one in ids], after)
    averages = profiler.key_averages()
    for name, key in (("cuda", "self_device_time_total"), ("cpu", "self_cpu_time_total")):
        table = averages.table(sort_by=key, row_limit=45, max_name_column_width=70)
        (work / f"profile-{sets}-{name}.txt").write_text(table)
    ranked = sorted(averages, key=lambda event: -event.self_device_time_total)[:14]
    return {event.key[:60]: [round(event.self_device_time_total / 96e3, 4), event.count] for event in ranked}


# All of it.


def compared(work: Path) -> dict[str, Any]:
    """Tokens beside tokens: how many answers are the same, and how near a choice the first was that is not."""

    def read(name: str) -> list[dict[str, Any]] | None:
        path = work / f"tokens-{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    pairs = {"plugin without a budget, vLLM alone": ("plugin-full", "alone-full"),
             "vLLM alone, vLLM alone in another order": ("alone-again", "alone-full"),
             "vLLM alone, ours": ("alone-full", "ours-full")}  # fmt: skip
    pairs |= {f"plugin, ours: {policy}": (f"plugin-{policy}", f"ours-{policy}") for policy in POLICIES}
    pairs |= {f"plugin with {policy}, without a budget": (f"plugin-{policy}", "plugin-full") for policy in POLICIES}
    found: dict[str, Any] = {}
    for name, (left_name, right_name) in pairs.items():
        one, other = read(left_name), read(right_name)
        if one is None or other is None:
            found[name] = "missing"
            continue
        differ = []
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            if a["ids"] == b["ids"]:
                continue
            at = next((i for i, (x, y) in enumerate(zip(a["ids"], b["ids"], strict=False)) if x != y), None)
            at = min(len(a["ids"]), len(b["ids"])) if at is None else at
            gaps = a.get("gaps") or []
            differ.append(
                {"problem": index, "token": at, "of": len(b["ids"]), "gap": gaps[at] if at < len(gaps) else None}
            )
        gaps = sorted(row["gap"] for row in differ if row["gap"] is not None)
        evictions = sum(answer.get("evictions", 0) for answer in other)
        found[name] = {"same": len(one) - len(differ), "of": len(one), "evictions": evictions, "gaps": gaps,
                       "first_differences": differ[:12]}  # fmt: skip
    return found


def main() -> None:
    """Run the parts, each in a process of its own, and put together what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default=",".join((*TOGETHER, "shape-plugin", "shape-alone")))
    parser.add_argument("--work", type=Path, default=Path("vllm_gpu_work"))
    parser.add_argument("--part", help="run this one here")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.part:
        report = Report(options.work / f"part-{options.part}.json")
        globals()[f"part_{options.part.replace('-', '_')}"](report, options.work)
        return
    asked = options.parts.split(",")
    groups = [[part for part in TOGETHER if part in asked], *([part] for part in IN_TURN if part in asked)]
    for group in groups:
        started = {part: start_part(part, options) for part in group}
        for part, (process, end) in started.items():
            try:
                process.wait(max(1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            print(f"[{part}] ended with {process.returncode}", flush=True)
        write(options)
    print("all done", flush=True)


def start_part(part: str, options: argparse.Namespace) -> tuple[subprocess.Popen[bytes], float]:
    """The process, and when it must have ended."""
    plugin = part in ("load", "plugin", "shape-plugin", "shape-head")
    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CACHE_ROOT": str((options.work / f"cache-{part}").resolve()),
        "TOKENIZERS_PARALLELISM": "false",
    }
    environment.pop("LEANTHINK_VLLM", None)
    if plugin:
        settings: dict[str, Any] = {"policies": list(POLICIES), "max_thought_slots": 512}
        if part.startswith("shape"):
            name = "head" if part == "shape-head" else "shared"
            predictor = str((options.work / "shape" / f"{name}.safetensors").resolve())
            settings = {"policies": ["horizon", "random"], "max_thought_slots": 4096,
                        "predictors": {"horizon": predictor}, "ignore_predictor_mismatch": True}  # fmt: skip
        environment["LEANTHINK_VLLM"] = json.dumps(settings)
    log = (options.work / f"log-{part}.txt").open("wb")
    command = [sys.executable, __file__, "--out", str(options.out), "--work", str(options.work), "--part", part]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log), time.monotonic() + LIMITS[part]


def write(options: argparse.Namespace) -> None:
    """All that is known by now."""
    found: dict[str, Any] = {"compared": compared(options.work)}
    for path in sorted(options.work.glob("part-*.json")):
        found[path.stem.removeprefix("part-")] = json.loads(path.read_text())
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
