"""Tokens per second through the server against the engine's own, on the same requests; they take turns.

    python bench/serve_throughput.py --out bench/results/serve-throughput.json

The engine runs in a process of its own as the server does, with as many threads; all requests are there at once. The
server is measured with whole answers and with streams; the clients share the machine with it. Beside tokens per second
it tells the processor seconds of the process that serves, which say the same where the machine has other work to do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from serve_client import ask, running

from leanthink.data.tasks import registry
from leanthink.engine.bench.measure import spread
from leanthink.engine.engine import Engine
from leanthink.engine.sampling import Sampling
from leanthink.models.loading import load
from leanthink.policies.budget import Budget
from leanthink.utils.provenance import provenance_record

BUDGET = Budget(slots=96, recent_window=32, eviction_interval=32, max_answer_slots=192)


def main() -> None:
    """Measure in turns, tell and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=1024, help="most tokens of a request")
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--max-slots", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load("tiny")
    each = -(-options.requests // len(registry.FAMILIES))
    problems = [problem.prompt for family in registry.FAMILIES for problem in registry.sample(family, 1, each, 0)]
    prompts = problems[: options.requests]
    memory = options.max_num_seqs * options.max_slots * 8192 / 2**30
    flags = [
        "--max-num-seqs",
        options.max_num_seqs,
        "--max-slots",
        options.max_slots,
        "--kv-gib",
        memory,
        "--queue",
        options.requests,
    ]
    rates: dict[str, list[float]] = {"engine": [], "whole": [], "streamed": []}
    costs: dict[str, list[float]] = {kind: [] for kind in rates}
    with tempfile.TemporaryDirectory() as folder, running(Path(folder, "log"), *flags) as (process, port):
        for repeat in range(options.repeats + 1):
            for kind in rates:
                pid = os.getpid() if kind == "engine" else process.pid
                before, start = processor_seconds(pid), time.perf_counter()
                if kind == "engine":
                    tokens = by_engine(*loaded, prompts, options)
                else:
                    tokens = by_server(port, prompts, kind, options.tokens)
                rate = tokens / (time.perf_counter() - start)
                cost = 1000 * (processor_seconds(pid) - before) / tokens
                told = f"{rate:.0f} tokens/s, {cost:.2f} processor seconds for 1000 tokens"
                print("warm-up" if repeat == 0 else repeat, kind, told, flush=True)
                if repeat:
                    rates[kind].append(rate)
                    costs[kind].append(cost)
    speed, cost_of = ({kind: spread(found) for kind, found in of.items()} for of in (rates, costs))
    result = {
        "birth": provenance_record("cpu"),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "settings": {name: str(value) for name, value in vars(options).items()},
        "tokens_per_second": speed,
        "processor_seconds_for_1000_tokens": cost_of,
        "tokens_per_second_over_engine": {
            kind: speed[kind]["median"] / speed["engine"]["median"] for kind in ("whole", "streamed")
        },
        "tokens_per_processor_second_over_engine": {
            kind: cost_of["engine"]["median"] / cost_of[kind]["median"] for kind in ("whole", "streamed")
        },
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def processor_seconds(pid: int) -> float:
    """What a process has used so far, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def by_engine(model: Any, tokenizer: Any, prompts: list[str], options: argparse.Namespace) -> int:
    """Tokens that the engine alone generates."""
    slots = options.max_num_seqs * options.max_slots
    engine = Engine(model, tokenizer, slots=slots, rows=options.max_num_seqs, row_slots=options.max_slots)
    tokens = 0
    for seed, prompt in enumerate(prompts):
        engine.add(prompt, budget=BUDGET, sampling=Sampling(temperature=0.6, max_new_tokens=options.tokens, seed=seed))
    while engine.unfinished:
        tokens += sum(len(done.token_ids) for done in engine.step().finished.values())
    return tokens


def by_server(port: int, prompts: list[str], kind: str, tokens_each: int) -> int:
    """Tokens that the clients get."""
    streamed = {"stream": True, "stream_options": {"include_usage": True}} if kind == "streamed" else {}
    budget = {
        "budget": BUDGET.slots,
        "recent_window": BUDGET.recent_window,
        "eviction_interval": BUDGET.eviction_interval,
        "max_answer_slots": BUDGET.max_answer_slots,
    }
    knobs = {"model": "tiny", "temperature": 0.6, "max_tokens": tokens_each} | budget | streamed
    bodies = [
        json.dumps(knobs | {"seed": seed, "messages": [{"role": "user", "content": prompt}]}).encode()
        for seed, prompt in enumerate(prompts)
    ]

    async def all_at_once() -> int:
        answers = await asyncio.gather(*(ask(port, body) for body in bodies))
        assert all(answer.complete and answer.usage is not None for answer in answers)
        return sum(answer.usage["completion_tokens"] for answer in answers if answer.usage)

    return asyncio.run(all_at_once())


if __name__ == "__main__":
    main()
