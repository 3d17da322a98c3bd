"""What becomes of records: columns, votes, Pass@k, wall time, the row of numbers; against reference implementations."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanthink.data.grading.grading import vote
from leanthink.data.problems import Problem
from leanthink.eval.aggregated_results import AggregatedResults, aggregate, majority, pass_at_k, wall_seconds
from leanthink.eval.configurations import Benchmark, Configuration, budget_at_ratio, configurations_of
from leanthink.eval.metrics import ks, metrics
from leanthink.eval.records import Record
from leanthink.policies.budget import Budget
from leanthink.utils.errors import UsageError

CELL = Configuration(benchmark="b", policy="horizon", budget=Budget(slots=64))


def record(id: str = "p", sample: int = 0, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "cell": CELL.name, "id": id, "sample": sample, "seed": 1, "right": True, "finished": True, "vote": "5",
        "answer": "5", "prompt_tokens": 10, "thought_tokens": 100, "answer_tokens": 20, "peak_slots": 80,
        "kept_slots": 70, "slot_steps": 5000, "evictions": 2, "peak_kv_bytes": 8000, "start": 0, "seconds": 1.0,
    }  # fmt: skip
    return Record(**{**fields, **changes})


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(samples: int, data: Any) -> None:
    right = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    marks = [True] * right + [False] * (samples - right)
    subsets = list(itertools.combinations(marks, k))
    assert pass_at_k(right, samples, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(1, 4, 1) == pytest.approx(0.25)
    assert pass_at_k(1, 4, 2) == pytest.approx(0.5)
    assert pass_at_k(0, 4, 4) == 0
    assert ks(1) == [1]
    assert ks(4) == [1, 2, 4]
    assert ks(6) == [1, 2, 4, 6]


@pytest.mark.parametrize(
    ("votes", "share"),
    [
        ([("5", True), ("5", True), ("6", False)], 1.0),
        ([("5", True), ("6", False), ("6", False)], 0.0),
        ([("5", True), ("6", False)], 0.5),
        ([("5", True), ("6", False), ("7", False)], 1 / 3),
        ([("5", True), (None, False), (None, False)], 1.0),
        ([(None, False)], 0.0),
    ],
)
def test_the_majority_is_of_those_who_gave_an_answer_and_ties_go_by_lot(
    votes: list[tuple[str | None, bool]], share: float
) -> None:
    records = [record(sample=at, vote=said, right=right) for at, (said, right) in enumerate(votes)]
    assert majority(records) == pytest.approx(share)


def test_equal_numbers_and_texts_are_one_vote() -> None:
    same = [r"</think>\boxed{1,000}", "</think>the answer is 1000", r"</think>\boxed{1e3}"]
    assert {vote(text, "7", think_tags=True) for text in same} == {"1000"}
    assert vote(r"\boxed{3}", "3", think_tags=True) is None, "the thought never ended"
    assert vote(r"</think>\boxed{}", "3", think_tags=True) is None
    assert vote(r"</think>\boxed{\dfrac{a}{b}}", "x", think_tags=True) == r"\frac{a}{b}"


def test_wall_time_is_up_to_the_last_record_of_each_start() -> None:
    times = [(0, 2.0), (0, 5.0), (1, 1.5), (1, 0.5)]
    assert wall_seconds(record(start=start, seconds=seconds) for start, seconds in times) == 6.5
    assert wall_seconds([record(), record(seconds=None)]) is None


def test_columns_are_sums_over_samples_in_the_order_of_the_problems() -> None:
    records = [
        record("b", 0, right=False, finished=False, vote=None, thought_tokens=300, peak_slots=90, peak_kv_bytes=9000),
        record("a", 1, right=True, finished=False),
        record("a", 0),
        record("b", 1, thought_tokens=50),
    ]
    found = aggregate(CELL, ["a", "b"], 2, records)
    assert found.columns["right"] == [2, 1]
    assert found.columns["strict"] == [1, 1]
    assert found.columns["capped"] == [1, 1]
    assert found.columns["thought_tokens"] == [200, 350]
    assert found.columns["majority"] == [1.0, 1.0]
    assert (found.most_slots, found.bytes_per_slot, found.seconds) == (90, 100, 1.0)
    assert AggregatedResults.from_record(found.record) == found


def test_the_row_of_a_cell_by_hand() -> None:
    full_cell = Configuration(benchmark="b", policy="full", budget=None)
    full = aggregate(full_cell, ["a", "b"], 1, [record("a", thought_tokens=100), record("b", thought_tokens=300)])
    ours = aggregate(
        CELL, ["a", "b"], 1,
        [record("a", thought_tokens=150, seconds=3.0), record("b", thought_tokens=350, right=False, seconds=4.0)],
    )  # fmt: skip
    row = metrics(ours, full)
    assert row.accuracy.value == 0.5
    assert row.growth is not None
    assert row.growth.value == pytest.approx(0.25)
    assert row.tokens_per_right.value == pytest.approx(540)
    assert row.kv_byte_steps == 5000 * 100
    assert row.peak_kv_bytes == 8000
    assert row.tokens_per_second == pytest.approx(540 / 4)
    assert row.capped == 0
    assert metrics(full, full).growth is None
    assert row.record["accuracy"]["value"] == 0.5


def test_ratios_become_slots_that_are_never_exceeded() -> None:
    usual = Budget(slots=256, recent_window=32, eviction_interval=32, max_answer_slots=256)
    budget = budget_at_ratio(1772.0, 3.6, usual)
    assert budget == Budget(slots=460, recent_window=32, eviction_interval=32, max_answer_slots=256)
    with pytest.raises(UsageError, match="leaves 30 slots"):
        budget_at_ratio(94.0, 1.0, Budget(slots=256))
    with pytest.raises(UsageError, match=r"ratio 0\.5: must be 1 or more"):
        budget_at_ratio(1000.0, 0.5, Budget(slots=256))


def test_cells_have_names_of_their_own() -> None:
    budgets = [Budget(slots=64), Budget(slots=64, recent_window=16), Budget(slots=128)]
    cells = configurations_of("b", ["full", "horizon", "sinks"], budgets)
    assert len({cell.name for cell in cells}) == len(cells) == 7
    assert [Configuration.from_record(cell.record) for cell in cells] == cells


@pytest.mark.parametrize(
    ("problems", "words"),
    [
        ((), "no problem"),
        ((Problem(id="a", problem="?", answer="1"), Problem(id="a", problem="!", answer="2")), "two problems.*'a'"),
        ((Problem(id="a", problem="?", answer=" "),), "gold is empty"),
    ],
)
def test_benchmarks_that_could_not_be_graded_are_refused(problems: tuple[Problem, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Benchmark(name="b", source="s", problems=problems)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: Benchmark(name=b.name, source=b.source, problems=b.problems, instruction="Box it."),
        lambda b: Benchmark(name=b.name, source=b.source, problems=(Problem(id="a", problem="?", answer="2"),)),
        lambda b: Benchmark(name=b.name, source=b.source, problems=(Problem(id="a", problem="!", answer="1"),)),
    ],
)
def test_the_digest_changes_with_all_that_decides_a_record(change: Callable[[Benchmark], Benchmark]) -> None:
    benchmark = Benchmark(name="b", source="s", problems=(Problem(id="a", problem="?", answer="1"),))
    assert change(benchmark).about["digest"] != benchmark.about["digest"]
