"""The numbers of `leanthink train --report`: what changed between the first and the last tenth of a run.

Pure functions on what `leanthink.rl.run_files` reads. What was not measured is None, and never counts as 0.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from leanthink.rl.run_files import RecordedRun

Record = dict[str, Any]
Curve = list[tuple[int, float | None]]  # (optimiser step, value)
DROPPED = "dropped"
HELD_OUT = ("eval_accuracy", "eval_thought_tokens")
METRICS = (
    *("accuracy", "simple/accuracy", "hard/accuracy"),
    *("thought_tokens", "simple/thought_tokens", "hard/thought_tokens"),
    *("pass_ratio/batch", "pass_ratio/average", "share_simple", "beta", "length_reward", "reward"),
    *("entropy", "self_checks", "closed", "completions/clipped_ratio"),
    *("groups/all_right", "groups/all_wrong", DROPPED, "loss", "clip_ratio/region_mean"),
    *HELD_OUT,
)
Z = 1.959964  # of a two-sided 95 % interval


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over responses.

    Attributes:
        mean: None where there was no response to take it of.
        spread: half the width of its 95 % interval, with problems, not responses, as what was drawn; None for fewer
            than two problems.
    """

    mean: float | None
    spread: float | None


@dataclass(frozen=True, kw_only=True)
class Tenth:
    """Some of the groups of a tenth of a run. `accuracy` is of the graded responses, `thought_tokens` of all."""

    groups: int
    responses: int
    accuracy: Estimate
    thought_tokens: Estimate


@dataclass(frozen=True, kw_only=True)
class Row:
    """First tenth against last, of one family and level; None: of all of them."""

    family: str | None
    level: int | None
    first: Tenth
    last: Tenth


@dataclass(frozen=True, kw_only=True)
class Change:
    """Means of a logged metric over the first and the last tenth of the lines that could have it; None: it was null."""

    first: float | None
    last: float | None


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """One run in numbers.

    Attributes:
        steps: optimiser steps logged so far, of `planned` ones; None: it goes by epochs, or nobody knows.
        finished: whether it came to its end.
        seconds: its wall time; None while it is not finished.
        first_steps, last_steps: first and last step of the two tenths of the rollouts; None without rollouts.
        metrics: by name, those of METRICS that were logged.
        rows: all groups, each level's, each family and level's; without rollouts only the first row, of no groups.
    """

    name: str
    folder: str
    steps: int
    planned: int | None
    finished: bool
    seconds: float | None
    first_steps: tuple[int, int] | None
    last_steps: tuple[int, int] | None
    metrics: dict[str, Change]
    rows: tuple[Row, ...]


def report_run(run: RecordedRun) -> RunReport:
    """The numbers of one run."""
    end, planned = run.log[-1], run.settings.get("max_steps")
    first, last = tenths(run.groups)
    curves = {name: curve(run.log, name) for name in METRICS}
    return RunReport(
        name=run.name,
        folder=str(run.folder),
        steps=max(record["step"] for record in run.log),
        planned=planned if isinstance(planned, int) and planned > 0 else None,
        finished="train_runtime" in end,
        seconds=end.get("train_runtime"),
        first_steps=_bounds(first),
        last_steps=_bounds(last),
        metrics={name: change([value for _, value in found]) for name, found in curves.items() if found},
        rows=table(first, last),
    )


def curve(log: Iterable[Record], name: str) -> Curve:
    """A metric over the steps at which it was logged, None where it was null; empty if it never was logged."""
    if name == DROPPED:  # of the groups that were generated, those that the batch was not made of
        return [(step, None if kept is None else 1 - kept) for step, kept in curve(log, "dynamic_sampling/kept")]
    return [(record["step"], record[name]) for record in log if name in record]


def smoothed(values: Sequence[float | None]) -> list[float | None]:
    """Means over windows of about a tenth of the values, around each; None stays None and counts in no mean."""
    reach = len(values) // 20
    found: list[float | None] = []
    for i, value in enumerate(values):
        near = [one for one in values[max(0, i - reach) : i + reach + 1] if one is not None]
        found.append(None if value is None else math.fsum(near) / len(near))
    return found


def tenths(groups: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The groups of the first and of the last tenth of the steps that generated any, rounded up to whole steps."""
    steps = sorted({group["step"] for group in groups})
    size = -(-len(steps) // 10)
    early, late = set(steps[:size]), set(steps[len(steps) - size :])
    return [g for g in groups if g["step"] in early], [g for g in groups if g["step"] in late]


def table(first: Sequence[Record], last: Sequence[Record]) -> tuple[Row, ...]:
    """A row of all groups, one of each level where there are several families, one of each family and level."""
    pairs = {(group.get("family"), group.get("level")) for group in [*first, *last]} - {(None, None)}
    if len({family for family, _ in pairs}) > 1:
        pairs |= {(None, level) for _, level in pairs if level is not None}
    order = sorted(pairs, key=lambda pair: (pair[0] or "", -1 if pair[1] is None else pair[1]))
    return tuple(
        Row(family=family, level=level, first=_tenth(first, family, level), last=_tenth(last, family, level))
        for family, level in [(None, None), *order]
    )


def lengths(groups: Iterable[Record], *, right: bool) -> list[int]:
    """Tokens of the responses, thought and answer, that are right or that are wrong."""
    pairs = ((tokens, verdict) for g in groups for tokens, verdict in zip(g["tokens"], g["right"], strict=True))
    return [tokens for tokens, verdict in pairs if verdict is right]


def shares(values: Iterable[int], edges: Sequence[float], total: int) -> list[float]:
    """For each bin [edge, next edge) how many of the values are in it, as a share of `total`; the last has both edges.

    Values outside of all bins count nowhere; a total of 0 gives zeros.
    """
    counts = [0] * (len(edges) - 1)
    for value in values:
        if edges[0] <= value <= edges[-1]:
            counts[min(bisect_right(edges, value), len(counts)) - 1] += 1
    return [count / total if total else 0.0 for count in counts]


def estimate(groups: Sequence[Record], name: Literal["right", "thought_tokens"]) -> Estimate:
    """The mean of a list's entries over all responses but those that are None.

    Its interval takes all responses to one problem as one draw (the linearised ratio estimator of cluster sampling).
    """
    draws: dict[Any, list[float]] = {}
    for number, group in enumerate(groups):
        known = [float(value) for value in group[name] if value is not None]
        if known:
            draws.setdefault(group.get("id") or number, []).extend(known)
    responses = sum(map(len, draws.values()))
    if not responses:
        return Estimate(mean=None, spread=None)
    mean = math.fsum(map(math.fsum, draws.values())) / responses
    if len(draws) < 2:
        return Estimate(mean=mean, spread=None)
    squares = math.fsum((math.fsum(values) - mean * len(values)) ** 2 for values in draws.values())
    return Estimate(mean=mean, spread=Z * math.sqrt(squares * len(draws) / (len(draws) - 1)) / responses)


def difference(before: Estimate, after: Estimate) -> Estimate:
    """By how much the mean of `after` is larger, the two being independent."""
    if before.mean is None or after.mean is None:
        return Estimate(mean=None, spread=None)
    known = before.spread is not None and after.spread is not None
    spread = math.hypot(before.spread or 0, after.spread or 0) if known else None
    return Estimate(mean=after.mean - before.mean, spread=spread)


def growth(before: Estimate, after: Estimate) -> Estimate:
    """By what share of `before` the mean of `after` is larger, the two being independent (delta method)."""
    if not before.mean or after.mean is None:
        return Estimate(mean=None, spread=None)
    ratio = after.mean / before.mean
    known = before.spread is not None and after.spread is not None
    spread = math.hypot(ratio * (before.spread or 0), after.spread or 0) / before.mean if known else None
    return Estimate(mean=ratio - 1, spread=spread)


def _tenth(groups: Sequence[Record], family: str | None, level: int | None) -> Tenth:
    chosen = [
        group
        for group in groups
        if (family is None or group.get("family") == family) and (level is None or group.get("level") == level)
    ]
    return Tenth(
        groups=len(chosen),
        responses=sum(len(group["right"]) for group in chosen),
        accuracy=estimate(chosen, "right"),
        thought_tokens=estimate(chosen, "thought_tokens"),
    )


def _bounds(groups: Sequence[Record]) -> tuple[int, int] | None:
    steps = [group["step"] for group in groups]
    return (min(steps), max(steps)) if steps else None


def change(values: Sequence[float | None]) -> Change:
    """Means of the first and of the last tenth, rounded up to whole values."""
    size = -(-len(values) // 10)
    return Change(first=_mean(values[:size]), last=_mean(values[len(values) - size :]))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
