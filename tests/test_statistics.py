"""Intervals, p-values and Holm's rule: by hand, against reference implementations, and laws for any numbers."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanthink.eval.statistics import DRAWS, draws, estimate, holm, mean, p_values, ratio
from leanthink.utils.errors import UsageError


def test_every_draw_has_as_many_problems_as_there_are() -> None:
    weights_DP = draws(7)
    assert weights_DP.shape == (DRAWS, 7)
    assert torch.equal(weights_DP.sum(dim=1), torch.full((DRAWS,), 7.0, dtype=torch.float64))
    assert weights_DP.mean(dim=0).tolist() == pytest.approx([1.0] * 7, abs=0.05)
    with pytest.raises(UsageError, match="no problem to draw"):
        draws(0)


def test_an_interval_is_that_of_drawing_problems_one_by_one() -> None:
    values = [0.0, 0.25, 0.25, 1.0, 1.0, 0.5, 0.75, 0.0, 1.0, 1.0]
    found = estimate(mean(torch.tensor(values)), len(values))
    rng = random.Random(0)
    slow = sorted(sum(rng.choices(values, k=10)) / 10 for _ in range(20_000))
    assert found.value == pytest.approx(0.575)
    assert found.low == pytest.approx(slow[500], abs=0.03)
    assert found.high == pytest.approx(slow[19_499], abs=0.03)


def test_a_difference_of_the_same_size_everywhere_is_certain_though_its_sides_are_not() -> None:
    ours = torch.tensor([0.1, 0.5, 0.9, 0.3])
    found = estimate(mean(ours - (ours - 0.1)), 4)
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    single = estimate(mean(ours), 4)
    assert single.high is not None
    assert single.low is not None
    assert single.high - single.low > 0.3


def test_a_quotient_takes_both_sums_over_the_same_draw() -> None:
    tokens, right = torch.tensor([100.0, 200.0, 300.0, 600.0]), torch.tensor([1.0, 1.0, 0.0, 1.0])
    assert estimate(ratio(tokens, right), 4).value == pytest.approx(400)
    assert estimate(ratio(2 * tokens, tokens), 4).low == pytest.approx(2)
    nothing = estimate(ratio(tokens, torch.zeros(4)), 4)
    assert (nothing.value, nothing.low, nothing.high) == (None, None, None)
    rare = estimate(ratio(tokens, torch.tensor([1.0, 0.0, 0.0, 0.0])), 4)
    assert rare.value == pytest.approx(1200)
    assert rare.high is None, "some draws have no right answer"


def exact_p(differences: list[float]) -> float:
    """Over all signs."""
    signs = list(itertools.product((1, -1), repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(one, differences, strict=True))) for one in signs]
    return sum(value >= abs(sum(differences)) - 1e-9 for value in sums) / len(signs)


@pytest.mark.parametrize(
    ("differences", "by_hand"),
    [
        ([1, 1, 1, 1], 2 / 16),
        ([1, -1], 1.0),
        ([0, 0, 0], 1.0),
        ([1, 0, 0], 1.0),
        ([1] * 8, 2 / 256),
        ([0.5, 0.25, -0.25, 1, 0.75], None),
    ],
)
def test_p_values_are_those_of_all_signs(differences: list[float], by_hand: float | None) -> None:
    exact = exact_p(differences)
    assert by_hand is None or exact == by_hand
    (found,) = p_values(torch.tensor([differences]))
    assert found == pytest.approx(exact, abs=0.01)


def test_each_comparison_has_its_own_p_value_whatever_stands_beside_it() -> None:
    rows = torch.tensor([[1.0, 1.0, 1.0, 0.0, 1.0], [0.0, 1.0, -1.0, 0.5, 0.0]])
    assert p_values(rows) == [*p_values(rows[:1]), *p_values(rows[1:])]
    assert p_values(rows) == p_values(-rows)


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({}) == {}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_monotone_never_smaller_and_never_above_bonferroni(values: list[float]) -> None:
    raw = dict(enumerate(values))
    adjusted = holm(raw)
    order = sorted(raw, key=lambda name: raw[name])
    assert [adjusted[name] for name in order] == sorted(adjusted.values())
    for name, p in raw.items():
        assert p <= adjusted[name] <= min(1.0, p * len(raw)) + 1e-12


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=8))
def test_an_interval_lies_within_the_values_and_around_the_mean_of_draws(values: list[int]) -> None:
    found = estimate(mean(torch.tensor(values)), len(values))
    assert found.low is not None
    assert found.high is not None
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
