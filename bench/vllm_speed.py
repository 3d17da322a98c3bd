"""The timed parts of bench/vllm_gpu.py: random weights of the shape of an 8B model, vLLM as its users run it.

The engine core has a process of its own, scheduling is asynchronous, decoding replays full CUDA graphs. A step's time
is that between two results of the core, by the core's own clock. Tokens are not turned into text: random weights
sample ids that no tokenizer here knows, of which a decoder keeps all and decodes all again at every step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vllm_parts import BLOCK, SIZES, extra_args

from leanthink.engine.bench.fixture import random_prompt
from leanthink.engine.bench.vllm_client import Client
from leanthink.engine.bench.vllm_process import rate
from leanthink.engine.bench.weights import config_of
from leanthink.policies.policy import Granularity

SHAPE = "llama-3.1-8b"
GIB = 1 << 30
STEPS = 256  # that are timed, the last ones of all requests together
FEW, MANY = (20, 4000), (64, 3000)  # rows, and slots that each holds in the middle of these steps
ASKED = {"recent_window": 32, "eviction_interval": 64, "max_answer_slots": 2}


def shape_folder(work: Path) -> Path:
    """A config of the shape, and random predictors for it: one set for all, and one for each kv head."""
    import torch

    from leanthink.models.predictor import Predictor, save_predictor

    folder = work / "shape"
    if (folder / "done").exists():
        return folder
    folder.mkdir(exist_ok=True)
    config = config_of(SHAPE)
    config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
    config.bos_token_id, config.eos_token_id = 0, 1
    config.save_pretrained(folder)
    torch.manual_seed(0)
    sets = config.num_hidden_layers * config.num_key_value_heads
    kinds: tuple[tuple[str, Granularity, int], ...] = (("shared", "model", 1), ("head", "head", sets))
    for name, granularity, num_sets in kinds:
        predictor = Predictor(
            target="horizon", hidden_size=config.hidden_size, horizons=(16, 32, 64, 128, 256),
            offsets=(0, 1, 2, 4, 8, 12), granularity=granularity, num_sets=num_sets, width=1024,
        )  # fmt: skip
        save_predictor(predictor, folder / f"{name}.safetensors", base_fingerprint="0" * 64, data={}, metrics={})
    (folder / "done").touch()
    return folder


class Inner(Client):
    """What is seen inside the core too."""

    def __init__(self, llm: Any) -> None:
        super().__init__(llm)
        (self.made_of,) = self.inside("inside_start")

    def inside(self, method: str, *given: Any) -> list[Any]:
        """Call a method of bench/vllm_inside.py."""
        return list(self.llm.collective_rpc(method, args=given))

    def run(
        self,
        ids: Sequence[list[int]],
        tokens: int,
        asked: dict[str, Any] | None,
        at: dict[int, Callable[[], None]],
        seconds: float = float("inf"),
    ) -> dict[str, Any]:
        """All of these prompts, each with so many tokens; `at` is called after so many results.

        What is not done after so many seconds is aborted.
        """
        extra, seen = extra_args(asked), 0
        self.results, start = [], time.perf_counter()
        self.inside("inside_read", 0)
        for one in ids:
            self.send(one, tokens, extra)
        while self.unfinished:
            if time.perf_counter() - start > seconds:
                self.abort()
                break
            self.engine.step()
            for step in range(seen, len(self.results)):
                at.get(step, lambda: None)()
            seen = len(self.results)
        took = time.perf_counter() - start
        (inside,) = self.inside("inside_read", len(ids))
        return {"seconds": took, "written": sum(len(names) for _, names in self.results), "inside": inside}


def asked_of(budget: int | None, policy: str = "horizon") -> dict[str, Any] | None:
    """What a request says; None keeps everything."""
    return None if budget is None else {"budget": budget, "policy": policy, **ASKED}


def speed_client(
    work: Path, *, plugin: bool, engine: Callable[..., Any], cache_bytes: int, longest: int = 8192, rows: int = MANY[0]
) -> Inner:
    """Weights that were never loaded; requests of at most `longest` tokens, `rows` at a time."""
    from leanthink.models.tiny import weights_path

    client = Inner(
        engine(
            plugin=plugin,
            model=str(work / "shape"),
            tokenizer=str(weights_path()),
            load_format="dummy",
            max_model_len=longest,
            max_num_seqs=rows,
            sizes=sorted({*SIZES, *range(64, rows + 1, 16)}),
            max_num_batched_tokens=8192,
            kv_cache_memory_bytes=cache_bytes,
            gpu_memory_utilization=0.8,
            worker_extension_cls="vllm_inside.Inside",
        )
    )
    client.run(random_prompts(20, 512, 1), 16, None, {})
    return client


def random_prompts(count: int, tokens: int, seed: int) -> list[list[int]]:
    """Different from each other in every block."""
    return [random_prompt(250, tokens, 1000 * seed + index) for index in range(count)]


def steps(client: Inner, held: tuple[int, int], prompt: int, tokens: int, asked: dict[str, Any] | None) -> Any:
    """Milliseconds of the last STEPS steps in which all rows decode."""
    rows = held[0]
    ran = client.run(random_prompts(rows, prompt, 100 * rows + prompt), tokens, asked, {})
    ms = sorted(ms for _, ms in client.steps_of_all(rows)[-STEPS - 4 : -4])
    lower, median, upper = statistics.quantiles(ms, n=4)
    return {
        "rows": rows, "prompt": prompt, "tokens": tokens, "steps": len(ms), "median_ms": round(median, 3),
        "quartiles_ms": [round(lower, 3), round(upper, 3)], "mean_ms": round(statistics.mean(ms), 3),
        "p95_ms": round(ms[int(0.95 * len(ms))], 3), "most_ms": round(ms[-1], 3), "inside": ran["inside"],
    }  # fmt: skip


def full_steps(client: Inner, held: tuple[int, int]) -> Any:
    """Nothing is evicted; in the middle of the timed steps each row holds as many slots as asked for."""
    tokens = STEPS + 84  # the first steps also feed others' prompts
    return steps(client, held, held[1] - tokens + STEPS // 2, tokens, None)


def bounded_steps(client: Inner, held: tuple[int, int], budget: int, policy: str = "horizon") -> Any:
    """Evictions in every one of the timed steps' intervals; the prompt fills what the budget leaves."""
    asked = asked_of(budget, policy)
    tokens = budget + ASKED["eviction_interval"] + STEPS + 20
    return steps(client, held, held[1] - budget - ASKED["eviction_interval"] // 2, tokens, asked)


def profile(client: Inner, held: tuple[int, int], path: Path, budget: int | None) -> Any:
    """Where the time of 128 steps goes: kernels and launches of a step, and ours one by one."""
    found: list[Any] = []
    first = 40 if budget is None else budget + ASKED["eviction_interval"] + 20

    def stop() -> None:
        found.extend(client.inside("inside_profile", str(path)))

    asked = asked_of(budget)
    prompt = held[1] - first - 64 if budget is None else held[1] - budget - ASKED["eviction_interval"] // 2

    def start() -> None:
        client.inside("inside_profile", None)

    at = {first: start, first + 128: stop}
    client.run(random_prompts(held[0], prompt, 5), first + 160, asked, at)
    return found[0]


def long_throughput(
    client: Inner, requests: int, prompt: int, tokens: int, budget: int | None, seconds: float
) -> dict[str, Any]:
    """Tokens a second of requests that come all at once and take longer than there is time."""
    asked = asked_of(budget)
    prompts = random_prompts(requests, prompt, 7)
    start = time.monotonic()  # the clock of results
    ran = client.run(prompts, tokens, asked, {}, seconds=seconds)
    return {
        "requests": requests, "prompt": prompt, "each": tokens, "budget": budget, "inside": ran["inside"],
        **rates(start, client.results),
    }  # fmt: skip


def rates(start: float, results: Sequence[tuple[float, list[str]]]) -> dict[str, Any]:
    """Over all of it, and over its second half, when what ends is replaced by what begins."""
    half = (start + results[-1][0]) / 2
    return {"all": rate([(start, []), *results]), "second_half": rate([one for one in results if one[0] >= half])}


def moves_speed() -> dict[str, Any]:
    """Milliseconds to bring 20 requests of this shape from 4064 slots back to 4000, nearly all of which move."""
    import torch

    from leanthink.integrations.vllm.v2.moves import Caches

    caches = torch.zeros(32, 20 * 260, 8, BLOCK, 256, dtype=torch.bfloat16, device="cuda")
    table = torch.randperm(20 * 260, device="cuda")[: 20 * 260].view(20, 260).int()
    first, counts = torch.full((20,), 32, device="cuda"), torch.full((20,), 4000, device="cuda")
    kept = torch.stack([torch.randperm(4064)[:4000].sort().values for _ in range(20)])[:, None].cuda()
    mover, found = Caches(list(caches)), {}
    for name, sets in (("shared", kept), ("per_head", kept.expand(-1, 256, -1).contiguous())):
        times = []
        for _ in range(7):
            torch.cuda.synchronize()
            start = time.perf_counter()
            mover.move_at_once(table, first, sets, counts)
            torch.cuda.synchronize()
            times.append(1e3 * (time.perf_counter() - start))
        found[name] = round(statistics.median(times), 3)
    return found
