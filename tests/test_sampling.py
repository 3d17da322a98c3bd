from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from leanthink.errors import UsageError
from leanthink.sampling import Sampler, Sampling, draw, keep_min_p, keep_top_k, keep_top_p, uniform
from reference.sampling_slow import sample_slowly

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 3, 11, 500]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.03]),
    min_p=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    seed=st.integers(0, 2**63 - 1),
)


@given(samplings=st.lists(SAMPLINGS, min_size=1, max_size=6), counts=st.integers(0, 10**6), seed=st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_every_row_draws_what_the_slow_twin_draws(samplings: list[Sampling], counts: int, seed: int) -> None:
    torch.manual_seed(seed)
    logits = 3 * torch.randn(len(samplings), 23)
    sampler = Sampler(8, torch.device("cpu"))
    sampler.seat(1, samplings)
    counts_N = counts + torch.arange(len(samplings))
    picked = sampler.pick(logits, slice(1, 1 + len(samplings)), counts_N).tolist()
    rows = zip(logits.tolist(), samplings, counts_N.tolist(), strict=True)
    assert picked == [sample_slowly(row, sampling, count) for row, sampling, count in rows]


def test_a_row_draws_the_same_whatever_the_other_rows_ask_for() -> None:
    logits = 3 * torch.randn(3, 50)
    mine = Sampling(temperature=0.9, seed=5)
    neighbours = [Sampling(temperature=2.0, top_k=2, top_p=0.2, min_p=0.3, seed=9), Sampling()]
    sampler = Sampler(3, torch.device("cpu"))
    for count in range(50):
        sampler.seat(0, [mine, *neighbours])
        together = sampler.pick(logits, slice(0, 3), torch.full((3,), count))[0]
        sampler.seat(0, [mine])
        assert int(sampler.pick(logits[:1], slice(0, 1), torch.tensor([count]))) == int(together)


def test_a_row_that_moves_keeps_its_knobs() -> None:
    logits = torch.randn(1, 50).expand(4, 50)
    sampler = Sampler(4, torch.device("cpu"))
    sampler.seat(
        0, [Sampling(), Sampling(), Sampling(), Sampling(temperature=1.5, top_k=40, top_p=0.9, min_p=0.01, seed=3)]
    )
    counts = torch.arange(4) * 0
    before = int(sampler.pick(logits, slice(0, 4), counts)[3])
    sampler.move([3], [1])
    assert int(sampler.pick(logits[:2], slice(0, 2), counts[:2])[1]) == before


@pytest.mark.parametrize("knob", [1, 4, 40])
def test_top_k_keeps_what_transformers_keeps_ties_included(knob: int) -> None:
    scores = torch.randint(0, 12, (5, 30)).float()
    ours = keep_top_k(scores, torch.full((5,), knob))
    assert torch.equal(ours, TopKLogitsWarper(knob)(None, scores))  # type: ignore[arg-type]


@pytest.mark.parametrize("knob", [0.05, 0.5, 0.95])
def test_top_p_keeps_what_transformers_keeps(knob: float) -> None:
    scores = 2 * torch.randn(5, 300)
    ours = keep_top_p(scores, torch.full((5,), knob, dtype=torch.float64))
    assert torch.equal(ours, TopPLogitsWarper(knob)(None, scores))  # type: ignore[arg-type]


@pytest.mark.parametrize("knob", [0.01, 0.3, 1.0])
def test_min_p_keeps_what_transformers_keeps(knob: float) -> None:
    scores = 2 * torch.randn(5, 300)
    ours = keep_min_p(scores, torch.full((5,), knob, dtype=torch.float64))
    assert torch.equal(ours, MinPLogitsWarper(knob)(None, scores))  # type: ignore[arg-type]


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf, -1.0])
    draws = 40000
    tokens = draw(logits.expand(draws, 5), uniform(torch.full((draws,), 11), torch.arange(draws)))
    observed = torch.bincount(tokens, minlength=5).double() / draws
    expected = logits.double().softmax(0)
    assert observed[3] == 0
    assert torch.all((observed - expected).abs() <= 5 * (expected * (1 - expected) / draws).sqrt())


def test_the_ends_of_the_unit_interval_fall_on_possible_tokens() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]]).expand(2, 4)
    assert draw(logits, torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)).tolist() == [1, 2]


def test_seeds_and_counts_give_unrelated_numbers() -> None:
    numbers = uniform(torch.arange(100)[:, None], torch.arange(100)[None]).flatten()
    assert numbers.dtype == torch.float64
    assert len(numbers.unique()) == 10000
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    assert abs(float(numbers.mean()) - 0.5) < 0.01


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.inf},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"top_k": 1.5},
        {"min_p": 1.1},
        {"max_new_tokens": 0},
        {"seed": -1},
        {"seed": 2**63},
        {"stop": "word"},
        {"stop": ("",)},
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]
