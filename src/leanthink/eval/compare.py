"""Finished runs beside each other: which differences are more than chance, and what is on the Pareto front.

P problems
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leanthink.eval.aggregated_results import AggregatedResults
from leanthink.eval.configurations import FULL
from leanthink.eval.metrics import Metrics, growth, metrics
from leanthink.eval.records import RECORDS, RESULT, check_header
from leanthink.eval.statistics import Estimate, estimate, holm, mean, p_values
from leanthink.utils.errors import UsageError
from leanthink.utils.file_reading import parse_json, reading

SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One configuration of one run.

    Attributes:
        label: what it is called, unique within a comparison.
        run: name of its run.
        results, metrics: what came of it.
    """

    label: str
    run: str
    results: AggregatedResults
    metrics: Metrics


@dataclass(frozen=True, kw_only=True)
class Difference:
    """By how much the first entry is above the second, on the same problems.

    Attributes:
        first, second: their labels.
        accuracy: difference of Pass@1.
        growth: by what share the thoughts of the first are longer.
        p: of the difference in accuracy, two-sided.
        adjusted: that p by Holm's rule, over all differences of the comparison.
    """

    first: str
    second: str
    accuracy: Estimate
    growth: Estimate
    p: float
    adjusted: float

    @property
    def is_significant(self) -> bool:
        """At 5 %, for all comparisons together."""
        return self.adjusted < SIGNIFICANT


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All entries of one benchmark, and the differences between those that can be compared."""

    benchmark: str
    about: dict[str, Any]
    entries: tuple[Entry, ...]
    differences: tuple[Difference, ...]


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What `result.json` holds, and what the run is called beside others."""

    name: str
    folder: Path
    settings: dict[str, Any]
    benchmarks: dict[str, Any]
    provenances: list[dict[str, str]]
    results: tuple[AggregatedResults, ...]


def read_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """The runs of these folders, called by their folders' names, or by their paths where names are equal.

    Raises:
        UsageError: none, one twice, or one that is not there or not finished.
        DamagedFile: a result that cannot be read.
    """
    if not folders:
        raise UsageError("no run to compare: name at least one folder that `leanthink eval` wrote")
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise UsageError("a folder is given twice: name each run once")
    names = [folder.name for folder in resolved]
    alike = len(set(names)) < len(names)
    return [_read(folder, str(folder) if alike else name) for folder, name in zip(folders, names, strict=True)]


def _read(folder: Path, name: str) -> FinishedRun:
    path = folder / RESULT
    if not path.is_file():
        unfinished = (folder / RECORDS).is_file()
        cure = "is not finished: run the same `leanthink eval` again" if unfinished else "is no run of `leanthink eval`"
        raise UsageError(f"{folder} {cure}")
    with reading(path, "result of an evaluation", "evaluate again, or delete it and go on"):
        found = parse_json(path.read_bytes())
        check_header(found)
        return FinishedRun(
            name=name,
            folder=folder,
            settings=found["settings"],
            benchmarks=found["benchmarks"],
            provenances=found["births"],
            results=tuple(AggregatedResults.from_record(one) for one in found["cells"]),
        )


def compare(runs: Sequence[FinishedRun]) -> list[Comparison]:
    """Benchmark by benchmark, in the order in which the runs have them; p-values are adjusted over all of them.

    Every policy is compared with the full cache of its model; policies of the same budget and interval with each
    other; and with several runs the same policy at the same budget from run to run.

    Raises:
        UsageError: two runs asked different problems under one name.
    """
    _check_same_problems(runs)
    names = list(dict.fromkeys(name for run in runs for name in run.benchmarks))
    entries = {name: _entries(name, runs) for name in names}
    pairs = {name: _pairs(entries[name]) for name in names}
    tested = {
        (name, *pair): p for name in names for pair, p in zip(_labels(pairs[name]), _p_values(pairs[name]), strict=True)
    }
    adjusted = holm(tested)
    return [
        Comparison(
            benchmark=name,
            about=next(run.benchmarks[name] for run in runs if name in run.benchmarks),
            entries=tuple(entries[name]),
            differences=tuple(
                _difference(*pair, p=tested[name, *labels], adjusted=adjusted[name, *labels])
                for pair, labels in zip(pairs[name], _labels(pairs[name]), strict=True)
            ),
        )
        for name in names
    ]


def _labels(pairs: Sequence[tuple[Entry, Entry]]) -> list[tuple[str, str]]:
    return [(one.label, other.label) for one, other in pairs]


def full_of(found: AggregatedResults, others: Sequence[AggregatedResults]) -> AggregatedResults | None:
    """The full cache on the same benchmark; None where it was not run."""
    benchmark = found.configuration.benchmark
    configurations = ((one, one.configuration) for one in others)
    same = (one for one, of in configurations if of.benchmark == benchmark and of.policy == FULL)
    return next(same, None)


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of each (cost, gain) whether no other point has at least its gain for less, or more gain for at most its cost."""
    return [not any((c <= cost and g > gain) or (c < cost and g >= gain) for c, g in points) for cost, gain in points]


def _check_same_problems(runs: Sequence[FinishedRun]) -> None:
    first: dict[str, FinishedRun] = {}
    for run in runs:
        for name, about in run.benchmarks.items():
            known = first.setdefault(name, run)
            if known.benchmarks[name]["digest"] != about["digest"]:
                raise UsageError(
                    f"{known.folder} and {run.folder} asked different problems under the name {name}, or asked them "
                    "in other words: only answers to the same prompts can be compared"
                )


def _entries(benchmark: str, runs: Sequence[FinishedRun]) -> list[Entry]:
    several = len(runs) > 1
    entries = []
    for run in runs:
        for one in run.results:
            if one.configuration.benchmark == benchmark:
                budget = one.configuration.budget
                slots = "" if budget is None else f" {budget.slots}+{budget.eviction_interval}"
                label = (f"{run.name}: " if several else "") + one.configuration.policy + slots
                baseline = _baseline(run, one, runs)
                entries.append(Entry(label=label, run=run.name, results=one, metrics=metrics(one, baseline)))
    return entries


def _baseline(run: FinishedRun, found: AggregatedResults, runs: Sequence[FinishedRun]) -> AggregatedResults | None:
    """The full cache of the same run, else of another run of the same model and sampling."""
    alike = [other for other in runs if _answers_alike(other, run)]
    for other in (run, *alike):
        if (full := full_of(found, other.results)) is not None:
            return full
    return None


def _answers_alike(one: FinishedRun, other: FinishedRun) -> bool:
    names = ("fingerprint", "sampling", "dtype")
    return all(one.settings[name] == other.settings[name] for name in names)


def _pairs(entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """Those that can be compared: with the full cache, at one budget, or of one policy and budget in two runs."""
    pairs = []
    for one, other in combinations(entries, 2):
        policies = one.results.configuration.policy, other.results.configuration.policy
        alike = policies[0] == policies[1]
        if one.run != other.run and not alike:
            continue
        if FULL in policies and not alike:
            pairs.append((other, one) if policies[0] == FULL else (one, other))
        elif _most_thought(one) == _most_thought(other):
            pairs.append((one, other))
    return pairs


def _most_thought(entry: Entry) -> int | None:
    budget = entry.results.configuration.budget
    return None if budget is None else budget.slots + budget.eviction_interval


def _gains_P(one: Entry, other: Entry) -> Tensor:
    """Per problem the difference in accuracy, mean over samples."""
    return one.results.column("right") - other.results.column("right")


def _p_values(pairs: Sequence[tuple[Entry, Entry]]) -> list[float]:
    return p_values(torch.stack([_gains_P(*pair) for pair in pairs])) if pairs else []


def _difference(one: Entry, other: Entry, *, p: float, adjusted: float) -> Difference:
    problems = one.results.problems
    return Difference(
        first=one.label,
        second=other.label,
        accuracy=estimate(mean(_gains_P(one, other)), problems),
        growth=estimate(growth(one.results, other.results), problems),
        p=p,
        adjusted=adjusted,
    )
