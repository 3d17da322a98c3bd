"""The parts of bench/vllm_gpu.py about `tiny`: do hooks and kernels work, are its tokens right, is nothing left?"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import vllm_http
import vllm_tokens
from vllm_parts import (
    BLOCK,
    SCHEDULER,
    Report,
    Stepper,
    answers,
    engine,
    held_out,
    params,
    report_engine,
    request_seeds,
)

from leanthink.data.tasks.problem import Problem
from leanthink.integrations.vllm.v2.version import CHECKS

BUDGET = {"budget": 96, "recent_window": 32, "eviction_interval": 32}
POLICIES = ("horizon", "dynts", "random", "window", "sinks")
COUNT, TOKENS, ROWS, ANSWER = 200, 900, 32, 64


def problems() -> list[Problem]:
    """Held-out problems of every family and of levels 2 to 5."""
    return held_out(COUNT, 1)


def prompts() -> list[list[int]]:
    """Their tokens."""
    from transformers import AutoTokenizer

    from leanthink.models.prompt import encode_prompt
    from leanthink.models.tiny import weights_path

    tokenizer = AutoTokenizer.from_pretrained(weights_path())
    return [list(encode_prompt(tokenizer, 0, problem.prompt)) for problem in problems()]


def tiny_engine(*, plugin: bool, model: Path | None = None, **options: Any) -> Stepper:
    """The embedded reasoner, or a copy of it, in a small cache."""
    from leanthink.models.tiny import weights_path

    return Stepper(
        engine(
            plugin=plugin,
            model=str(model or weights_path()),
            max_model_len=2048,
            max_num_seqs=ROWS,
            max_num_batched_tokens=2048,
            kv_cache_memory_bytes=2 << 30,
            gpu_memory_utilization=0.2,
            **options,
        )
    )


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


def part_plugin(report: Report, work: Path) -> None:
    """The plugin: without a budget, with one under each policy, its bound, and that nothing is left."""
    stepper = report_engine(report, lambda: tiny_engine(plugin=True))
    if stepper is None:
        return
    ids, scores = prompts(), vllm_tokens.Scores()
    scores.watch(POLICIES)

    def tokens(name: str, asked: dict[str, Any] | None) -> dict[str, Any]:
        before = stepper.runner.model_state.rows.evictions
        given = [params(TOKENS, asked, logprobs=2, seed=seed) for seed in request_seeds(len(ids))]
        ran = stepper.run(list(zip(ids, given, strict=True)))
        found = [answer | {"prompt": len(one)} for answer, one in zip(answers(ran), ids, strict=True)]
        (work / f"tokens-plugin-{name}.json").write_text(json.dumps(found))
        scores.take(work / f"scores-plugin-{name}.pt")
        return {"correct": correct(found), "steps": len(ran["ends"]), "graph_replays": ran["graph_replays"],
                "evictions_due": stepper.runner.model_state.rows.evictions - before}  # fmt: skip

    report.step("full", lambda: tokens("full", None))
    for policy in POLICIES:
        report.step(policy, partial(tokens, policy, BUDGET | {"policy": policy}))
    report.step("bound", lambda: bound(stepper, ids))
    report.step("preempted", lambda: preempted(stepper, ids, work))
    report.step("mixed", lambda: mixed(stepper, ids))
    report.step("left", lambda: left(stepper))


def bound(stepper: Stepper, ids: list[list[int]]) -> dict[str, Any]:
    """Slots and blocks that any request ever held, beside what it may: looked at after every step."""
    asked = BUDGET | {"policy": "random", "max_answer_slots": ANSWER}
    seen = {"slots_over": -(10**9), "blocks_over": -(10**9)}

    def look() -> None:
        lengths = stepper.runner.model_state.lengths_R.tolist()
        running = stepper.core.scheduler.running
        seen["blocks_over"] = max(seen["blocks_over"], blocks_over(stepper))
        if running:
            most = max(may_hold(request) for request in running)
            seen["slots_over"] = max(seen["slots_over"], max(lengths[: len(running)]) - most)

    stepper.runner.model_state.lengths_R.zero_()
    stepper.run([(one, params(TOKENS, asked)) for one in ids[:ROWS]], look)
    assert seen["slots_over"] <= 0, seen
    assert seen["blocks_over"] <= 0, seen
    return seen


def may_hold(request: Any) -> int:
    """Slots that a request with BUDGET and ANSWER may hold."""
    return int(request.num_prompt_tokens + BUDGET["budget"] + BUDGET["eviction_interval"] + ANSWER)


def blocks_over(stepper: Stepper) -> int:
    """Blocks that any running request with a budget holds beyond its bound, at most."""
    manager = stepper.core.scheduler.kv_cache_manager.coordinator.single_type_managers[0]
    bounded = [one for one in stepper.core.scheduler.running if one.sampling_params.extra_args]
    over = [len(manager.req_to_blocks.get(one.request_id, ())) - -(-may_hold(one) // BLOCK) for one in bounded]
    return max(over, default=-(10**9))


def mixed(stepper: Stepper, ids: list[list[int]]) -> dict[str, Any]:
    """1000 requests, of every policy and of none, with shared prompts; many are aborted, some preempted."""
    drawn, scheduler = random.Random(0), stepper.core.scheduler
    alive = {f"mixed-{index}" for index in range(1000)}
    for index in range(1000):
        policy = drawn.choice([*POLICIES, None])
        asked = None if policy is None else BUDGET | {"policy": policy, "max_answer_slots": ANSWER}
        given = params(drawn.randint(20, 300), asked, seed=index + 1)
        stepper.engine.add_request(f"mixed-{index}", {"prompt_token_ids": ids[drawn.randrange(40)]}, given)
    told = {"requests": 1000, "aborted": 0, "preempted": 0, "finished": 0, "blocks_over": -(10**9)}
    while stepper.engine.has_unfinished_requests():
        for output in stepper.engine.step():
            if output.finished:
                told["finished"] += 1
                alive.discard(output.request_id)
        told["blocks_over"] = max(told["blocks_over"], blocks_over(stepper))
        if drawn.random() < 0.05 and alive:
            name = drawn.choice(sorted(alive))
            alive.discard(name)
            stepper.engine.abort_request([name])
            told["aborted"] += 1
        if drawn.random() < 0.03 and scheduler.running:
            scheduler._preempt_request(scheduler.running.pop(), 0.0)
            told["preempted"] += 1
    assert told["blocks_over"] <= 0, told
    assert told["finished"] + told["aborted"] == told["requests"], told
    return told


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
    from leanthink.policies.budget import REQUEST_KEYS

    model, tokenizer = load("tiny", device="cuda")
    report.found["dtype"] = str(next(model.parameters()).dtype)
    budget = Budget(**{REQUEST_KEYS[name]: value for name, value in BUDGET.items()})
    scores = vllm_tokens.Scores()
    scores.watch(POLICIES)
    samplings = [Sampling(max_new_tokens=TOKENS, seed=seed) for seed in request_seeds(COUNT)]
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


def part_ranks(report: Report, work: Path) -> None:
    """Tensor parallelism on two GPUs: both ranks keep the same slots; the tokens beside those of one."""
    from vllm.sampling_params import RequestOutputKind

    from leanthink.models.tiny import weights_path

    held: list[Any] = []

    def start() -> list[str]:
        given: Any = {"model": str(weights_path()), "max_model_len": 2048, "max_num_seqs": ROWS,
                 "max_num_batched_tokens": 2048, "kv_cache_memory_bytes": 2 << 30,
                 "gpu_memory_utilization": 0.2}  # fmt: skip
        held.append(engine(plugin=True, tensor_parallel_size=2, worker_extension_cls="vllm_inside.Inside", **given))
        return list(held[0].collective_rpc("inside_hash"))

    report.step("start", start)
    for policy in ("horizon", "dynts", "random") if held else ():

        def run(policy: str = policy) -> dict[str, Any]:
            given = [params(TOKENS, BUDGET | {"policy": policy}, seed=seed, output_kind=RequestOutputKind.FINAL_ONLY)
                     for seed in request_seeds(COUNT)]  # fmt: skip
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
             "--logits-processors", CHECKS, "--scheduler-cls", SCHEDULER,
             "--reasoning-parser", "deepseek_r1"]  # fmt: skip
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
