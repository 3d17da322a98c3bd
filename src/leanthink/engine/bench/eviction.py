"""Part `eviction`: what scoring, selecting and compacting cost under `horizon`, spread over the steps between."""

from __future__ import annotations

from typing import Any

from leanthink.engine.bench.decode import full_steps, summary
from leanthink.engine.bench.fixture import Fixture, attempt
from leanthink.engine.bench.measure import Steps, spread, timed_steps
from leanthink.engine.bench.warm_start import Place, warm_start
from leanthink.engine.engine import Engine
from leanthink.policies import Policy


def eviction(fixture: Fixture) -> dict[str, Any]:
    """Every cell of the grid, its slots taken as the budget."""
    return {
        "interval": fixture.options.interval,
        "cells": [horizon_cell(fixture, *cell) for cell in fixture.options.cells],
    }


def gathered(batch: int, interval: int) -> list[int]:
    """Thought slots that each row has on top of its budget, so that its turn to evict comes evenly.

    At most every other step evicts: the steps between tell what a step costs without.
    """
    turns = min(batch, max(1, interval // 2))
    return [interval - 1 - (row * turns // batch) * (interval // turns) for row in range(batch)]


def horizon_cell(fixture: Fixture, batch: int, slots: int) -> dict[str, Any]:
    """One cell, measured once however many parts ask for it."""

    def measure() -> dict[str, Any]:
        bounded = horizon_steps(fixture, batch, slots)
        # As many slots as the bounded rows hold on average, for as many steps.
        full = full_steps(fixture, batch, round(bounded.mean_held / batch), fixture.options.whole_intervals)
        ours, whole = summary(fixture, bounded), summary(fixture, full)
        ratio = ours["step_ms"]["mean"] / whole["step_ms"]["mean"]
        return {"horizon": ours | share(bounded), "full": whole, "horizon_to_full": ratio}

    if (batch, slots) not in fixture.horizon_cells:
        fixture.horizon_cells[batch, slots] = {"batch": batch, "budget": slots} | attempt(measure)
    return fixture.horizon_cells[batch, slots]


def share(steps: Steps) -> dict[str, Any]:
    """The share of decode time that evictions take: by how much a mean step exceeds a mean step without one."""
    pairs = list(zip(steps.ms, steps.evictions, strict=True))
    without = spread([ms for ms, evictions in pairs if not evictions])
    mean = sum(steps.ms) / len(steps.ms)
    return {
        "evictions": sum(steps.evictions),
        "step_ms_with_eviction": spread([ms for ms, evictions in pairs if evictions]),
        "step_ms_without": without,
        "eviction_share": (mean - without["mean"]) / mean,
    }


def horizon_steps(fixture: Fixture, batch: int, slots: int) -> Steps:
    """Whole intervals of rows whose evictions are spread evenly, after one interval."""
    engine = horizon_engine(fixture, batch, slots, fixture.horizon)
    return timed_steps(engine, warm_up=fixture.options.interval, steps=fixture.options.whole_intervals)


def horizon_engine(fixture: Fixture, batch: int, slots: int, policy: Policy, *, more: int = 0) -> Engine:
    """Rows whose evictions are spread evenly; they last an interval, whole intervals, and so many steps `more`."""
    interval, prompt = fixture.options.interval, fixture.options.prompt
    places = []
    for index, extra in enumerate(gathered(batch, interval)):
        output = slots + extra + interval + fixture.options.whole_intervals + more + 2
        request = fixture.request(index, prompt=prompt, output=output, slots=slots, policy=policy)
        places.append(Place(request=request, held=prompt + slots + extra, generated=slots + extra + 1))
    engine = fixture.engine([place.request.bound for place in places])
    warm_start(engine, places)
    return engine
