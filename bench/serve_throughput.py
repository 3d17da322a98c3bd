"""Tokens per second through the server against the engine's own, on the same requests; they take turns.

    python bench/serve_throughput.py --out bench/results/serve-throughput.json

The engine runs in a process of its own as the server does, with as many threads; all requests are there at once. The
server is measured with whole answers and with streams; the clients share the machine with it.
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

from leanthink.bench.birth import certificate
from leanthink.bench.measure import spread
from leanthink.budget import Budget
from leanthink.engine import Engine
from leanthink.load import load
from leanthink.sampling import Sampling
from leanthink.tiny import tasks

BUDGET = Budget(slots=96, window=32, interval=32, answer=192)


def main() -> None:
    """Measure in turns, tell and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=1024, help="most tokens of a request")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--max-slots", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load("tiny")
    each = -(-options.requests // len(tasks.FAMILIES))
    problems = [problem.prompt for family in tasks.FAMILIES for problem in tasks.sample(family, 1, each, 0)]
    prompts = problems[: options.requests]
    memory = options.rows * options.max_slots * 8192 / 2**30
    flags = ["--rows", options.rows, "--max-slots", options.max_slots, "--kv-gib", memory, "--queue", options.requests]
    found: dict[str, list[float]] = {"engine": [], "whole": [], "streamed": []}
    with tempfile.TemporaryDirectory() as folder, running(Path(folder, "log"), *flags) as (_, port):
        for repeat in range(options.repeats + 1):
            for kind, rates in found.items():
                rate = (
                    by_engine(*loaded, prompts, options)
                    if kind == "engine"
                    else by_server(port, prompts, kind, options.tokens)
                )
                print("warm-up" if repeat == 0 else repeat, kind, f"{rate:.0f} tokens/s", flush=True)
                if repeat:
                    rates.append(rate)
    told = {kind: spread(rates) for kind, rates in found.items()}
    result = {
        "birth": certificate("cpu"),
        "cores": os.cpu_count(),
        "settings": {name: str(value) for name, value in vars(options).items()},
        "tokens_per_second": told,
        "whole_over_engine": told["whole"]["median"] / told["engine"]["median"],
        "streamed_over_engine": told["streamed"]["median"] / told["engine"]["median"],
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def by_engine(model: Any, tokenizer: Any, prompts: list[str], options: argparse.Namespace) -> float:
    """Tokens per second of the engine alone."""
    slots = options.rows * options.max_slots
    engine = Engine(model, tokenizer, slots=slots, rows=options.rows, row_slots=options.max_slots)
    start, tokens = time.perf_counter(), 0
    for seed, prompt in enumerate(prompts):
        engine.add(prompt, budget=BUDGET, sampling=Sampling(temperature=0.6, max_new_tokens=options.tokens, seed=seed))
    while engine.unfinished:
        tokens += sum(len(done.token_ids) for done in engine.step().finished.values())
    return tokens / (time.perf_counter() - start)


def by_server(port: int, prompts: list[str], kind: str, tokens_each: int) -> float:
    """Tokens per second as the clients see them."""
    streamed = {"stream": True, "stream_options": {"include_usage": True}} if kind == "streamed" else {}
    budget = {"budget": BUDGET.slots, "window": BUDGET.window, "interval": BUDGET.interval, "answer": BUDGET.answer}
    knobs = {"model": "tiny", "temperature": 0.6, "max_tokens": tokens_each} | budget | streamed
    bodies = [
        json.dumps(knobs | {"seed": seed, "messages": [{"role": "user", "content": prompt}]}).encode()
        for seed, prompt in enumerate(prompts)
    ]

    async def all_at_once() -> int:
        answers = await asyncio.gather(*(ask(port, body) for body in bodies))
        assert all(answer.complete and answer.usage is not None for answer in answers)
        return sum(answer.usage["completion_tokens"] for answer in answers if answer.usage)

    start = time.perf_counter()
    tokens = asyncio.run(all_at_once())
    return tokens / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
