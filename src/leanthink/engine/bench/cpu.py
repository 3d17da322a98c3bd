"""Part `cpu`: tokens per second of `generate` on the embedded reasoner, on a CPU, against transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig

from leanthink.data.tasks import registry
from leanthink.engine.bench.fixture import NO_TAGS, Fixture
from leanthink.engine.bench.measure import seconds, spread
from leanthink.engine.bench.weights import never_ending
from leanthink.engine.generation import each_finished, in_order
from leanthink.engine.request import make_requests
from leanthink.engine.sampling import Sampling
from leanthink.models.loading import load
from leanthink.models.prompt import encode_prompt

Run = Callable[[], list[list[int]]]


def cpu(fixture: Fixture) -> dict[str, Any]:
    """Every batch size: both warmed up, then in turns, float32, as many threads as torch has."""
    model, tokenizer = load("tiny", device="cpu", dtype=torch.float32)
    batches = [_batch(fixture, never_ending(model), tokenizer, batch) for batch in fixture.options.cpu_batches]
    return {"threads": torch.get_num_threads(), "output": fixture.options.cpu_output, "batches": batches}


def _batch(fixture: Fixture, model: Any, tokenizer: Any, batch: int) -> dict[str, Any]:
    texts = [problem.prompt for problem in registry.sample("sums", 5, batch, fixture.options.seed)]
    prompts = [encode_prompt(tokenizer, index, text) for index, text in enumerate(texts)]
    runs: dict[str, Run] = {
        "leanthink": lambda: ours(model, tokenizer, prompts, fixture.options.cpu_output),
        "transformers": lambda: theirs(model, prompts, fixture.options.cpu_output),
    }
    tokens = [run() for run in runs.values()]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(fixture.options.repeats):
        for name, run in runs.items():
            times[name].append(seconds(run, model.device))
    written = batch * fixture.options.cpu_output
    speeds = {name: spread([written / taken for taken in found]) for name, found in times.items()}
    return {
        "batch": batch,
        "tokens_per_second": speeds,
        "ratio": speeds["leanthink"]["median"] / speeds["transformers"]["median"],
        "requests_with_the_same_tokens": sum(a == b for a, b in zip(*tokens, strict=True)),
    }


def ours(model: Any, tokenizer: Any, prompts: list[list[int]], output: int) -> list[list[int]]:
    """What `leanthink.generate` does with policy `full`, but that no token ends a text."""
    requests = make_requests(
        model,
        tokenizer,
        NO_TAGS,
        prompts,
        policy="full",
        budget=None,
        predictor=None,
        sampling=Sampling(max_new_tokens=output),
    )
    finished = each_finished(model, tokenizer, requests, tags=NO_TAGS, ends=(), max_rows=len(prompts))
    return [list(completion.token_ids) for completion in in_order(finished)]


def theirs(model: Any, prompts: list[list[int]], output: int) -> list[list[int]]:
    """Stock `generate`, prompts padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    config = GenerationConfig(max_new_tokens=output, min_new_tokens=output, do_sample=False, pad_token_id=0)
    written: list[list[int]] = model.generate(ids, attention_mask=mask, generation_config=config)[:, longest:].tolist()
    return written
