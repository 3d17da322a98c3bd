"""Part `latency`: many requests at once through the real engine: when their tokens come."""

from __future__ import annotations

import random
import time
from itertools import pairwise
from typing import Any

from leanthink.engine.bench.fixture import Fixture, attempt
from leanthink.engine.bench.measure import quantiles
from leanthink.engine.engine import Engine
from leanthink.engine.generation import raise_first
from leanthink.engine.request import Request


def latency(fixture: Fixture) -> dict[str, Any]:
    """Two rounds of the same requests, policy `full`; the first captures graphs and is not counted."""
    what = {
        "policy": "full",
        "requests": fixture.options.requests,
        "output": fixture.options.latency_output,
        "kv_gib": fixture.options.kv_gib,
    }
    return what | attempt(lambda: _measure(fixture))


def _measure(fixture: Fixture) -> dict[str, Any]:
    options, chance = fixture.options, random.Random(fixture.options.seed)
    requests = []
    for index in range(options.requests):
        tokens = chance.randint(max(1, options.prompt // 2), options.prompt + options.prompt // 2)
        requests.append(fixture.request(index, prompt=tokens, output=options.latency_output, slots=None))
    kv_slots = int(options.kv_gib * 2**30) // fixture.bytes_per_slot
    engine = fixture.engine([request.bound for request in requests], slots=kv_slots)
    serve(engine, requests)
    return serve(engine, requests)


def serve(engine: Engine, requests: list[Request]) -> dict[str, Any]:
    """Add all requests at once, step until the last has finished, and say when the tokens came."""
    came: dict[int, list[float]] = {request.index: [] for request in requests}
    start, most = time.perf_counter(), 0
    for request in requests:
        engine.add_request(request, streamed=True)
    while engine.unfinished:
        progress = engine.step()
        raise_first(progress.failed, len(requests))
        steps = progress.steps
        moment = time.perf_counter()
        most = max(most, len(steps))
        for index in steps:
            came[index].append(moment)
    firsts = [1e3 * (times[0] - start) for times in came.values()]
    gaps = [1e3 * (after - before) for times in came.values() for before, after in pairwise(times)]
    took, tokens = time.perf_counter() - start, sum(map(len, came.values()))
    return {
        "prompt_tokens": quantiles([len(request.prompt_ids) for request in requests], median=0.5, least=0.0, most=1.0),
        "first_token_ms": quantiles(firsts, median=0.5, p99=0.99),
        "between_tokens_ms": quantiles(gaps, median=0.5, p99=0.99),
        "tokens": tokens,
        "seconds": took,
        "tokens_per_second": tokens / took,
        "most_at_a_time": most,
    }
