"""The tables of real models, out of what bench/real_results.py wrote.

P problems
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import wrap
from typing import Any

import one_a_line
import torch
from real_results import REAL, digits
from torch import Tensor

from leanthink.eval.configurations import FULL
from leanthink.eval.statistics import Estimate, estimate, mean
from leanthink.eval.tables import MISSING, percent

OURS = "horizon"
SETS = ("gsm8k", "math-500", "long")  # in the order of the tables
BELOW, ABOVE = "▼", "▲"
NARROW = 120  # characters of a line in README


@dataclass(frozen=True)
class Results:
    """One benchmark: what is right under each policy and number of slots, and where it comes from."""

    document: dict[str, Any]

    @property
    def name(self) -> str:
        """What tables call it."""
        return str(self.document["benchmark"])

    @cached_property
    def right(self) -> dict[str, dict[int, Tensor]]:
        """Share of right answers to each problem, [P] float64, by policy and most thought slots; 0 stands for all."""
        found: dict[str, dict[int, Tensor]] = {}
        for cell in self.document["cells"]:
            budget = cell["budget"]
            slots = 0 if budget is None else budget["slots"] + budget["interval"]
            right_P = torch.tensor([int(digit) for digit in digits(self.document, cell)], dtype=torch.float64)
            found.setdefault(cell["policy"], {})[slots] = right_P / self.document["settings"]["samples"]
        return found

    @property
    def full(self) -> Tensor:
        """Of the full cache, [P]."""
        return self.right[FULL][0]

    @property
    def policies(self) -> list[str]:
        """All but the full cache: ours with its variants, then the others as they were given."""
        return sorted((name for name in self.right if name != FULL), key=lambda name: not is_ours(name))

    @property
    def slots(self) -> list[int]:
        """Most thought slots of the columns, the most first."""
        return sorted({slots for name in self.policies for slots in self.right[name]}, reverse=True)

    def ratio(self, slots: int) -> str:
        """How many times fewer slots a column has than the mean full thought has tokens."""
        return f"{self.document['mean_full_thought'] / slots:.2g}x"

    def head(self, slots: int) -> str:
        """The ratio of a column and its slots."""
        return f"{self.ratio(slots)}: {slots}"

    def share(self, policy: str, slots: int) -> Estimate | None:
        """Right answers; None where it was not measured."""
        right_P = self.right.get(policy, {}).get(slots)
        return None if right_P is None else _mean(right_P)

    def above(self, policy: str, other: str, slots: int) -> Estimate | None:
        """By how much the first is above the second on the same problems; None where one was not measured."""
        both = [self.right.get(name, {}).get(0 if name == FULL else slots) for name in (policy, other)]
        return None if both[0] is None or both[1] is None else _mean(both[0] - both[1])


def is_ours(policy: str) -> bool:
    """Whether it is `horizon`, with whatever predictor."""
    return policy.partition(":")[0] == OURS


def read(folder: Path = REAL) -> list[Results]:
    """The benchmarks of which results are there."""
    paths = [folder / f"{name}.json" for name in SETS]
    return [Results(one_a_line.read_table(path, "cells")) for path in paths if path.is_file()]


def short_table(found: Sequence[Results]) -> str:
    """Right answers, marked against the full cache, of ours and of what is the best of the others anywhere."""
    leading = _leading(found)
    lines = _table(found, [FULL, OURS, *(name for name in _policies(found) if name in leading)])
    births = [birth for one in found for run in one.document["runs"].values() for birth in run["births"]]
    told = (
        "Right answers in %; columns: how many times fewer slots; "
        f"{BELOW} ({ABOVE}): below (above) `full` beyond chance. "
        f"{_each(one.document['model'] for one in found)}, {_each(birth['hardware'] for birth in births)}. "
        "[More](docs/measurements.md#on-a-real-model)."
    )
    return "\n".join([*lines, "", *wrapped(told, NARROW)]) + "\n"


def whole_tables(found: Sequence[Results]) -> str:
    """For each benchmark every policy: right answers, the difference to the full cache, and that of ours to it."""
    lines: list[str] = []
    for one in found:
        lines += [f"**{one.name}**: {_about(one)}", "", *_whole(one), ""]
    told = (
        "Right answers in %, greedy [difference to the full cache in points, paired 95 % interval]; then by how many "
        f"points `{OURS}` is above it on the same problems [95 % interval]. {_kept(found)} {_origin(found)}, "
        "[results](../bench/results/real), [recipe](../bench/real/README.md)."
    )
    return "\n".join([*lines, *wrapped(told)]) + "\n"


def _whole(one: Results) -> list[str]:
    head = [text for slots in one.slots for text in (f"{one.head(slots)} slots", f"`{OURS}` above it")]
    lines = [f"| policy | {' | '.join(head)} |", "|---" * (1 + len(head)) + "|"]
    for name in (FULL, *one.policies):
        cells = []
        for slots in one.slots:
            ahead = None if name in (FULL, OURS) else one.above(OURS, name, slots)
            cells += [_cell(one, name, slots), percent(ahead, "+.1f")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _table(found: Sequence[Results], policies: Sequence[str]) -> list[str]:
    columns = [(one, slots) for one in found for slots in one.slots]
    head = [(f"{one.name} " if slots == one.slots[0] else "") + one.ratio(slots) for one, slots in columns]
    lines = [f"| policy | {' | '.join(head)} |", "|---" * (1 + len(head)) + "|"]
    for name in policies:
        cells = [_right(one, name, slots) + _mark(one, name, slots) for one, slots in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _right(one: Results, policy: str, slots: int) -> str:
    """Right answers alone."""
    share = one.share(policy, 0 if policy == FULL else slots)
    return MISSING if share is None or share.value is None else f"{100 * share.value:.1f}"


def _cell(one: Results, policy: str, slots: int) -> str:
    """Right answers [the bounds of their difference to the full cache]."""
    if policy == FULL:
        return f"{100 * float(one.full.mean()):.1f}"
    share, against = one.share(policy, slots), one.above(policy, FULL, slots)
    if share is None or share.value is None or against is None:
        return MISSING
    return f"{100 * share.value:.1f} [{_points(against.low)}, {_points(against.high)}]"


def _mark(one: Results, policy: str, slots: int) -> str:
    """Whether it is beyond chance below the full cache, or above."""
    ahead = None if policy == FULL else one.above(policy, FULL, slots)
    if ahead is None or ahead.low is None or ahead.high is None:
        return ""
    return ABOVE if ahead.low > 0 else BELOW if ahead.high < 0 else ""


def _leading(found: Sequence[Results]) -> set[str]:
    """The policies that no other one beats in some column, ours left aside."""
    names = set()
    for one in found:
        for slots in one.slots:
            shares = {
                name: float(one.right[name][slots].mean())
                for name in one.policies
                if not is_ours(name) and slots in one.right[name]
            }
            names |= {name for name, share in shares.items() if share == max(shares.values())}
    return names


def _policies(found: Sequence[Results]) -> list[str]:
    return list(dict.fromkeys(name for one in found for name in one.policies))


def _kept(found: Sequence[Results]) -> str:
    """What ours keeps of the full cache's answers."""
    parts = []
    for one in found:
        shares = [one.share(OURS, slots) for slots in one.slots]
        whole = float(one.full.mean())
        if whole and all(share is not None for share in shares):
            kept = [f"{100 * (share.value or 0.0) / whole:.0f}" for share in shares if share is not None]
            parts.append(f"{' / '.join(kept)} % on {one.name}")
    return f"`{OURS}` keeps {', '.join(parts)} of the full cache's right answers." if parts else ""


def _about(one: Results) -> str:
    problems = one.document["problems"]
    return (
        f"{problems['count']} problems, {problems['first']} to {problems['last']}; mean full thought "
        f"{one.document['mean_full_thought']:.0f} tokens."
    )


def _origin(found: Sequence[Results]) -> str:
    """Model, problems, slots, machine and commit, each told once."""
    slots = found[0].document["settings"]["slots"]
    births = [birth for one in found for run in one.document["runs"].values() for birth in run["births"]]
    names = " / ".join(one.name for one in found)
    counts = " / ".join(str(one.document["problems"]["count"]) for one in found)
    thoughts = " / ".join(f"{one.document['mean_full_thought']:.0f}" for one in found)
    hardware, torch_version, commit = (
        _each(birth[name] for birth in births) for name in ("hardware", "torch", "commit")
    )
    return (
        f"{_each(one.document['model'] for one in found)}; {names}: {counts} problems, mean full thought {thoughts} "
        "tokens. Columns: that mean over the most thought slots held, the prompt pinned on top; window "
        f"{slots['window']}, interval {slots['interval']}.{_noise(found)} "
        f"{hardware}, torch {torch_version}, commit {commit}"
    )


def _noise(found: Sequence[Results]) -> str:
    """In how many problems the full caches of several runs differ, if they do."""
    told = [
        f"{run['full_differs']} of {one.name} ({name})"
        for one in found
        for name, run in one.document["runs"].items()
        if run["full_differs"]
    ]
    return f" The full cache answered otherwise in another run: {', '.join(told)}." if told else ""


def _each(values: Iterable[object]) -> str:
    """Each once."""
    return ", ".join(dict.fromkeys(map(str, values)))


def _mean(values_P: Tensor) -> Estimate:
    return estimate(mean(values_P), len(values_P))


def _points(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:+.1f}"


def commits(births: Iterable[dict[str, Any]]) -> str:
    """The commits of the parts of a table, each once."""
    return _each(birth["commit"] for birth in births)


def wrapped(text: str, width: int = 140) -> list[str]:
    """The lines of a paragraph; links stay whole."""
    return wrap(text, width, break_long_words=False, break_on_hyphens=False)
