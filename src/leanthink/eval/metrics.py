"""The numbers of a configuration, each with its 95 % interval over problems where it has one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from leanthink.eval.aggregated_results import AggregatedResults, pass_at_k
from leanthink.eval.statistics import Estimate, Statistic, estimate, mean, ratio


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """One row of the table.

    Attributes:
        problems, samples: how many, and of each.
        accuracy: Pass@1, the share of right answers.
        pass_at: the share of problems that one of k samples solves, by k = 1, 2, 4, ... and the number of samples.
        majority: Maj@k for k = all samples.
        strict: the share of answers that are right and ended by themselves.
        capped: the share of answers that were cut off at a limit.
        thought_tokens, answer_tokens: means over answers.
        growth: by what share thoughts are longer than with the full cache, problem by problem; None without one.
        kept_slots, peak_slots: means over answers, prompt included, at the end and at the fullest moment.
        most_slots: the most that any answer held.
        peak_kv_bytes: keys and values in `peak_slots`.
        kv_byte_steps: bytes of keys and values held at each step, added up, mean over answers: memory times time.
        seconds: wall time; None where configurations ran together.
        tokens_per_second: generated tokens in that time.
        tokens_per_right: generated tokens of all answers over the number of right ones.
    """

    problems: int
    samples: int
    accuracy: Estimate
    pass_at: dict[int, Estimate]
    majority: Estimate
    strict: Estimate
    capped: float
    thought_tokens: Estimate
    answer_tokens: float
    growth: Estimate | None
    kept_slots: float
    peak_slots: float
    most_slots: int
    peak_kv_bytes: float
    kv_byte_steps: float
    seconds: float | None
    tokens_per_second: float | None
    tokens_per_right: Estimate

    @property
    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def metrics(found: AggregatedResults, full: AggregatedResults | None) -> Metrics:
    """The row of a configuration; `full` is the same model's on the same problems with the full cache."""
    column, problems = found.column, found.problems
    tokens_P = column("thought_tokens") + column("answer_tokens")
    generated = float(tokens_P.sum()) * found.samples
    average = {
        name: float(column(name).mean())
        for name in ("capped", "answer_tokens", "kept_slots", "peak_slots", "slot_steps")
    }

    def over_problems(statistic: Statistic) -> Estimate:
        return estimate(statistic, problems)

    return Metrics(
        problems=problems,
        samples=found.samples,
        accuracy=over_problems(mean(column("right"))),
        pass_at={k: over_problems(_pass_at(found, k)) for k in ks(found.samples)},
        majority=over_problems(mean(column("majority"))),
        strict=over_problems(mean(column("strict"))),
        capped=average["capped"],
        thought_tokens=over_problems(mean(column("thought_tokens"))),
        answer_tokens=average["answer_tokens"],
        growth=None if full is None or full is found else over_problems(growth(found, full)),
        kept_slots=average["kept_slots"],
        peak_slots=average["peak_slots"],
        most_slots=found.most_slots,
        peak_kv_bytes=average["peak_slots"] * found.bytes_per_slot,
        kv_byte_steps=average["slot_steps"] * found.bytes_per_slot,
        seconds=found.seconds,
        tokens_per_second=generated / found.seconds if found.seconds else None,
        tokens_per_right=over_problems(ratio(tokens_P, column("right"))),
    )


def ks(samples: int) -> list[int]:
    """1, 2, 4, ... and the number of samples."""
    return [*(2**power for power in range(samples.bit_length()) if 2**power < samples), samples]


def growth(found: AggregatedResults, full: AggregatedResults) -> Statistic:
    """By what share the thoughts of the one are longer than those of the other."""
    quotient = ratio(found.column("thought_tokens"), full.column("thought_tokens"))
    return lambda weights_DP: quotient(weights_DP) - 1


def _pass_at(found: AggregatedResults, k: int) -> Statistic:
    return mean(torch.tensor([pass_at_k(int(right), found.samples, k) for right in found.columns["right"]]))
