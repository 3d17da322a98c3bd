"""Part `hf-baseline`: transformers' own `generate` and continuous batching, at the rows and slots of our cells."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from leanthink.engine.bench.decode import full_cell
from leanthink.engine.bench.eviction import horizon_cell
from leanthink.engine.bench.fixture import Fixture, free_memory
from leanthink.engine.bench.measure import spread

SKIPPED = 3  # steps after the prompt, while kernels are chosen
BLOCK = 256  # slots of a block of transformers' paged cache
METHOD = (
    "time between successive tokens while all rows decode; ratio = its mean step / our mean step, with the full cache "
    "and with evictions to a budget of as many slots as transformers holds"
)


def hf_baseline(fixture: Fixture) -> dict[str, Any]:
    """Both ways of transformers in every cell, as ratios to our step."""
    ways: dict[str, Callable[[Fixture, Sequence[tuple[int, ...]]], list[float]]] = {
        "generate": generate_steps,
        "continuous_batching": continuous_steps,
    }
    cells = []
    for batch, slots in fixture.options.cells:
        ours = {
            "": full_cell(fixture, batch, slots),
            "_with_eviction": horizon_cell(fixture, batch, slots).get("horizon", {}),
        }
        prompts = [fixture.prompt(slots, index) for index in range(batch)]
        cell = {"batch": batch, "slots": slots}
        cell |= {f"our_step_ms{how}": found.get("step_ms") for how, found in ours.items()}
        cells.append(cell | {name: _result(partial(steps, fixture, prompts), ours) for name, steps in ways.items()})
    return {"attention": fixture.model.config._attn_implementation, "method": METHOD, "cells": cells}


def _result(measure: Callable[[], list[float]], ours: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Its steps and their ratio to ours; whatever goes wrong in foreign code is its result."""
    try:
        step_ms = spread(measure())
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        free_memory()
    return {"step_ms": step_ms} | {
        f"ratio_to_ours{how}": step_ms["mean"] / found["step_ms"]["mean"]
        for how, found in ours.items()
        if "step_ms" in found
    }


class Times(BaseStreamer):  # type: ignore[misc]
    """Notes when each step's tokens come."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def put(self, value: Any) -> None:
        """Called with the prompt first, then once a step."""
        self.seconds.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""


def generate_steps(fixture: Fixture, prompts: Sequence[tuple[int, ...]]) -> list[float]:
    """Milliseconds of the steps of one `generate` over all prompts."""
    ids, times = torch.tensor(prompts, device=fixture.device), Times()
    tokens = fixture.options.steps + SKIPPED + 1
    config = GenerationConfig(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
    fixture.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, streamer=times)
    after_prompt = times.seconds[1 + SKIPPED :]
    return [1e3 * (after - before) for before, after in pairwise(after_prompt)]


def continuous_steps(fixture: Fixture, prompts: Sequence[tuple[int, ...]]) -> list[float]:
    """Milliseconds of the steps of `generate_batch` while every request decodes."""
    tokens = 2 * fixture.options.steps + SKIPPED  # the first requests decode while the last are still fed
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    limits = None
    if fixture.device.type == "cpu":  # else it takes 90 % of the machine's memory
        blocks = len(prompts) * (-(-(len(prompts[0]) + tokens) // BLOCK) + 1)
        limits = ContinuousBatchingConfig(num_blocks=blocks, max_batch_tokens=512)
    log = _Log()
    logging.getLogger("ContinuousBatchingLogger").addHandler(log)
    try:
        found = fixture.model.generate_batch(
            [list(prompt) for prompt in prompts],
            generation_config=config,
            continuous_batching_config=limits,
            record_timestamps=True,
        )
    finally:
        logging.getLogger("ContinuousBatchingLogger").removeHandler(log)
    errors = [output.error for output in found.values() if output.error]
    if errors or len(found) < len(prompts):
        raise RuntimeError("; ".join([*errors[:1], *log.texts[:3]]) or "requests were lost without a word")
    return between_all([output.timestamps for output in found.values()])


def between_all(times: Sequence[Sequence[float]]) -> list[float]:
    """Milliseconds between tokens of the first request, from the first token of the last one to start to the first end.

    Raises:
        RuntimeError: the requests never decoded all at a time.
    """
    start, end = max(entry[0] for entry in times), min(entry[-1] for entry in times)
    inside = [second for second in times[0] if start <= second <= end][SKIPPED:]
    if len(inside) < 2:
        raise RuntimeError("the requests never decoded all at a time: give more --steps")
    return [1e3 * (after - before) for before, after in pairwise(inside)]


class _Log(logging.Handler):
    """Keeps the texts of errors: continuous batching reports them only to its log."""

    def __init__(self) -> None:
        super().__init__(level=logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
