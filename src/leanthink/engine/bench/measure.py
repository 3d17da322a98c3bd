"""Clocks that wait for the device, and what is said of many measurements: n, median, spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from leanthink.engine.engine import Engine
from leanthink.engine.generation import raise_first
from leanthink.engine.outputs import Progress


def spread(values: Sequence[float]) -> dict[str, float]:
    """Count, median, 10th and 90th percentile, mean."""
    return quantiles(values, median=0.5, p10=0.1, p90=0.9) | {"mean": sum(values) / len(values)}


def quantiles(values: Sequence[float], **shares: float) -> dict[str, float]:
    """Count and the named quantiles, between neighbours by proportion."""
    found = torch.quantile(torch.tensor(values, dtype=torch.float64), torch.tensor([*shares.values()]).double())
    return {"n": len(values)} | dict(zip(shares, found.tolist(), strict=True))


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long it takes, device included."""
    start = now(device)
    work()
    return now(device) - start


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Measured steps of an engine: milliseconds, tokens, slots read by all rows together, evictions, token scorings.

    Scorings are those that not every step does: by how many policies with a stride above 1.
    """

    ms: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    evictions: list[int] = field(default_factory=list)
    scorings: list[int] = field(default_factory=list)

    @property
    def mean_held(self) -> float:
        """Slots that a step reads, of all rows together."""
        return sum(self.held) / len(self.held)


def timed_steps(engine: Engine, *, warm_up: int, steps: int) -> Steps:
    """Steps of all rows of an engine, after some that are not counted (graphs, first kernels).

    From the tokens of one step to those of the next, by the host's clock, which stops no step that is launched ahead.
    What a GPU does after a step's forward delays the tokens of the next: there evictions and scorings count with it.
    Raises what a request failed of.
    """
    rows, measured, late = engine.cache.active, Steps(), engine.device.type == "cuda"
    before = (0, 0)
    for _ in range(warm_up):
        before = _worked(engine, rows)
    last = time.perf_counter()
    for _ in range(steps):
        measured.held.append(int(engine.cache.host_lengths[:rows].sum()) + rows)
        work = _worked(engine, rows)
        moment = time.perf_counter()
        measured.ms.append(1e3 * (moment - last))
        measured.tokens.append(rows)
        scored, evicted = before if late else work
        measured.scorings.append(scored)
        measured.evictions.append(evicted)
        before, last = work, moment
    assert engine.cache.active == rows, "a request has finished while it was measured"
    return measured


def _worked(engine: Engine, rows: int) -> tuple[int, int]:
    """A step; by how many policies tokens were scored that are not in every step, and evictions."""
    scored = sum(len(of_rows) > 0 for _, _, of_rows in engine.decode_loop.token_scoring(strided=True))
    evictions = engine.running_batch.evictions[:rows]
    evicted = int(evictions.sum())
    _step(engine)
    return scored, int(evictions.sum()) - evicted


def timed_serving(engine: Engine, *, warm_up: int, seconds: float) -> Steps:
    """Steps for so many seconds, in which requests that wait replace those that finish; evictions are not counted.

    Raises what a request failed of.
    """
    for _ in range(warm_up):
        _step(engine)
    measured, ended, before, start = Steps(), 0, _written(engine), time.perf_counter()
    last = start
    while engine.unfinished and last < start + seconds:
        rows = engine.cache.active
        measured.held.append(int(engine.cache.host_lengths[:rows].sum()) + rows)
        progress = _step(engine)
        moment = time.perf_counter()
        measured.ms.append(1e3 * (moment - last))
        ended += sum(len(one.token_ids) for one in progress.finished.values())
        written = ended + _written(engine)
        measured.tokens.append(written - before)
        before, last = written, moment
    return measured


def _step(engine: Engine) -> Progress:
    """A step whose requests have not failed."""
    progress = engine.step()
    raise_first(progress.failed, engine.cache.active + len(progress.failed))
    return progress


def _written(engine: Engine) -> int:
    """Tokens of all requests that have a row."""
    return int(engine.running_batch.generated[: engine.cache.active].sum())
