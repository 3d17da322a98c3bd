from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from leanthink.engine.sampling import (
    MAX_LOGPROBS,
    NO_TOKEN,
    SHORT_TOP_K,
    SHORTLIST,
    Sampler,
    Sampling,
    Uses,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    log_probabilities,
    uniform,
)
from leanthink.utils.errors import UsageError
from reference.sampling_slow import sample_slowly

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 3, 11, 500]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.03]),
    min_p=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    seed=st.integers(0, 2**63 - 1),
)


@given(
    samplings=st.lists(SAMPLINGS, min_size=1, max_size=6),
    alone=st.integers(0, 6),
    counts=st.integers(0, 10**6),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=150, deadline=None)
def test_every_row_draws_what_the_reference_implementation_draws(
    samplings: list[Sampling], alone: int, counts: int, seed: int
) -> None:
    torch.manual_seed(seed)
    logits = 3 * torch.randn(len(samplings), 23)
    sampler = Sampler(8, torch.device("cpu"))
    sampler.assign_rows(0, samplings[:alone])  # rows are taken at once or one after the other
    sampler.assign_rows(len(samplings[:alone]), samplings[alone:])
    counts_N = counts + torch.arange(len(samplings))
    picked = sampler.pick(logits, counts_N, sampler.uses(len(samplings))).tolist()
    rows = zip(logits.tolist(), samplings, counts_N.tolist(), strict=True)
    assert picked == [sample_slowly(row, sampling, count) for row, sampling, count in rows]


@given(samplings=st.lists(SAMPLINGS, min_size=1, max_size=4), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_a_shortlist_of_a_large_vocabulary_holds_all_that_can_be_drawn(samplings: list[Sampling], seed: int) -> None:
    torch.manual_seed(seed)
    logits = (
        (3 * torch.randn(len(samplings), SHORTLIST + 200)).bfloat16().float()
    )  # with many ties, as models have them
    sampler, counts_N = Sampler(8, torch.device("cpu")), torch.arange(len(samplings))
    sampler.assign_rows(0, samplings)
    picked = sampler.pick(logits, counts_N, sampler.uses(len(samplings))).tolist()
    for row, sampling in enumerate(samplings):
        assert picked[row] == sample_slowly(logits[row].tolist(), sampling, row)
        sampler.assign_rows(0, [sampling])
        assert picked[row] == int(sampler.pick(logits[row : row + 1], counts_N[row : row + 1], sampler.uses(1)))


@given(
    samplings=st.lists(SAMPLINGS, min_size=1, max_size=6),
    more=st.tuples(*[st.booleans()] * 5),
    vocabulary=st.sampled_from([23, SHORTLIST + 30]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_steps_that_nobody_uses_change_nothing(
    samplings: list[Sampling], more: tuple[bool, ...], vocabulary: int, seed: int
) -> None:
    torch.manual_seed(seed)
    logits, counts_N = 3 * torch.randn(len(samplings), vocabulary), torch.arange(len(samplings))
    sampler = Sampler(len(samplings), torch.device("cpu"))
    sampler.assign_rows(0, samplings)
    uses = sampler.uses(len(samplings))
    padded = Uses(*(used or extra for used, extra in zip(uses, more, strict=True)))
    assert torch.equal(sampler.pick(logits, counts_N, padded), sampler.pick(logits, counts_N, uses))


def test_uses_says_what_any_of_the_first_rows_asks_for() -> None:
    sampler = Sampler(6, torch.device("cpu"))
    samplings = [
        Sampling(top_k=5, top_p=0.5, min_p=0.5),  # greedy: none of it matters
        Sampling(temperature=0.7),
        Sampling(temperature=0.7, top_k=SHORT_TOP_K + 1),
        Sampling(temperature=0.7, top_k=SHORT_TOP_K, top_p=0.9),
        Sampling(temperature=0.7, top_k=1, min_p=0.1),
    ]
    sampler.assign_rows(0, samplings)
    nothing = Uses(short=False, long=False, top_k=False, top_p=False, min_p=False)
    assert sampler.uses(1) == nothing
    assert sampler.uses(2) == nothing._replace(long=True)
    assert sampler.uses(3) == nothing._replace(long=True, top_k=True)
    assert sampler.uses(4) == nothing._replace(short=True, long=True, top_k=True, top_p=True)
    assert sampler.uses(5) == sampler.uses(6) == Uses(short=True, long=True, top_k=True, top_p=True, min_p=True)
    sampler.move([4], [0])
    assert sampler.uses(1) == nothing._replace(short=True, min_p=True)
    sampler.assign_rows(0, [Sampling()])
    sampler.assign_rows(1, [])
    assert sampler.uses(1) == nothing
    assert sampler.uses(2) == nothing._replace(long=True)


def test_a_row_draws_the_same_whatever_the_other_rows_ask_for() -> None:
    logits = 3 * torch.randn(3, 50)
    mine = Sampling(temperature=0.9, seed=5)
    neighbours = [Sampling(temperature=2.0, top_k=2, top_p=0.2, min_p=0.3, seed=9), Sampling()]
    sampler = Sampler(3, torch.device("cpu"))
    for count in range(50):
        sampler.assign_rows(0, [mine, *neighbours])
        together = sampler.pick(logits, torch.full((3,), count), sampler.uses(3))[0]
        alone = sampler.pick(logits[:1], torch.tensor([count]), sampler.uses(1))
        assert int(alone) == int(together)


def test_a_row_that_moves_keeps_its_knobs() -> None:
    logits = torch.randn(1, 50).expand(4, 50)
    sampler = Sampler(4, torch.device("cpu"))
    sampler.assign_rows(
        0, [Sampling(), Sampling(), Sampling(), Sampling(temperature=1.5, top_k=40, top_p=0.9, min_p=0.01, seed=3)]
    )
    for count in range(20):  # each draw is another one
        sampler.assign_rows(1, [Sampling()])
        assert not any(sampler.uses(2))
        counts = torch.full((4,), count)
        before = int(sampler.pick(logits, counts, sampler.uses(4))[3])
        sampler.move([3], [1])
        assert sampler.uses(2) == Uses(short=True, long=False, top_k=False, top_p=True, min_p=True)
        assert int(sampler.pick(logits[:2], counts[:2], sampler.uses(2))[1]) == before


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
        {"logprobs": -1},
        {"logprobs": MAX_LOGPROBS + 1},
        {"stop": "word"},
        {"stop": ("",)},
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("logprobs", [None, 0, 1, MAX_LOGPROBS])
def test_logprobs_may_be_none_or_up_to_the_most_that_are_returned(logprobs: int | None) -> None:
    assert Sampling(logprobs=logprobs).logprobs == logprobs


def test_log_probabilities_are_those_of_the_token_then_of_the_likeliest_then_their_ids() -> None:
    # Weights 1, 2, 5 of 8 and, shifted by a constant, which changes nothing, 6, 3, 1 of 10.
    logits = torch.tensor([[1.0, 2.0, 5.0], [6.0, 3.0, 1.0]], dtype=torch.float64).log()
    logits[1] += 7
    values = log_probabilities(logits, torch.tensor([1, 2]), alternatives=2)
    golden = [[0.25, 0.625, 0.25], [0.1, 0.6, 0.3]]
    assert values.dtype == torch.float64
    assert values.shape == (2, 5)
    torch.testing.assert_close(values[:, :3], torch.tensor(golden, dtype=torch.float64).log())
    assert values[:, 3:].tolist() == [[2, 1], [0, 1]]


def test_log_probabilities_of_ties_name_each_token_once() -> None:
    values = log_probabilities(torch.tensor([[2.0, 2.0, 2.0], [0.0, 9.0, 9.0]]), torch.tensor([0, 2]), alternatives=3)
    torch.testing.assert_close(values[0, :4], torch.full((4,), -math.log(3), dtype=torch.float64))
    assert sorted(values[0, 4:].tolist()) == [0, 1, 2]
    rest = math.log(2 + math.exp(-9))
    torch.testing.assert_close(values[1, :4], torch.tensor([-rest, -rest, -rest, -9 - rest], dtype=torch.float64))
    assert sorted(values[1, 4:6].tolist()) == [1, 2]
    assert values[1, 6] == 0


def test_without_alternatives_there_is_only_the_tokens_own_log_probability() -> None:
    values = log_probabilities(
        torch.tensor([[0.0, 0.0, -torch.inf], [0.0, 300.0, 0.0]]), torch.tensor([1, 0]), alternatives=0
    )
    assert values.tolist() == [[-math.log(2)], [-300.0]]


def test_log_probabilities_of_half_precision_logits_are_worked_out_in_double() -> None:
    logits = torch.tensor([[1.0, 2.5, -3.0]], dtype=torch.bfloat16)
    weights = [math.exp(logit) for logit in (1.0, 2.5, -3.0)]
    golden = [[math.log(weight / sum(weights)) for weight in (weights[2], weights[1])]]
    values = log_probabilities(logits, torch.tensor([2]), alternatives=1)
    torch.testing.assert_close(values[:, :2], torch.tensor(golden, dtype=torch.float64))


@pytest.mark.parametrize("vocabulary", [23, SHORTLIST + 30])
@pytest.mark.parametrize("temperature", [1e-45, 1e-39, 3e-38, 1e-10, 9e-6])
def test_a_temperature_too_small_to_divide_by_is_greedy(temperature: float, vocabulary: int) -> None:
    torch.manual_seed(0)
    logits, counts = 30 * torch.randn(3, vocabulary), torch.zeros(3, dtype=torch.int64)
    for other in (0.0, 0.8):  # beside a row that samples, and one that does not
        sampler = Sampler(3, torch.device("cpu"))
        small, short = Sampling(temperature=temperature), Sampling(temperature=temperature, top_k=5)
        sampler.assign_rows(0, [small, short, Sampling(temperature=other, top_p=0.9, min_p=0.1)])
        assert sampler.pick(logits, counts, sampler.uses(3)).tolist()[:2] == logits.argmax(-1).tolist()[:2]


@pytest.mark.parametrize("temperature", [1e-5, 1.0, 1e30, 1.7e308])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30, 3e38])
@pytest.mark.parametrize("top_k", [0, 4])
def test_whatever_the_sizes_of_logits_and_temperature_a_token_of_the_vocabulary_is_drawn(
    temperature: float, scale: float, top_k: int
) -> None:
    torch.manual_seed(0)
    for vocabulary in (23, SHORTLIST + 30):
        logits = (2 * torch.rand(8, vocabulary) - 1) * scale
        sampler = Sampler(8, torch.device("cpu"))
        sampler.assign_rows(0, [Sampling(temperature=temperature, top_k=top_k, seed=seed) for seed in range(8)])
        ids = sampler.pick(logits, torch.arange(8), sampler.uses(8))
        assert bool(((ids >= 0) & (ids < vocabulary)).all())


@pytest.mark.parametrize("vocabulary", [23, SHORTLIST + 30])
@pytest.mark.parametrize("bad", ["one nan", "all nan", "inf", "all -inf"])
def test_a_row_without_a_likeliest_token_gets_none_and_leaves_the_others_alone(bad: str, vocabulary: int) -> None:
    torch.manual_seed(0)
    logits, counts = torch.randn(4, vocabulary), torch.arange(4)
    samplings = [Sampling(), Sampling(temperature=1, seed=1), Sampling(temperature=1, top_k=3), Sampling(seed=3)]
    for row in range(4):
        sampler = Sampler(4, torch.device("cpu"))
        sampler.assign_rows(0, samplings)
        expected = sampler.pick(logits, counts, sampler.uses(4)).tolist()
        broken = logits.clone()
        if bad == "one nan":
            broken[row, 7] = torch.nan
        else:
            broken[row] = {"all nan": torch.nan, "all -inf": -torch.inf, "inf": torch.inf}[bad]
        picked = sampler.pick(broken, counts, sampler.uses(4)).tolist()
        assert picked == [NO_TOKEN if i == row else token for i, token in enumerate(expected)]


def test_tokens_that_the_model_rules_out_are_never_drawn() -> None:
    logits = torch.full((50, 23), -torch.inf)
    logits[:, [3, 7]] = torch.tensor([1.0, 2.0])
    for temperature in (1.0, 1.7e308):
        sampler = Sampler(50, torch.device("cpu"))
        sampler.assign_rows(0, [Sampling(temperature=temperature, seed=seed) for seed in range(50)])
        picked = sampler.pick(logits, torch.zeros(50, dtype=torch.int64), sampler.uses(50)).tolist()
        assert set(picked) == {3, 7}
