"""The process in which part `vllm-baseline` measures: python -m leanthink.engine.bench.vllm_process ASKED FOUND."""

from __future__ import annotations

import json
import pickle
import random
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from leanthink.engine.bench.fixture import random_prompt
from leanthink.engine.bench.measure import spread
from leanthink.engine.bench.options import Options
from leanthink.engine.bench.prompts import summary
from leanthink.engine.bench.vllm_client import Client

FILLED = 0.95  # of the cache, by requests in the middle of their lives; what is left goes to new ones


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is measured: of these parts the same cells as our engine's, in a cache of `kv_slots`."""

    options: Options
    parts: tuple[str, ...]
    model: str
    dtype: str
    vocabulary: int
    random_weights: bool
    kv_slots: int

    def prompt(self, tokens: int, index: int) -> list[int]:
        """The prompt that our engine gets."""
        return random_prompt(self.vocabulary, tokens, self.options.seed_of_prompt(index))

    def decode_plan(self, batch: int, slots: int) -> tuple[int, int]:
        """Tokens of a prompt and of an output, for `slots` slots a row in the middle of the measured steps.

        While prompts are fed, half of the rows decode already on average, and a row writes half as many tokens.
        """
        options = self.options
        fed_a_step = max(1.0, options.prefill_tokens - batch / 2)
        prompt = max(2, int((slots - options.warm_up - options.steps / 2) / (1 + batch / fed_a_step / 2)))
        return prompt, int(batch * prompt / fed_a_step) + options.warm_up + options.steps + 8

    @property
    def longest(self) -> int:
        """Tokens of the longest request."""
        options, found = self.options, [self.options.prompt + self.options.output]
        found += [tokens + self.steps_of(many, tokens) for many, tokens in options.prompts]
        return max(found + [sum(self.decode_plan(*cell)) for cell in options.cells])

    def steps_of(self, many: int, tokens: int) -> int:
        """Tokens that each of these prompts gets, so that none ends before all have begun."""
        return -(-many * tokens // self.options.prefill_tokens) + 2

    def engine_arguments(self) -> dict[str, Any]:
        """What `vllm.LLM` is given; all else is its default."""
        options = self.options
        rows = max([options.requests, *(many for many, _ in (*options.prompts, *options.cells))])
        return {
            "model": self.model, "skip_tokenizer_init": True, "load_format": "dummy" if self.random_weights else "auto",
            "dtype": self.dtype, "kv_cache_dtype": options.kv_cache_dtype, "max_model_len": self.longest,
            "max_num_seqs": rows, "max_num_batched_tokens": max(rows, options.prefill_tokens),
            "kv_cache_memory_bytes": int(options.kv_gib * 2**30), "gpu_memory_utilization": 0.8,
            "enable_prefix_caching": False, "seed": options.seed,
        }  # fmt: skip


def prompts(client: Client, asked: Asked) -> list[dict[str, Any]]:
    """As our part `prompts`."""
    cells = []
    for many, tokens in asked.options.prompts:
        rounds = []
        for at in range(asked.options.repeats + 1):
            of_round = [asked.prompt(tokens, at * many + i) for i in range(many)]
            rounds.append(client.first_tokens_ms(of_round, asked.steps_of(many, tokens)))
        cells.append({"prompts": many, "tokens": tokens} | summary(many, tokens, rounds[1:]))
    return cells


def decode(client: Client, asked: Asked) -> list[dict[str, Any]]:
    """As our part `decode`, but that the rows have really come so far."""
    return [
        {"batch": batch, "slots": slots} | _steps(client, asked, batch, slots) for batch, slots in asked.options.cells
    ]


def _steps(client: Client, asked: Asked, batch: int, slots: int) -> dict[str, Any]:
    prompt, output = asked.decode_plan(batch, slots)
    client.results = []
    for index in range(batch):
        client.send(asked.prompt(prompt, index), output)
    client.finish()
    warm_up, steps = asked.options.warm_up, asked.options.steps
    measured = client.steps_of_all(batch)[warm_up : warm_up + steps]
    if len(measured) < steps:
        return {"error": "the rows never decode all at a time for so long: give more --kv-gib or fewer --steps"}
    written = sum(len(names) for _, names in client.results[: measured[steps // 2][0]])
    return {"slots_read_per_row": prompt + written / batch, "step_ms": spread([ms for _, ms in measured])}


def throughput(client: Client, asked: Asked) -> list[dict[str, Any]]:
    """As our part `throughput`: requests that stand evenly staggered in their lives fill the cache, and new ones wait.

    A request in the middle of its life is one whose prompt is longer by what it has written, and its output shorter.
    """
    options, known = asked.options, len(client.came)
    fit = min(options.requests, max(1, int(FILLED * asked.kv_slots / (options.prompt + options.output / 2))))
    written = [int(options.output * (index + 0.5) / fit) for index in range(fit)]
    random.Random(options.seed).shuffle(written)
    client.results = []
    for index, before in enumerate(written + [0] * (options.requests - fit)):
        client.send(asked.prompt(options.prompt + before, index), options.output - before)
    while client.unfinished and len(client.came) < known + fit:
        client.engine.step()
    start, end = len(client.results) + options.warm_up, time.monotonic() + (options.seconds or 0)
    least = start + (1 if options.seconds else options.steps)
    while client.unfinished and (len(client.results) <= least or time.monotonic() < end):
        client.engine.step()
    client.abort()
    return [{"in_the_middle": fit, "requests": options.requests, **rate(client.results[start - 1 :])}]


def rate(results: list[tuple[float, list[str]]]) -> dict[str, Any]:
    """Tokens a second of all steps but the first, with which the time begins."""
    ends, tokens = [end for end, _ in results], [len(names) for _, names in results[1:]]
    took = ends[-1] - ends[0]
    return {
        "rows": sum(tokens) / len(tokens), "seconds": took, "tokens": sum(tokens),
        "step_ms": spread([1e3 * (after - before) for before, after in pairwise(ends)]),
        "tokens_per_second": sum(tokens) / took,
    }  # fmt: skip


MEASURES = {"prompts": prompts, "decode": decode, "throughput": throughput}


def main() -> None:
    """Measure the parts, and write what was found after each."""
    with open(sys.argv[1], "rb") as file:
        asked: Asked = pickle.load(file)
    import vllm

    arguments, start = asked.engine_arguments(), time.monotonic()
    client = Client(vllm.LLM(**arguments))
    config = client.engine.vllm_config
    found: dict[str, Any] = {
        "version": vllm.__version__,
        "arguments": arguments | {"model": asked.options.shape or asked.options.model},
        "graphs": str(config.compilation_config.cudagraph_mode),
        "async_scheduling": config.scheduler_config.async_scheduling,
        "start_seconds": time.monotonic() - start,
        "cells": [],
    }
    for part in asked.parts:
        found["cells"] += [{"part": part} | cell for cell in MEASURES[part](client, asked)]
        Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
