from __future__ import annotations

import itertools
import random

import pytest

from leanthink.importance.rank_metrics import kendall_tau, top_overlap
from reference.agreement_slow import kendall_tau_slow


@pytest.mark.parametrize("values", [2, 3, 100])
def test_kendall_tau_equals_that_of_all_pairs(values: int) -> None:
    draws = random.Random(values)
    for length in (2, 3, 10, 57):
        x, y = ([float(draws.randrange(values)) for _ in range(length)] for _ in range(2))
        assert kendall_tau(x, y) == pytest.approx(kendall_tau_slow(x, y))


def test_kendall_tau_of_orders_and_constants() -> None:
    assert kendall_tau([1, 2, 3], [4, 5, 6]) == 1
    assert kendall_tau([1, 2, 3], [6, 5, 4]) == -1
    assert kendall_tau([1, 1, 1], [1, 2, 3]) is None
    assert kendall_tau([1, 2, 3], [0, 0, 0]) is None
    assert kendall_tau([1], [1]) is None
    assert kendall_tau([], []) is None


def test_overlap_is_the_share_of_the_true_top_that_was_found() -> None:
    truth = [float(n) for n in range(10)]
    assert top_overlap(truth, truth, 0.3) == 1
    assert top_overlap(truth[::-1], truth, 0.3) == 0
    assert top_overlap([0, 0, 0, 0, 0, 0, 0, 9, 9, 0], truth, 0.2) == 0.5
    assert top_overlap([0.0] * 10, truth, 0.3) == 1  # ties: the younger
    assert all(top_overlap(truth, list(p), 0.01) in (0, 1) for p in itertools.islice(itertools.permutations(truth), 9))
