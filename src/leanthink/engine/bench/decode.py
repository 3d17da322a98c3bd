"""Part `decode`: the engine's step at a given number of rows and slots, policy `full`, as a share of the roofline."""

from __future__ import annotations

from typing import Any

import torch

from leanthink.engine.bench.experts import CountedExperts, expected_experts, experts_of
from leanthink.engine.bench.fixture import Fixture, attempt
from leanthink.engine.bench.measure import Steps, spread, timed_steps
from leanthink.engine.bench.warm_start import Place, warm_start
from leanthink.engine.engine import Engine


def decode(fixture: Fixture) -> dict[str, Any]:
    """Every cell of the grid."""
    return {"cells": [full_cell(fixture, batch, slots) for batch, slots in fixture.options.cells]}


def full_cell(fixture: Fixture, batch: int, slots: int) -> dict[str, Any]:
    """One cell, measured once however many parts ask for it."""
    if (batch, slots) not in fixture.cells:
        what = {"batch": batch, "slots": slots, "policy": "full"}
        fixture.cells[batch, slots] = what | attempt(lambda: _measured(fixture, batch, slots))
    return fixture.cells[batch, slots]


def _measured(fixture: Fixture, batch: int, slots: int) -> dict[str, Any]:
    steps, experts = _steps_and_experts(fixture, batch, slots)  # the engine's memory is free again
    return summary(fixture, steps) | experts


def _steps_and_experts(fixture: Fixture, batch: int, slots: int) -> tuple[Steps, dict[str, float]]:
    """Measured steps; of a mixture also how many experts a layer used in one more, which the floor takes for chance."""
    options = fixture.options
    engine = full_engine(fixture, batch, slots, warm_up=options.warm_up, steps=options.steps)
    steps = timed_steps(engine, warm_up=options.warm_up, steps=options.steps)
    if not experts_of(fixture.model):
        return steps, {}
    with CountedExperts(fixture.model) as counted, torch.inference_mode():
        engine.model_runner.launch_plain(batch, [], logprobs=-1)
    used = sum(counted.counts) / len(counted.counts)
    return steps, {"experts_used": used, "experts_expected": expected_experts(fixture.model, batch)}


def full_steps(fixture: Fixture, batch: int, slots: int, steps: int) -> Steps:
    """Steps of rows that hold `slots` slots in the middle of the measured ones."""
    warm_up = fixture.options.warm_up
    engine = full_engine(fixture, batch, slots, warm_up=warm_up, steps=steps)
    return timed_steps(engine, warm_up=warm_up, steps=steps)


def full_engine(fixture: Fixture, batch: int, slots: int, *, warm_up: int, steps: int) -> Engine:
    """Rows that will hold `slots` slots after the warm-up and half of the steps."""
    prompt = min(fixture.options.prompt, slots // 2)
    held = max(prompt, slots - warm_up - steps // 2)
    generated = held - prompt + 1
    output = generated + warm_up + steps + 1
    places = [
        Place(request=fixture.request(i, prompt=prompt, output=output, slots=None), held=held, generated=generated)
        for i in range(batch)
    ]
    engine = fixture.engine([place.request.bound for place in places])
    warm_start(engine, places)
    return engine


def summary(fixture: Fixture, steps: Steps) -> dict[str, Any]:
    """What is said of measured steps; the share of the roofline is that of the median step."""
    batch = sum(steps.tokens) / len(steps.tokens)
    step_ms, roofline_ms = spread(steps.ms), fixture.roofline_ms(batch, steps.mean_held)
    return {
        "rows": batch,
        "slots_read_per_row": steps.mean_held / batch,
        "step_ms": step_ms,
        "floor_ms": roofline_ms,
        "share_of_floor": roofline_ms / step_ms["median"],
        "tokens_per_second": 1e3 * batch / step_ms["mean"],
    }
