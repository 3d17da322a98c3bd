"""Part `sets`: what index sets of each layer or kv head cost under `horizon`, beside one set and beside `full`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from leanthink.engine.bench.decode import full_steps, summary
from leanthink.engine.bench.eviction import horizon_engine
from leanthink.engine.bench.fixture import Fixture, attempt
from leanthink.engine.bench.measure import Steps, seconds, spread, timed_steps
from leanthink.engine.engine import Engine
from leanthink.policies.policy import GRANULARITIES, Granularity

HORIZONS = (16, 32, 64, 128, 256, 512, 1024)
METHOD = (
    "shares: least squares of a step's ms on its evicted rows and on whether it scores tokens; alone: with the device "
    "drained before and after; full: as many slots a row as the bounded rows hold on average"
)


def sets(fixture: Fixture) -> dict[str, Any]:
    """Every cell of the grid, its slots taken as the budget."""
    return {
        "method": METHOD,
        "interval": fixture.options.interval,
        "horizons": list(HORIZONS),
        "cells": [_cell(fixture, *cell) for cell in fixture.options.cells],
    }


def _cell(fixture: Fixture, batch: int, slots: int) -> dict[str, Any]:
    cell: dict[str, Any] = {"batch": batch, "budget": slots}
    for granularity in GRANULARITIES:
        cell[granularity] = attempt(partial(_bounded, fixture, batch, slots, granularity))
    held = [cell[name]["slots_read_per_row"] for name in GRANULARITIES if "error" not in cell[name]]
    if held:
        cell["full"] = attempt(partial(_full, fixture, batch, round(held[0])))
        for name in GRANULARITIES:
            if "step_ms" in cell[name] and "step_ms" in cell["full"]:
                cell[name]["mean_to_full"] = cell[name]["step_ms"]["mean"] / cell["full"]["step_ms"]["mean"]
                cell[name]["median_to_full"] = cell[name]["step_ms"]["median"] / cell["full"]["step_ms"]["median"]
    return cell


def _full(fixture: Fixture, batch: int, slots: int) -> dict[str, Any]:
    return summary(fixture, full_steps(fixture, batch, slots, fixture.options.whole_intervals))


def _bounded(fixture: Fixture, batch: int, slots: int, granularity: Granularity) -> dict[str, Any]:
    options, policy = fixture.options, fixture.horizon_of(granularity, HORIZONS)
    engine = horizon_engine(fixture, batch, slots, policy, more=options.interval)
    steps = timed_steps(engine, warm_up=options.interval, steps=options.whole_intervals)
    cache, found = engine.cache, summary(fixture, steps)
    return {
        **found,
        **shares(steps),
        **alone(engine, options.interval, found["step_ms"]["mean"]),
        "num_sets": policy.num_sets,
        "stride": policy.stride,
        "predictor_bytes": sum(parameter.nbytes for parameter in policy.predictor.parameters()),  # type: ignore[attr-defined]
        "kv_bytes": cache.kv_LPHTD.nbytes,
        "token_scores_bytes": cache.token_scores.nbytes,
        "positions_bytes": cache.positions.nbytes,
    }


def shares(steps: Steps) -> dict[str, Any]:
    """What of the time evictions take, and what scoring tokens does that not every step does."""
    ms_N = torch.tensor(steps.ms, dtype=torch.float64)
    evicted_N, scored_N = (torch.tensor(of, dtype=torch.float64) for of in (steps.evictions, steps.scorings))
    causes_N3 = torch.stack([torch.ones_like(ms_N), evicted_N, scored_N], dim=1)
    plain, eviction, scoring = torch.linalg.lstsq(causes_N3, ms_N[:, None], driver="gelsd").solution[:, 0].tolist()
    whole = float(ms_N.sum())
    return {
        "evictions": int(evicted_N.sum()),
        "scorings": int(scored_N.sum()),
        "plain_step_ms": plain,
        "eviction_ms": eviction,
        "scoring_ms": scoring,
        "eviction_share": eviction * float(evicted_N.sum()) / whole,
        "scoring_share": scoring * float(scored_N.sum()) / whole,
    }


def alone(engine: Engine, steps: int, step_ms: float) -> dict[str, Any]:
    """Milliseconds of each eviction and each scoring of tokens in further steps, where nothing else runs meanwhile.

    Their shares of the time that so many steps of `step_ms` take are upper bounds: nothing of them is hidden.
    """
    works = {"eviction": (engine.evictor, "_evict_group"), "scoring": (engine.model_runner, "score_tokens")}
    times: dict[str, list[float]] = {name: [] for name in works}
    for name, (owner, method) in works.items():
        setattr(owner, method, partial(_timed, getattr(owner, method), engine.device, times[name]))
    for _ in range(steps):
        engine.step()
    ms = {f"{name}_ms_alone": spread(found) if found else None for name, found in times.items()}
    return ms | {f"{name}_share_alone": sum(found) / (steps * step_ms) for name, found in times.items()}


def _timed(work: Callable[..., None], device: torch.device, times: list[float], *args: Any) -> None:
    times.append(1e3 * seconds(partial(work, *args), device))
