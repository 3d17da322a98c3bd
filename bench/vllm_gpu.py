"""The plugin inside vLLM on a GPU: does it run, are its tokens right, what does a step cost, how many tokens a second?

    python bench/vllm_gpu.py --out vllm_gpu.json [--parts load,alone,plugin,ours,shape-alone,shape-plugin]

Needs vLLM's CUDA build, and the plugin installed so that vLLM finds it. Every part runs in a process of its own, says
on its own what went wrong, and writes what it found as soon as it has it. `load`, `alone`, `plugin` and `ours` are
about `tiny` and run side by side, as nothing is timed there. `shape-*` (bench/vllm_speed.py) are about random weights
of the shape of an 8B model: they may start beside others, and measure one after the other with nothing beside them.
`shape-head` (a set for each kv head), `shape-long` (more slots move), `big-alone` and `big-plugin` (throughput, longer)
run when they are asked for, and so do `fp8` (FP8 weights and cache), `http` (vLLM's server) and `ranks` (two GPUs),
which are about `tiny`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import vllm_http
import vllm_speed as speed
import vllm_tokens

TOGETHER = ("load", "alone", "plugin", "ours", "fp8", "http", "ranks")
IN_TURN = ("shape-alone", "shape-plugin", "shape-head", "shape-long", "big-alone", "big-plugin")
DEFAULT = ("load", "alone", "plugin", "ours", "shape-alone", "shape-plugin")
LIMITS = {"load": 240, "alone": 300, "plugin": 360, "ours": 300, "fp8": 360, "http": 360, "ranks": 360}  # seconds
MEASURES = 320  # seconds that a timed part may take when its turn has come, its start included
BESIDE = 110  # GiB of a GPU that holds two engines of the shape
BUDGET = {"budget": 96, "window": 32, "interval": 32}
POLICIES = ("horizon", "dynts", "random", "window", "sinks")
COUNT, TOKENS, ROWS = 60, 900, 32
V2 = "leanthink.integrations.vllm.v2"
CHECKS = f"{V2}.checks:Checks"
SCHEDULER = f"{V2}.scheduler.BoundedAsyncScheduler"
SIZES = [1, 2, 4, 8, 16, 20, 24, 32, 40, 48, 64]
BLOCK = 16
BEGAN = time.monotonic()


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
    """VLLM with full CUDA graphs for decoding."""
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
    report.step("rows", fused_rows)


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
        counts = torch.tensor([kept_n, drawn.choice([0, kept_n])], device="cuda")
        first = torch.tensor([drawn.randint(0, 40), 7], device="cuda")
        for sets in (1, layers, layers * heads):
            chosen = [torch.randperm(slots)[:kept_n].sort().values for _ in range(2 * sets)]
            kept = torch.stack(chosen).view(2, sets, kept_n).cuda()
            fast.move_at_once(table, first, kept, counts)
            slow.move_plainly(table, first, kept, counts)
            assert torch.equal(raw, twin), (trial, sets)
            tried += 1
    return {"cases": tried}


def fused_rows() -> dict[str, Any]:
    """The tests of the other kernels, compiled."""
    tests = Path(__file__).parent.parent / "tests" / "integrations" / "test_vllm_v2_interpreted.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", str(tests)]
    environment = os.environ | {"LEANTHINK_TEST_GPU": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    return {"tests": done.stdout.splitlines()[-1]}


def tiny_engine(*, plugin: bool, **options: Any) -> Stepper:
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
            **options,
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
    ids, scores = prompts(), vllm_tokens.Scores()
    scores.watch(POLICIES)

    def tokens(name: str, asked: dict[str, Any] | None) -> dict[str, Any]:
        before = stepper.runner.model_state.rows.evictions
        ran = stepper.run([(one, params(TOKENS, asked, logprobs=2, seed=seed)) for seed, one in enumerate(ids, 1)])
        found = [answer | {"prompt": len(one)} for answer, one in zip(answers(ran), ids, strict=True)]
        (work / f"tokens-plugin-{name}.json").write_text(json.dumps(found))
        scores.take(work / f"scores-plugin-{name}.pt")
        return {"correct": correct(found), "steps": len(ran["ends"]), "graph_replays": ran["graph_replays"],
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
    budget = Budget(slots=BUDGET["budget"], recent_window=BUDGET["window"], eviction_interval=BUDGET["interval"])
    scores = vllm_tokens.Scores()
    scores.watch(POLICIES)
    samplings = [Sampling(max_new_tokens=TOKENS, seed=seed) for seed in range(1, COUNT + 1)]
    for policy in ("full", *POLICIES):

        def run(policy: str = policy) -> dict[str, Any]:
            completions = generate(
                model, tokenizer, prompts(), policy=policy, budget=None if policy == "full" else budget,
                sampling=samplings, max_rows=ROWS,
            )  # fmt: skip
            found = [{"ids": list(one.token_ids), "evictions": one.evictions} for one in completions]
            (work / f"tokens-ours-{policy}.json").write_text(json.dumps(found))
            scores.take(work / f"scores-ours-{policy}.pt")
            return {"correct": correct(found), "evictions": sum(one.evictions for one in completions)}

        report.step(policy, run)


def part_fp8(report: Report, work: Path) -> None:
    """Weights and cache in FP8, made so on the spot: without a budget, and with one."""
    stepper = report_engine(report, lambda: tiny_engine(plugin=True, quantization="fp8", kv_cache_dtype="fp8"))
    if stepper is None:
        return
    for name, asked in (("full", None), *((one, BUDGET | {"policy": one}) for one in ("horizon", "random"))):

        def run(name: str = name, asked: dict[str, Any] | None = asked) -> dict[str, Any]:
            ran = stepper.run([(one, params(TOKENS, asked, seed=seed)) for seed, one in enumerate(prompts(), 1)])
            found = answers(ran)
            (work / f"tokens-fp8-{name}.json").write_text(json.dumps(found))
            return {"correct": correct(found), "of": len(found), "graph_replays": ran["graph_replays"]}

        report.step(name, run)


def part_ranks(report: Report, work: Path) -> None:
    """Tensor parallelism on two GPUs: both ranks keep the same slots; the tokens beside those of one."""
    from vllm.sampling_params import RequestOutputKind

    from leanthink.models.tiny import weights_path

    held: list[Any] = []

    def start() -> list[str]:
        given = {"model": str(weights_path()), "max_model_len": 2048, "max_num_seqs": ROWS,
                 "max_num_batched_tokens": 2048, "kv_cache_memory_bytes": 2 << 30,
                 "gpu_memory_utilization": 0.2}  # fmt: skip
        held.append(engine(plugin=True, tensor_parallel_size=2, worker_extension_cls="vllm_inside.Inside", **given))
        return list(held[0].collective_rpc("inside_hash"))

    report.step("start", start)
    for policy in ("horizon", "dynts", "random") if held else ():

        def run(policy: str = policy) -> dict[str, Any]:
            given = [params(TOKENS, BUDGET | {"policy": policy}, seed=seed, output_kind=RequestOutputKind.FINAL_ONLY)
                     for seed in range(1, COUNT + 1)]  # fmt: skip
            begin = time.perf_counter()
            outputs = held[0].generate([{"prompt_token_ids": one} for one in prompts()], given, use_tqdm=False)
            seconds = time.perf_counter() - begin
            found = [{"ids": list(output.outputs[0].token_ids)} for output in outputs]
            (work / f"tokens-ranks-{policy}.json").write_text(json.dumps(found))
            hashes = held[0].collective_rpc("inside_hash")
            assert len(set(hashes)) == 1, hashes
            return {"hashes": hashes, "requests": COUNT, "correct": correct(found), "seconds": round(seconds, 2)}

        report.step(policy, run)


def correct(found: list[dict[str, Any]]) -> int:
    """Answers that are right."""
    from transformers import AutoTokenizer

    from leanthink.data.grading.answer_extraction import last_boxed
    from leanthink.data.tasks import registry
    from leanthink.models.tiny import weights_path

    tokenizer = AutoTokenizer.from_pretrained(weights_path())
    texts = [tokenizer.decode(answer["ids"]) for answer in found]
    return sum(registry.is_correct(one, last_boxed(text)) for one, text in zip(problems(), texts, strict=True))


def part_http(report: Report, work: Path) -> None:
    """VLLM's server beside `LLM()`: the same tokens, streams, refusals."""
    ids, texts = prompts()[:24], [one.prompt for one in problems()[:24]]
    asked = BUDGET | {"policy": "random"}
    flags = ["--dtype", "bfloat16", "--max-model-len", "2048", "--block-size", str(BLOCK), "--max-num-seqs", str(ROWS),
             "--kv-cache-memory-bytes", str(2 << 30), "--gpu-memory-utilization", "0.2",
             "--logits-processors", CHECKS, "--scheduler-cls", SCHEDULER]  # fmt: skip
    plain: list[list[int]] = []

    def start() -> dict[str, int]:
        stepper = tiny_engine(plugin=True)
        ran = stepper.run([(one, params(TOKENS, asked)) for one in ids])
        plain.extend(answer["ids"] for answer in answers(ran))
        return {"answers": len(plain)}

    report.step("LLM()", start)
    with vllm_http.served(work, flags):
        for name, run in vllm_http.checks(ids, texts, plain, asked).items():
            report.step(name, run)


# An 8B shape.


def report_client(report: Report, work: Path, *, plugin: bool, cache_gib: int = 26) -> Any:
    """The engine, ready, when its turn has come; None if it did not start."""
    report.step("folder", lambda: str(speed.shape_folder(work)))
    held: list[Any] = []

    def start() -> Any:
        held.append(speed.speed_client(work, plugin=plugin, engine=engine, cache_bytes=cache_gib * speed.GIB))
        return held[0].made_of

    report.step("start", start)
    name = report.path.stem.removeprefix("part-")
    (work / f"ready-{name}").touch()
    while not (work / f"turn-{name}").exists():  # nothing else is measured
        time.sleep(0.1)
    return held[0] if held else None


def part_shape_alone(report: Report, work: Path) -> None:
    """VLLM without the plugin."""
    client = report_client(report, work, plugin=False)
    if client is None:
        return
    report.step("20x4000", lambda: speed.full_steps(client, speed.FEW))
    report.step("64x3000", lambda: speed.full_steps(client, speed.MANY))
    report.step("20x4000 again", lambda: speed.full_steps(client, speed.FEW))
    report.step("throughput", lambda: speed.throughput(client, 64 * 1024, 80, 512, 2560, None))
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
    report.step("throughput 1024", lambda: speed.throughput(client, 64 * 1024, 80, 512, 2560, 1024))
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


def part_big_alone(report: Report, work: Path) -> None:
    """Throughput of vLLM without the plugin."""
    client = report_client(report, work, plugin=False, cache_gib=11)
    if client is not None:
        report.step("throughput", lambda: speed.throughput(client, 80 * 1024, 96, 512, 4096, None))


def part_big_plugin(report: Report, work: Path) -> None:
    """The same with budgets."""
    client = report_client(report, work, plugin=True, cache_gib=11)
    if client is None:
        return
    for n in (1024, 2048):
        report.step(f"throughput {n}", lambda n=n: speed.throughput(client, 80 * 1024, 96, 512, 4096, n))


# All of it.


def main() -> None:
    """Run the parts, each in a process of its own, and put together what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(DEFAULT))
    parser.add_argument("--work", type=Path, default=Path("vllm_gpu_work"))
    parser.add_argument("--part", help="run this one here")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.part:
        report = Report(options.work / f"part-{options.part}.json")
        globals()[f"part_{options.part.replace('-', '_')}"](report, options.work)
        return
    asked = options.parts.split(",")
    for told in (*options.work.glob("turn-*"), *options.work.glob("ready-*")):
        told.unlink()
    beside, in_turn = [part for part in TOGETHER if part in asked], [part for part in IN_TURN if part in asked]
    early = in_turn[: 2 if memory_gib() >= BESIDE else 1]
    started = {part: start_part(part, options) for part in beside}
    if in_turn:
        speed.shape_folder(options.work)
    started |= {part: start_part(part, options) for part in early}
    for part in beside:
        wait_for(part, started[part], LIMITS[part], options)
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
    timed, own = part in IN_TURN, part in (*IN_TURN, "ranks")
    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if own else "0",
        "VLLM_CACHE_ROOT": str((options.work / f"cache-{part}").resolve()),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.resolve()), os.environ.get("PYTHONPATH", "")]),
    }
    environment.pop("LEANTHINK_VLLM", None)
    if part in ("load", "plugin", "fp8", "http", "ranks"):
        settings: dict[str, Any] = {"policies": list(POLICIES), "max_thought_slots": 512}
        environment["LEANTHINK_VLLM"] = json.dumps(settings)
    elif timed and not part.endswith("alone"):
        name = "head" if part == "shape-head" else "shared"
        predictor = str((options.work / "shape" / f"{name}.safetensors").resolve())
        settings = {"policies": ["horizon", "random"], "max_thought_slots": 4096,
                    "predictors": {"horizon": predictor}, "ignore_predictor_mismatch": True}  # fmt: skip
        environment["LEANTHINK_VLLM"] = json.dumps(settings)
    log = (options.work / f"log-{part}.txt").open("wb")
    command = [sys.executable, __file__, "--out", str(options.out), "--work", str(options.work), "--part", part]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def write(options: argparse.Namespace) -> None:
    """All that is known by now."""
    found: dict[str, Any] = {"compared": vllm_tokens.compared(options.work, POLICIES, BUDGET)}
    for path in sorted(options.work.glob("part-*.json")):
        found[path.stem.removeprefix("part-")] = json.loads(path.read_text())
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
