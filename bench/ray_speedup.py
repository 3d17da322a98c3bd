"""What two engines on Ray are worth on this machine: seconds for the same requests, in turns with one process.

    export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE  # threads that spin while they wait take the others' cores
    PYTHONPATH=src python bench/ray_speedup.py --out bench/results/ray_speedup.json

Measured are this process with one thread and with two, one engine on Ray and two engines, each engine with the threads
of OMP_NUM_THREADS. What the machine itself gives is measured beside them: matrix products in one process, and in two
that share nothing; two engines cannot be worth more than those. Opening a cluster and loading the models is told apart:
it is paid once for a run of any length.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from leanthink.data.tasks import registry
from leanthink.engine.bench.measure import spread
from leanthink.engine.sampling import Sampling
from leanthink.importance.inference_backend import GenerationRequest, InferenceBackend, LoadedModel
from leanthink.integrations.ray import Engines, Source, connected
from leanthink.models.loading import load
from leanthink.models.prompt import encode_prompt
from leanthink.utils.provenance import provenance_record


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds of each repeat: until all engines are there, and for the requests; and the tokens that were generated."""

    opening: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


def main() -> None:
    """Measure in turns, tell and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=2, help="problems of each family, at level 1")
    parser.add_argument("--tokens", type=int, default=192, help="most tokens of a request")
    parser.add_argument("--rows", type=int, default=3, help="most requests of an engine at a time")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model, tokenizer = load("tiny", device="cpu")
    here = LoadedModel(model, tokenizer, {"full": None})
    problems = [problem for family in registry.FAMILIES for problem in registry.sample(family, 1, options.count, 0)]
    asked = [
        GenerationRequest(prompt_ids=tuple(encode_prompt(tokenizer, index, problem.prompt)), policy="full", budget=None,
            sampling=Sampling(max_new_tokens=options.tokens))
        for index, problem in enumerate(problems)
    ]  # fmt: skip
    ways: dict[str, Callable[[Measured], None]] = {
        "this process, 1 thread": lambda into: in_this_process(here, asked, 1, options.rows, into),
        "this process, 2 threads": lambda into: in_this_process(here, asked, 2, options.rows, into),
        "1 engine on Ray": lambda into: on_ray(asked, 1, options.rows, into),
        "2 engines on Ray": lambda into: on_ray(asked, 2, options.rows, into),
    }
    measured = {name: Measured() for name in ways}
    gains: list[float] = []
    for repeat in range(options.repeats):
        for name, way in ways.items():
            way(measured[name])
            print(repeat, name, f"{measured[name].seconds[-1]:.2f} s", flush=True)
        gains.append(gain_of_a_second_process())
        print(repeat, f"a second process: {gains[-1]:.2f}x", flush=True)
    torch.set_num_threads(1)
    document = report(measured, options, len(asked)) | {"gain_of_a_second_process": spread(gains)}
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document["ways"], indent=1))


def in_this_process(here: LoadedModel, asked: list[GenerationRequest], threads: int, rows: int, into: Measured) -> None:
    """Complete all requests with so many threads."""
    torch.set_num_threads(threads)
    timed(here, asked, rows, into)


def on_ray(asked: list[GenerationRequest], workers: int, rows: int, into: Measured) -> None:
    """Complete all requests on so many engines of a cluster that is started for them."""
    there: list[str] = []
    source = Source(model="tiny", device="cpu", dtype=None, predictors={"full": None})
    start = time.perf_counter()
    with connected("local"):
        engines = Engines(source, workers=workers, tell=there.append)
        while len(there) < workers:  # a first request each, until all have opened
            list(engines.complete(asked[:workers], max_rows=1))
        into.opening.append(time.perf_counter() - start)
        timed(engines, asked, rows, into)


def gain_of_a_second_process() -> float:
    """Matrix products per second of two processes at a time over those of one alone."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        list(processes.map(products_per_second, [0.5, 0.5]))  # both are there, and have loaded torch
        alone = processes.submit(products_per_second, 4.0).result()
        return sum(processes.map(products_per_second, [4.0, 4.0])) / alone


def products_per_second(seconds: float) -> float:
    """Products as of a small model's decoding step, in one thread, for so long."""
    torch.set_num_threads(1)
    rows, weights = torch.randn(4, 384), [torch.randn(384, 1536) for _ in range(20)]
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for weight in weights:
            rows @ weight
        count += len(weights)
    return count / (time.perf_counter() - start)


def timed(backend: InferenceBackend, asked: list[GenerationRequest], rows: int, into: Measured) -> None:
    """Complete all requests once, and note the seconds and the tokens."""
    start = time.perf_counter()
    completions = [completion for _, completion in backend.complete(asked, max_rows=rows)]
    into.seconds.append(time.perf_counter() - start)
    into.tokens.append(sum(completion.thought_tokens + completion.answer_tokens for completion in completions))


def report(measured: dict[str, Measured], options: argparse.Namespace, requests: int) -> dict[str, Any]:
    """Spreads, speed-ups against one thread of this process and against one engine, settings, provenance."""
    (tokens,) = {count for way in measured.values() for count in way.tokens}  # the same tokens, wherever
    medians = {name: spread(way.seconds)["median"] for name, way in measured.items()}
    ways = {
        name: {
            "seconds": spread(way.seconds),
            "opening_seconds": spread(way.opening) if way.opening else None,
            "tokens_per_second": tokens / medians[name],
            "speedup_over_1_thread": medians["this process, 1 thread"] / medians[name],
            "speedup_over_1_engine": medians["1 engine on Ray"] / medians[name],
        }
        for name, way in measured.items()
    }
    settings = {"requests": requests, "tokens": tokens, "max_new_tokens": options.tokens, "rows": options.rows,
                "repeats": options.repeats, "cores": os.cpu_count(), "load_average": os.getloadavg(),
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}  # fmt: skip
    return {"settings": settings, "ways": ways, "birth": provenance_record(device="cpu")}


if __name__ == "__main__":
    main()
