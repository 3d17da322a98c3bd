"""make_policy and its errors, rankings worked out by hand, and the random draw."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from leanthink.policies import POLICIES, Slots, make_policy
from leanthink.policies.budget import Budget, select
from leanthink.policies.h2o import H2O
from leanthink.policies.horizon import Horizon
from leanthink.policies.keydiff import KeyDiff
from leanthink.policies.oracle import Oracle
from leanthink.policies.random import uniform
from leanthink.policies.rkv import RKV
from leanthink.policies.sepllm import SepLLM
from leanthink.policies.sinks import Sinks
from leanthink.policies.snapkv import SnapKV
from leanthink.policies.tova import TOVA
from leanthink.policies.vase import VaSE
from leanthink.utils.errors import UsageError
from models import make_tokenizer
from policy_slots import (
    HEADS,
    HORIZONS,
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


@pytest.mark.parametrize("name", [name for name, p in POLICIES.items() if p.target is None and not p.labelled])
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


def test_the_policy_that_knows_the_future_has_no_name_for_all() -> None:
    with pytest.raises(UsageError, match=r"one recorded request.*importance\.oracle"):
        make_policy("oracle")


def test_separators_are_found_in_the_tokenizer_and_asked_for_without_one() -> None:
    with pytest.raises(UsageError, match="'sepllm' looks for separators in the text: give the model's tokenizer"):
        make_policy("sepllm")
    tokenizer = make_tokenizer()
    policy = make_policy("sepllm", tokenizer=tokenizer)
    assert isinstance(policy, SepLLM)
    texts = [tokenizer.decode([token_id]) for token_id in policy.separator_ids]
    assert sorted(texts) == sorted(SepLLM.texts), "a tokenizer of bytes has one token for each"


@pytest.mark.parametrize(
    ("build", "settings", "says"),
    [
        (H2O, {"waiting": 0}, "waiting must be a whole number of at least 1, got 0"),
        (RKV, {"observation": 1.5}, "observation must be a whole number"),
        (RKV, {"kernel": 4}, "kernel must be odd"),
        (RKV, {"mix": 1.1}, r"mix lie in \[0, 1\]"),
        (RKV, {"alike": -2}, r"alike in \[-1, 1\]"),
        (VaSE, {"kernel": 2}, "kernel must be odd"),
        (VaSE, {"large": -0.1}, r"large lie in \[0, 1\]"),
        (VaSE, {"num_sinks": -1}, "num_sinks must be a whole number of at least 0"),
        (SepLLM, {"separator_ids": ()}, "no token separates"),
        (SepLLM, {"separator_ids": (1,), "num_sinks": True}, "num_sinks must be a whole number"),
        (Oracle, {"labels_XTC": torch.zeros(3, 2), "distances": (4,)}, r"at least \[1, 1\], .* got \[3, 2\]"),
        (Oracle, {"labels_XTC": torch.zeros(0, 1), "distances": (4,)}, r"got \[0, 1\]"),
        (Oracle, {"labels_XTC": torch.zeros(3, 1), "distances": (4,), "rule": "roof"}, "unknown rule 'roof'"),
    ],
)
def test_settings_of_peers_out_of_range_are_refused(build: Any, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        build(**settings)


@pytest.mark.parametrize(("settings", "says"), [({"rule": "roof"}, "unknown rule"), ({"only": 5}, "unknown horizon")])
def test_ablations_of_horizon_out_of_range_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Horizon(predictor=FakePredictor("horizon", HORIZONS), **settings)


@pytest.mark.parametrize("settings", [{"observation": 0}, {"kernel": 0}, {"kernel": 6}])
def test_snapkv_settings_out_of_range_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="kernel odd"):
        SnapKV(**settings)


def test_a_negative_number_of_sinks_is_refused() -> None:
    with pytest.raises(UsageError, match="num_sinks must be at least 0, got -1"):
        Sinks(num_sinks=-1)


# --- worked out by hand


def hand_slots(*, prompt_tokens: int, positions: list[int], next_position: int, token_scores: Any = None) -> Slots:
    positions_RS = torch.tensor([positions])
    return Slots(
        ages=next_position - 1 - positions_RS,
        positions=positions_RS,
        next_position=torch.tensor([next_position]),
        prompt_tokens=torch.tensor([prompt_tokens]),
        seeds=torch.tensor([0]),
        token_scores=token_scores,
    )


def test_full_never_ranks() -> None:
    with pytest.raises(AssertionError, match="evicts nothing"):
        make("full").score(slots_for(make("window")))


def test_horizon_ranks_by_the_largest_horizon_that_the_age_has_reached() -> None:
    ages = [200, 64, 63, 17, 16, 15, 5, 4]
    token_scores = torch.tensor([[[100.0 * slot + channel for channel in range(3)] for slot in range(8)]])
    slots = hand_slots(
        prompt_tokens=0, positions=[300 - age for age in ages], next_position=301, token_scores=token_scores
    )
    # Horizons 4, 16, 64: ages 200 and 64 use channel 2; 63, 17 and 16 channel 1; 15, 5 and 4 channel 0.
    assert make("horizon").score(slots).tolist() == [[2.0, 102.0, 201.0, 301.0, 401.0, 500.0, 600.0, 700.0]]


def test_horizon_puts_slots_younger_than_its_first_horizon_above_all_the_youngest_first() -> None:
    slots = hand_slots(
        prompt_tokens=0, positions=[90, 96, 97, 98, 99, 100], next_position=101, token_scores=torch.full((1, 6, 3), 1e5)
    )
    score_S = make("horizon").score(slots)[0].tolist()
    assert score_S[:2] == [1e5, 1e5]
    assert 1e5 < score_S[2] < score_S[3] < score_S[4] < score_S[5]


def test_horizon_forgets_what_will_not_be_read_from_so_far_away() -> None:
    # Both are 20 tokens old. The first was read heavily up to there (channel 0), the second will be read (channel 1).
    token_scores = torch.tensor([[[9.0, -5.0, -5.0], [-1.0, 2.0, -5.0], [0.0, 0.0, 0.0]]])
    slots = hand_slots(prompt_tokens=0, positions=[79, 80, 100], next_position=101, token_scores=token_scores)
    score = make("horizon").score(slots)
    kept = select(score, slots.ages, torch.zeros(1, 3, dtype=torch.bool), Budget(slots=2, recent_window=1))
    assert kept.tolist() == [[1, 2]]


def test_dynts_ranks_by_the_token_score_whatever_the_age() -> None:
    token_scores = torch.tensor([[[0.5], [3.0], [0.25]]])
    slots = hand_slots(prompt_tokens=0, positions=[1, 50, 100], next_position=101, token_scores=token_scores)
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
        layer=torch.tensor([0]),
        keys=torch.tensor([0.0, 0, 0, 0, 1, 0, 0, 0, 0]).view(1, 1, 9, 1),
        queries=torch.full((1, 1, 1, 1, 1), 2 * torch.log(torch.tensor(3.0)).item()),
        scaling=0.5,
    )
    score_S = SnapKV(observation=1).score(slots)[0, 0]
    low, high = 1 / 11, 3 / 11
    assert score_S.tolist() == pytest.approx([low, high, high, high, high, high, high, high, low])


def head_slots(ages: list[int], keys: Any, *, queries: Any = None, **more: Any) -> Slots:
    """One row, layer and kv head; `queries` of one query head, the youngest last; the prompt has 10 tokens."""
    positions = torch.tensor([[[ages[0] + 10 - age for age in ages]]])
    keys_SD = torch.tensor(keys, dtype=torch.float32)
    return Slots(
        ages=torch.tensor([[ages]]),
        positions=positions,
        next_position=positions.amax(dim=(1, 2)) + 1,
        prompt_tokens=torch.tensor([10]),
        seeds=torch.tensor([0]),
        layer=torch.tensor([0]),
        keys=keys_SD[None, None],
        queries=None if queries is None else torch.tensor(queries, dtype=torch.float32)[None, None, None],
        scaling=1.0,
        **more,
    )


def test_h2o_ranks_by_the_attention_that_was_added_up() -> None:
    slots = head_slots([2, 1, 0], [[1.0], [2.0], [3.0]], accumulated_attention=torch.tensor([[[0.5, 2.5, 1.0]]]))
    assert H2O().score(slots).tolist() == [[[0.5, 2.5, 1.0]]]


def test_tova_is_the_mean_of_the_heads_softmax_with_what_is_pinned_in_it() -> None:
    # Weights 1, 3 and 4 of the slots, and 8 of the prompt: a head without a prompt would see 1/8, 3/8 and 1/2.
    keys = [[math.log(1.0)], [math.log(3.0)], [math.log(4.0)]]
    pinned = torch.tensor([[[[math.log(8.0)]]]])
    slots = head_slots([2, 1, 0], keys, queries=[[1.0]], pinned_log_sums=pinned)
    assert TOVA().score(slots)[0, 0].tolist() == pytest.approx([1 / 16, 3 / 16, 4 / 16])
    assert TOVA().score(replace(slots, pinned_log_sums=None))[0, 0].tolist() == pytest.approx([1 / 8, 3 / 8, 1 / 2])


def test_the_query_of_the_last_prompt_token_votes_and_that_of_the_one_before_does_not() -> None:
    # Eleven tokens of ten prompt tokens and one of thought, none pinned: queries of positions 8, 9 and 10.
    slots = head_slots(list(range(10, -1, -1)), [[0.0]] * 11, queries=[[1.0], [1.0], [1.0]])
    slots = replace(slots, positions=slots.positions - 10, next_position=torch.tensor([11]))
    votes = SnapKV(observation=3, kernel=1, pins_prompt=False).score(slots)[0, 0]
    assert votes.tolist() == pytest.approx([(1 / 10 + 1 / 11) / 3] * 10 + [1 / 11 / 3])


def test_tova_ranks_all_heads_of_a_layer_alike() -> None:
    score = TOVA().score(slots_for(TOVA()))
    assert torch.equal(score[:, 0], score[:, 1])


def test_keydiff_ranks_by_the_angle_to_the_mean_direction_and_not_by_length() -> None:
    # The mean of the directions (1, 0), (1, 0) and (0, 1) points along (2, 1).
    score = KeyDiff().score(head_slots([2, 1, 0], [[5.0, 0.0], [1.0, 0.0], [0.0, 3.0]]))
    assert score[0, 0].tolist() == pytest.approx([-2 / 5**0.5, -2 / 5**0.5, -1 / 5**0.5])


def test_rkv_mixes_importance_and_redundancy_and_spares_the_youngest_of_several_like_keys() -> None:
    # Slots 0 to 2 share a direction, slot 3 stands alone, slot 4 is too young to be ranked.
    keys = [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    score = RKV(observation=1, kernel=1, mix=0.4).score(head_slots([9, 8, 7, 6, 0], keys, queries=[[0.0, 1.0]]))
    weights = [1.0, 1.0, 1.0, math.e]  # of slots 0 to 3 for this query
    # Slot 0 is repeated by 1 and 2; both leave out the youngest that they repeat: 2 for 0 and 1, 1 for 2.
    likeness = [2 / 5, 1 / 5, 0.0, -1 / 5, -1 / 5]
    total = sum(math.exp(number) for number in likeness)
    for slot in range(4):
        wanted = 0.4 * weights[slot] / sum(weights) - 0.6 * math.exp(likeness[slot]) / total

        assert float(score[0, 0, slot]) == pytest.approx(wanted)
    assert score[0, 0, 4] > 1e6


def test_vase_protects_wide_values_and_draws_the_others_by_their_weight() -> None:
    # Eight slots, the last too young; a quarter of them, two, is large: ranges 9 and 7.
    ranges = [1.0, 9.0, 2.0, 3.0, 7.0, 1.0, 1.0, 100.0]
    policy, ages = VaSE(observation=1, kernel=1), [70, 60, 50, 40, 30, 20, 10, 0]
    values = torch.tensor([[0.0, wide] for wide in ranges])[None, None]
    keys = [[0.0], [0.0], [5.0], [0.0], [0.0], [0.0], [0.0], [0.0]]
    slots, first = head_slots(ages, keys, queries=[[2.0]], values=values), []
    score_S = policy.score(slots)[0, 0]
    assert score_S.argsort(descending=True)[:3].tolist() == [7, 1, 4]
    for seed in range(200):
        drawn = policy.score(replace(slots, seeds=torch.tensor([seed])))[0, 0]
        first.append(int(drawn.argsort(descending=True)[3]))
    assert first.count(2) == 200, "its weight is that of 22026 others"
    flat = replace(slots, keys=torch.zeros(1, 1, 8, 1))
    drawn = [policy.score(replace(flat, seeds=torch.tensor([seed])))[0, 0].argsort()[-4] for seed in range(500)]
    counts = torch.bincount(torch.stack(drawn), minlength=8)
    assert counts[[1, 4, 7]].sum() == 0
    assert counts[[0, 2, 3, 5, 6]].min() > 60, "five equal weights are drawn about 100 times each"


def test_no_draw_of_vase_is_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.tensor([0.0, 1 - 2.0**-24] * 4)  # the least and the largest that there are
    monkeypatch.setattr("leanthink.policies.vase.uniform_per_head", lambda slots: draws.expand(1, 1, 8))
    slots = head_slots([70, 60, 50, 40, 30, 20, 10, 0], [[0.0]] * 8, queries=[[2.0]], values=torch.zeros(1, 1, 8, 2))
    score_S = VaSE(observation=1, kernel=1, large=0.0).score(slots)[0, 0]
    assert score_S.isfinite().all()
    assert score_S[1:6:2].min() > score_S[0:6:2].max()


def test_sinks_of_the_sequence_stay_where_the_prompt_is_not_pinned() -> None:
    slots = hand_slots(prompt_tokens=10, positions=[1, 3, 4, 10, 20], next_position=21)
    assert Sinks(pins_prompt=False).score(slots).tolist() == [[3.0, 1.0, -16.0, -10.0, 0.0]]
    slots = replace(slots, token_ids=torch.tensor([[5, 5, 7, 5, 7]]))
    assert SepLLM(separator_ids=(7,)).score(slots).argsort(descending=True).tolist() == [[0, 1, 4, 2, 3]]


def test_the_oracle_ranks_by_the_label_of_the_age_and_last_what_was_never_recorded() -> None:
    labels = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.6], [0.7, 0.7]])
    slots = hand_slots(prompt_tokens=10, positions=[10, 11, 12, 13, 14, 20], next_position=21)
    oracle = Oracle(labels_XTC=labels, distances=(4, 9))
    score_S = oracle.score(slots)[0].tolist()
    assert score_S[:5] == pytest.approx([0.1, 0.8, 0.5, 0.7, -1.0])  # ages 10, 9, 8, 7 and 6
    assert score_S[5] > 1e6
    up = Oracle(labels_XTC=labels, distances=(4, 9), rule="ceil", local=False)
    assert up.score(slots)[0].tolist() == pytest.approx([0.1, 0.8, 0.6, 0.7, -1.0, -1.0])


def test_the_ablations_of_horizon_take_a_part_away() -> None:
    predictor, ages = FakePredictor("horizon", HORIZONS, offsets=(0, 2)), [70, 64, 17, 16, 5, 3, 1]
    token_scores = torch.tensor([[[100.0 * slot + channel for channel in range(3)] for slot in range(7)]])
    slots = hand_slots(
        prompt_tokens=0, positions=[300 - age for age in ages], next_position=301, token_scores=token_scores
    )
    up = Horizon(predictor=predictor, rule="ceil").score(slots)[0].tolist()  # horizons 4, 16 and 64
    assert up[:5] == [2.0, 102.0, 202.0, 301.0, 401.0]
    one = Horizon(predictor=predictor, only=16).score(slots)[0].tolist()
    assert one[:5] == [1.0, 101.0, 201.0, 301.0, 401.0]
    assert one[5] > 1e6
    bare = Horizon(predictor=predictor, local=False)
    assert bare.score(slots)[0].tolist()[4:6] == [400.0, 500.0]
    assert bare.score(slots)[0, 6] > 1e6, "it has no token scores yet"
    assert bare.stride == 1


def test_snapkv_hears_only_the_latest_queries_that_it_asked_for() -> None:
    slots = slots_for(SnapKV(observation=12))
    assert slots.queries is not None
    assert slots.pinned_log_sums is not None
    asked = replace(slots, queries=slots.queries[..., -8:, :], pinned_log_sums=slots.pinned_log_sums[..., -8:])
    assert torch.equal(SnapKV().score(slots), SnapKV().score(asked))


def test_a_query_of_snapkv_does_not_vote_on_slots_written_after_it() -> None:
    slots = slots_for(SnapKV(), rows=1, num_slots=4)
    assert slots.keys is not None
    positions = torch.arange(4).expand(1, HEADS, 4) + slots.prompt_tokens
    slots = replace(slots, positions=positions, ages=positions.flip(-1) - slots.prompt_tokens, pinned_log_sums=None)
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
    next_layer = make("random-heads").score(replace(slots, layer=tensors_of(slots)["layer"] + 1))
    assert (ranking_of(score)[:, 0] != ranking_of(score)[:, 1]).float().mean() > 0.5
    assert (ranking_of(score) != ranking_of(next_layer)).float().mean() > 0.5


def ranking_of(score: Tensor) -> Tensor:
    return score.argsort(dim=-1)
