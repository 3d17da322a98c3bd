"""What the parts of bench/vllm_gpu.py share: reports, vLLM's engine, its steps one by one, and answers."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from leanthink.data.tasks import registry
from leanthink.data.tasks.problem import Problem
from leanthink.integrations.vllm.v2.version import CHECKS, SCHEDULERS

SCHEDULER = SCHEDULERS[True]  # with asynchronous scheduling
LEVELS = (2, 3, 4, 5)
SIZES = (1, 2, 4, 8, 16, 20, 24, 32, 40, 48, 64)
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


def engine(*, plugin: bool, sizes: Sequence[int] = SIZES, **options: Any) -> Any:
    """VLLM with full CUDA graphs for decoding batches of these sizes."""
    from vllm import LLM

    given: dict[str, Any] = {
        "dtype": "bfloat16",
        "block_size": BLOCK,
        "async_scheduling": True,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "compilation_config": {"cudagraph_capture_sizes": list(sizes), "cudagraph_mode": "FULL_AND_PIECEWISE"},
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


def held_out(count: int, seed: int) -> list[Problem]:
    """Held-out problems, as many of each family and level as it takes, in turns."""
    cells = [(family, level) for level in LEVELS for family in registry.FAMILIES]
    each = -(-count // len(cells))
    by_cell = [registry.sample(family, level, each, seed) for family, level in cells]
    return [problem for of_all in zip(*by_cell, strict=True) for problem in of_all][:count]


def request_seeds(count: int) -> range:
    """The seed of each request, in their order: by it policies draw, and noted scores are found again."""
    return range(1, count + 1)


def extra_args(asked: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a request asks of the plugin, under the names that vLLM passes on."""
    return None if asked is None else {f"leanthink_{name}": value for name, value in asked.items()}


def await_turn(report: Report, work: Path) -> None:
    """Say that the part is ready, and wait until nothing else is measured."""
    name = report.path.stem.removeprefix("part-")
    (work / f"ready-{name}").touch()
    while not (work / f"turn-{name}").exists():
        time.sleep(0.1)


def params(tokens: int, asked: dict[str, Any] | None = None, **more: Any) -> Any:
    """Greedy."""
    from vllm import SamplingParams

    extra = extra_args(asked)
    return SamplingParams(temperature=0, max_tokens=tokens, extra_args=extra, **more)


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
