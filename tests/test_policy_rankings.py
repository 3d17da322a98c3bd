"""make_policy and its errors, rankings worked out by hand, and the random draw."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from leanthink.budget import Budget, select
from leanthink.errors import UsageError
from leanthink.policies import POLICIES, Slots, make_policy
from leanthink.policies.random import uniform
from leanthink.policies.sinks import Sinks
from leanthink.policies.snapkv import SnapKV
from policy_slots import (
    HEADS,
    HORIZONS,
    LAYER,
    FakePredictor,
    make,
    slots_for,
    tensors_of,
)

# --- make_policy


@pytest.mark.parametrize(
    ("given", "near"), [("horizn", "horizon"), ("random_heads", "random-heads"), ("Sinks", "sinks")]
)
def test_an_unknown_policy_names_the_nearest_and_all(given: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"Did you mean '{near}'") as error:
        make_policy(given)
    assert all(name in str(error.value) for name in POLICIES)


@pytest.mark.parametrize("name", ["dynts", "horizon"])
def test_a_learned_policy_without_a_predictor_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"policy '{name}' ranks by a fitted importance predictor"):
        make_policy(name)


@pytest.mark.parametrize("name", [name for name, policy in POLICIES.items() if policy.target is None])
def test_a_predictor_that_no_one_asked_for_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"policy '{name}' takes no predictor.*dynts or horizon"):
        make_policy(name, predictor=FakePredictor("answer"))


@pytest.mark.parametrize(("name", "wrong"), [("dynts", "horizon"), ("horizon", "answer")])
def test_a_predictor_of_the_other_target_is_refused(name: str, wrong: str) -> None:
    for build in (lambda predictor: make_policy(name, predictor=predictor), POLICIES[name]):
        with pytest.raises(UsageError, match=f"the given one has target '{wrong}'"):
            build(predictor=FakePredictor(wrong, HORIZONS))


@pytest.mark.parametrize("horizons", [(), (0, 4), (4, 4), (16, 4)])
def test_horizons_that_do_not_ascend_from_one_are_refused(horizons: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=f"must ascend from at least 1, got {re.escape(repr(horizons))}"):
        make_policy("horizon", predictor=FakePredictor("horizon", horizons))


def test_tokens_that_follow_later_than_the_first_horizon_are_refused() -> None:
    with pytest.raises(UsageError, match="must stay below its first horizon, 4"):
        make_policy("horizon", predictor=FakePredictor("horizon", HORIZONS, offsets=(0, 4)))
    assert make_policy("horizon", predictor=FakePredictor("horizon", HORIZONS, offsets=(0, 3))).offsets == (0, 3)


@pytest.mark.parametrize("settings", [{"observation": 0}, {"kernel": 0}, {"kernel": 6}])
def test_snapkv_settings_out_of_range_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="kernel odd"):
        SnapKV(**settings)


def test_a_negative_number_of_sinks_is_refused() -> None:
    with pytest.raises(UsageError, match="num_sinks must be at least 0, got -1"):
        Sinks(num_sinks=-1)


# --- worked out by hand


def hand_slots(*, prompt_tokens: int, positions: list[int], next_position: int, stamps: Any = None) -> Slots:
    positions_RS = torch.tensor([positions])
    return Slots(
        ages=next_position - 1 - positions_RS,
        positions=positions_RS,
        next_position=torch.tensor([next_position]),
        prompt_tokens=torch.tensor([prompt_tokens]),
        seeds=torch.tensor([0]),
        stamps=stamps,
    )


def test_full_never_ranks() -> None:
    with pytest.raises(AssertionError, match="evicts nothing"):
        make("full").score(slots_for(make("window")))


def test_horizon_ranks_by_the_largest_horizon_that_the_age_has_reached() -> None:
    ages = [200, 64, 63, 17, 16, 15, 5, 4]
    stamps = torch.tensor([[[100.0 * slot + channel for channel in range(3)] for slot in range(8)]])
    slots = hand_slots(prompt_tokens=0, positions=[300 - age for age in ages], next_position=301, stamps=stamps)
    # Horizons 4, 16, 64: ages 200 and 64 use channel 2; 63, 17 and 16 channel 1; 15, 5 and 4 channel 0.
    assert make("horizon").score(slots).tolist() == [[2.0, 102.0, 201.0, 301.0, 401.0, 500.0, 600.0, 700.0]]


def test_horizon_puts_slots_younger_than_its_first_horizon_above_all_the_youngest_first() -> None:
    slots = hand_slots(
        prompt_tokens=0, positions=[90, 96, 97, 98, 99, 100], next_position=101, stamps=torch.full((1, 6, 3), 1e5)
    )
    score_S = make("horizon").score(slots)[0].tolist()
    assert score_S[:2] == [1e5, 1e5]
    assert 1e5 < score_S[2] < score_S[3] < score_S[4] < score_S[5]


def test_horizon_forgets_what_will_not_be_read_from_so_far_away() -> None:
    # Both are 20 tokens old. The first was read heavily up to there (channel 0), the second will be read (channel 1).
    stamps = torch.tensor([[[9.0, -5.0, -5.0], [-1.0, 2.0, -5.0], [0.0, 0.0, 0.0]]])
    slots = hand_slots(prompt_tokens=0, positions=[79, 80, 100], next_position=101, stamps=stamps)
    score = make("horizon").score(slots)
    kept = select(score, slots.ages, torch.zeros(1, 3, dtype=torch.bool), Budget(slots=2, window=1))
    assert kept.tolist() == [[1, 2]]


def test_dynts_ranks_by_the_stamp_whatever_the_age() -> None:
    stamps = torch.tensor([[[0.5], [3.0], [0.25]]])
    slots = hand_slots(prompt_tokens=0, positions=[1, 50, 100], next_position=101, stamps=stamps)
    assert make("dynts").score(slots).tolist() == [[0.5, 3.0, 0.25]]


def test_sinks_are_the_first_four_tokens_of_the_thought_and_not_of_the_prompt() -> None:
    slots = hand_slots(prompt_tokens=10, positions=[10, 11, 13, 14, 15, 20], next_position=21)
    assert make("sinks").score(slots).tolist() == [[4.0, 3.0, 1.0, -6.0, -5.0, 0.0]]


def test_window_ranks_by_age() -> None:
    slots = hand_slots(prompt_tokens=0, positions=[3, 7, 10], next_position=11)
    assert make("window").score(slots).tolist() == [[-7.0, -3.0, 0.0]]


def test_snapkv_pools_the_attention_of_one_query_over_seven_slots() -> None:
    # One head, one query of age 0, keys of width 1: only slot 4 has a logit above 0, and it is log(3).
    slots = replace(
        hand_slots(prompt_tokens=0, positions=list(range(9)), next_position=9),
        ages=torch.arange(8, -1, -1)[None, None],
        positions=torch.arange(9)[None, None],
        layer=0,
        keys=torch.tensor([0.0, 0, 0, 0, 1, 0, 0, 0, 0]).view(1, 1, 9, 1),
        queries=torch.full((1, 1, 1, 1, 1), 2 * torch.log(torch.tensor(3.0)).item()),
        scaling=0.5,
    )
    score_S = SnapKV(observation=1).score(slots)[0, 0]
    low, high = 1 / 11, 3 / 11
    assert score_S.tolist() == pytest.approx([low, high, high, high, high, high, high, high, low])


def test_snapkv_hears_only_the_latest_queries_that_it_asked_for() -> None:
    slots = slots_for(SnapKV(observation=12))
    assert slots.queries is not None
    asked = replace(slots, queries=slots.queries[..., -8:, :])
    assert torch.equal(SnapKV().score(slots), SnapKV().score(asked))


def test_a_query_of_snapkv_does_not_vote_on_slots_written_after_it() -> None:
    slots = slots_for(SnapKV(), rows=1, num_slots=4)
    assert slots.keys is not None
    positions = torch.arange(4).expand(1, HEADS, 4) + slots.prompt_tokens
    slots = replace(slots, positions=positions, ages=positions.flip(-1) - slots.prompt_tokens)
    # Of eight queries only the last four were written beside these slots; the youngest slot has one vote, its own.
    youngest = SnapKV(kernel=1).score(slots)[..., 3]
    assert (youngest <= 1 / 8).all()
    assert SnapKV(kernel=1).score(slots).sum(dim=-1) == pytest.approx(torch.full((1, HEADS), 4 / 8))


# --- the random draw


def test_the_draw_is_splitmix64() -> None:
    # The first two outputs of the published generator from state 0.
    draws = uniform(torch.tensor([0, 0x9E3779B97F4A7C15 - 2**64])).tolist()
    assert draws == [(0xE220A8397B1DCDAF >> 40) / 2**24, (0x6E789E6AA1B965F4 >> 40) / 2**24]


def test_the_draw_is_uniform_and_no_two_counters_share_it() -> None:
    seeds, moments, positions = torch.arange(20)[:, None, None], torch.arange(30)[:, None], torch.arange(200)
    draws = uniform(seeds, moments, positions)
    counts = torch.histc(draws, bins=20, min=0, max=1)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert (counts / draws.numel() * 20 - 1).abs().max() < 0.03
    flat = draws.flatten(0, 1)
    assert (torch.corrcoef(flat[:100]) - torch.eye(100)).abs().max() < 0.4


@pytest.mark.parametrize("name", ["random", "random-heads"])
def test_a_new_eviction_or_another_seed_draws_another_set(name: str) -> None:
    slots = slots_for(make(name), rows=1)
    score = make(name).score(slots)
    for field in ("seeds", "next_position"):
        other = make(name).score(replace(slots, **{field: tensors_of(slots)[field] + 1}))
        assert (ranking_of(other) != ranking_of(score)).float().mean() > 0.5


def test_random_heads_draws_apart_for_each_layer_and_head() -> None:
    slots = slots_for(make("random-heads"), rows=1)
    slots = replace(slots, positions=slots.positions[:, :1].expand(-1, HEADS, -1))
    score = make("random-heads").score(slots)
    next_layer = make("random-heads").score(replace(slots, layer=LAYER + 1))
    assert (ranking_of(score)[:, 0] != ranking_of(score)[:, 1]).float().mean() > 0.5
    assert (ranking_of(score) != ranking_of(next_layer)).float().mean() > 0.5


def ranking_of(score: Tensor) -> Tensor:
    return score.argsort(dim=-1)
