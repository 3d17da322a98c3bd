"""What came of each problem in a configuration, out of its records: columns of numbers, one for each problem.

P problems
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanthink.eval.configurations import Configuration
from leanthink.eval.records import Record
from leanthink.utils.errors import UsageError
from leanthink.utils.file_reading import COUNT, NOT_NEGATIVE, OBJECT, SIZE, check_kinds

SUMMED = ("right", "strict", "capped", "thought_tokens", "answer_tokens", "peak_slots", "kept_slots", "slot_steps")
NUMBERS = NOT_NEGATIVE.listed("a list of numbers >= 0")
KINDS = {
    "samples": SIZE,
    "columns": OBJECT,
    "most_slots": COUNT,
    "bytes_per_slot": NOT_NEGATIVE,
    "seconds": NOT_NEGATIVE.or_null(),
}


@dataclass(frozen=True, kw_only=True)
class AggregatedResults:
    """One configuration, finished.

    Attributes:
        configuration: which.
        samples: of each problem.
        columns: for each problem in the benchmark's order, summed over its samples: answers that are right, right and
            finished by themselves (strict), cut off at a limit (capped); thought and answer tokens; peak and kept
            slots, prompt included; slots held at each step, added up. And `majority`: whether the answer that most
            samples give is right, as a share where several are given equally often.
        most_slots: the most that any request held, prompt included.
        bytes_per_slot: of keys and values in all layers.
        seconds: wall time; None where the configuration did not run by itself.
    """

    configuration: Configuration
    samples: int
    columns: Mapping[str, Sequence[float]]
    most_slots: int
    bytes_per_slot: float
    seconds: float | None

    def column(self, name: str) -> Tensor:
        """A column as a mean over the samples, [P] float64; `majority` as it is."""
        values_P = torch.tensor(self.columns[name], dtype=torch.float64)
        return values_P if name == "majority" else values_P / self.samples

    @property
    def problems(self) -> int:
        """How many."""
        return len(self.columns["right"])

    @property
    def record(self) -> dict[str, Any]:
        """Its fields for JSON."""
        columns = {name: value for name, value in vars(self).items() if name != "configuration"}
        return {**self.configuration.record, **columns}

    @staticmethod
    def from_record(fields: Mapping[str, Any]) -> AggregatedResults:
        """The results of `record`."""
        check_kinds(fields, KINDS)
        check_kinds(fields["columns"], dict.fromkeys((*SUMMED, "majority"), NUMBERS))
        if len({len(column) for column in fields["columns"].values()}) > 1:
            raise UsageError(
                "the columns of a configuration have different lengths: one number for each problem was expected"
            )
        columns = {name: fields[name] for name in KINDS}
        return AggregatedResults(configuration=Configuration.from_record(fields), **columns)


def aggregate(
    configuration: Configuration, ids: Sequence[str], samples: int, records: Iterable[Record]
) -> AggregatedResults:
    """The results of a configuration of which every record is there."""
    by_id: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_id[record.id].append(record)
    assert all(len(by_id[name]) == samples for name in ids), f"{configuration.name} is not finished"
    grouped = [by_id[name] for name in ids]
    everything = [record for group in grouped for record in group]
    columns: dict[str, list[float]] = {
        name: [sum(_number(record, name) for record in group) for group in grouped] for name in SUMMED
    }
    columns["majority"] = [majority(group) for group in grouped]
    first = everything[0]
    return AggregatedResults(
        configuration=configuration,
        samples=samples,
        columns=columns,
        most_slots=max(record.peak_slots for record in everything),
        bytes_per_slot=first.peak_kv_bytes / first.peak_slots,
        seconds=wall_seconds(everything),
    )


def _number(record: Record, name: str) -> int:
    if name == "strict":
        return record.right and record.finished
    return not record.finished if name == "capped" else int(getattr(record, name))


def majority(records: Sequence[Record]) -> float:
    """The chance that the most frequent answer is right, by lot between equally frequent ones; no answer, no vote."""
    votes = Counter(record.vote for record in records if record.vote is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    leading = {vote for vote, count in votes.items() if count == most}
    right = {record.vote for record in records if record.right} & leading
    return len(right) / len(leading)


def wall_seconds(records: Iterable[Record]) -> float | None:
    """Wall time of a configuration: after each start up to its last record. None where it shared its time."""
    ends: dict[int, float] = {}
    for record in records:
        if record.seconds is None:
            return None
        ends[record.start] = max(ends.get(record.start, 0.0), record.seconds)
    return sum(ends.values())


def pass_at_k(right: int, samples: int, k: int) -> float:
    """The chance that one of k samples is right, estimated without bias from more of them (arXiv 2107.03374)."""
    assert 1 <= k <= samples, (k, samples)
    missed = 1.0
    for drawn in range(k):
        missed *= max(0, samples - right - drawn) / (samples - drawn)
    return 1.0 - missed
