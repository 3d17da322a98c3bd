"""Part `prompts`: many prompts at once: how long they take, and when the first token of each is there.

N prompts   L tokens of each   M model width
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from leanthink.engine.bench.fixture import Fixture, attempt
from leanthink.engine.bench.measure import quantiles, seconds, spread
from leanthink.engine.engine import Engine
from leanthink.engine.generation import raise_first
from leanthink.engine.request import Request

METHOD = (
    "all prompts at once into an idle engine, until each has its first token, while those that have it decode; policy "
    "full, not streamed, other prompts every round, the first round not counted. transformers: its own forward over as "
    "many prompts as fit into --prefill-tokens, in turn. floor: floating-point operations over the rate of one large "
    "matrix product"
)
MATRIX = {"cuda": 8192, "cpu": 512}  # side of the matrices whose product tells the rate


def prompts(fixture: Fixture) -> dict[str, Any]:
    """Every pair of `--prompts`."""
    rate = matrix_rate(fixture)
    return {
        "method": METHOD,
        "prefill_tokens": fixture.options.prefill_tokens,
        "matrix_flop_per_second": rate,
        "cells": [_cell(fixture, many, tokens, rate["median"]) for many, tokens in fixture.options.prompts],
    }


def matrix_rate(fixture: Fixture) -> dict[str, float]:
    """Operations per second of a product of two square matrices, as of `spread`."""
    side = MATRIX[fixture.device.type]
    a, b = torch.randn(2, side, side, device=fixture.device, dtype=fixture.dtype)
    times = [seconds(lambda: a @ b, fixture.device) for _ in range(fixture.options.repeats + 3)][3:]
    return spread([2 * side**3 / took for took in times])


def flop(fixture: Fixture, many: int, tokens: int) -> int:
    """Operations that the prompts take at least: all weights for each token, the head once, causal attention."""
    model, shape = fixture.model, fixture.shape
    head = model.get_output_embeddings().weight
    ends = {id(table): table.numel() for table in (head, model.get_input_embeddings().weight)}
    layers: int = sum(parameter.numel() for parameter in model.parameters()) - sum(ends.values())
    pairs = tokens * (tokens + 1) // 2
    attention = 4 * pairs * shape.layers * shape.kv_heads * shape.group * shape.head_dim
    of_one: int = 2 * tokens * layers + 2 * head.numel() + attention
    return many * of_one


def _cell(fixture: Fixture, many: int, tokens: int, rate: float) -> dict[str, Any]:
    floor_ms = 1e3 * flop(fixture, many, tokens) / rate
    kinds: dict[str, Callable[[], dict[str, Any]]] = {
        "leanthink": lambda: _engine(fixture, many, tokens),
        "transformers": lambda: _stock(fixture, many, tokens),
    }
    found = {name: attempt(measure) for name, measure in kinds.items()}
    share = {"share_of_floor": floor_ms / found["leanthink"]["ms"]["median"]} if "ms" in found["leanthink"] else {}
    return {"prompts": many, "tokens": tokens, "floor_ms": floor_ms} | share | found


def summary(many: int, tokens: int, rounds: Sequence[list[float]]) -> dict[str, Any]:
    """What is said of rounds, of each the milliseconds to every first token."""
    firsts = [quantiles(ms, median=0.5, p99=0.99, most=1.0) for ms in rounds]
    spreads = {f"first_token_{name}_ms": spread([first[name] for first in firsts]) for name in ("median", "p99")}
    return _speed(many, tokens, [first["most"] for first in firsts]) | spreads


def _speed(many: int, tokens: int, ms: list[float]) -> dict[str, Any]:
    """Of rounds that took so many milliseconds."""
    per_second = 1e3 * many / spread(ms)["median"]
    return {"ms": spread(ms), "prompts_per_second": per_second, "prompt_tokens_per_second": tokens * per_second}


def _engine(fixture: Fixture, many: int, tokens: int) -> dict[str, Any]:
    """Rounds of an engine."""
    steps = -(-many * (tokens - 1) // fixture.options.prefill_tokens)
    requests = [
        [fixture.request(at * many + i, prompt=tokens, output=steps + 2, slots=None) for i in range(many)]
        for at in range(fixture.options.repeats + 1)
    ]
    bounds = [request.bound for request in requests[0]]
    engine = fixture.engine(bounds, prefill_tokens=fixture.options.prefill_tokens)
    return summary(many, tokens, [first_tokens_ms(engine, of_round) for of_round in requests][1:])


def first_tokens_ms(engine: Engine, requests: Sequence[Request]) -> list[float]:
    """Milliseconds from the arrival of all requests to the first token of each; then they are served to their ends.

    None may end before all have begun.
    """
    start = time.perf_counter()
    for request in requests:
        engine.add_request(request)
    came: dict[int, float] = {}
    while engine.unfinished:
        raise_first(engine.step().failed, len(requests))
        if len(came) < len(requests):
            moment = 1e3 * (time.perf_counter() - start)
            rows = zip(engine.running_batch.requests, engine.running_batch.generated.tolist(), strict=False)
            came |= {request.index: moment for request, tokens in rows if tokens and request.index not in came}
    return list(came.values())


@torch.inference_mode()
def _stock(fixture: Fixture, many: int, tokens: int) -> dict[str, Any]:
    """Transformers' own forward, with its cache and the logits of the last token."""
    at_a_time = max(1, fixture.options.prefill_tokens // tokens)
    times = []
    for at in range(fixture.options.repeats + 1):
        ids = torch.tensor([fixture.prompt(tokens, at * many + i) for i in range(many)], device=fixture.device)

        def feed(ids: torch.Tensor = ids) -> None:
            for part in torch.split(ids, at_a_time):
                fixture.model(input_ids=part, use_cache=True, logits_to_keep=1).logits.argmax(-1)

        times.append(1e3 * seconds(feed, fixture.device))
    return _speed(many, tokens, times[1:])
