from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanthink.rl.rewards import (
    batch_pass_ratio,
    deepcompress_reward,
    difficulty,
    dual_length_reward,
    group_weights,
    moving_average,
    next_average,
    outcome_reward,
    pass_ratio,
    soft_overlong,
    standardized_length,
)
from leanthink.utils.errors import UsageError
from reference.rewards_slow import reward_slowly

NAN = math.nan


def close(found: torch.Tensor, wanted: Any) -> None:
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), equal_nan=True)


def test_outcomes_are_plus_and_minus_one_and_what_was_not_graded_stays_nan() -> None:
    close(outcome_reward([[1, 0, NAN]]), [[1, -1, NAN]])


def test_pass_ratios_leave_out_what_was_not_graded() -> None:
    close(pass_ratio([[1, 0, 0, 1], [1, NAN, NAN, 1], [0, NAN, 1, 1]]), [0.5, 1.0, 2 / 3])
    close(pass_ratio([[NAN, NAN]]), [NAN])


def test_the_batch_ratio_is_the_mean_over_prompts_and_not_over_responses() -> None:
    assert batch_pass_ratio([[1, 0, NAN, NAN], [1, 1, 1, 1], [NAN, NAN, NAN, NAN]]) == 0.75


def test_the_moving_average_of_the_paper_after_one_ten_and_a_hundred_steps() -> None:
    average, seen = 1.0, {}
    for step in range(1, 101):
        average = moving_average(average, 0.5, 0.99)
        seen[step] = average
    assert seen[1] == pytest.approx(0.995)
    assert seen[10] == pytest.approx(0.5 + 0.5 * 0.99**10)  # 0.952
    assert seen[100] == pytest.approx(0.683, abs=1e-3)
    assert moving_average(0.7, NAN, 0.99) == 0.7
    assert moving_average(0.7, 0.2, 0) == 0.2
    with pytest.raises(UsageError, match=r"ema_decay=1\.5"):
        moving_average(1, 0, 1.5)


def test_what_is_solved_more_often_than_the_batch_is_simple() -> None:
    close(difficulty([0.75, 0.25], 0.5), [0.25, -0.25])


def test_lengths_are_standardised_by_the_population_deviation_of_all_responses() -> None:
    # mean 25, deviations -15 -5 5 15, population variance 125
    close(standardized_length([[10, 20, 30, 40]]), [[x / math.sqrt(125) for x in (-15, -5, 5, 15)]])
    close(standardized_length([[7, 7, 7]]), [[0, 0, 0]])
    close(standardized_length([[10, 20, 1000]], [[1, 0, NAN]]), [[-1, 1, 0]])


def test_the_published_curve() -> None:
    # alpha 0.1, z = 2, beta = 1: 0.1 * sigmoid(-2) = 0.0119; alpha / 2 at z = 0
    one_long = [[0] * 4 + [5]]  # mean 1, population deviation 2: z = 2 for the last
    right = [[0, 1, 1, 1, 1]]
    reward = dual_length_reward(one_long, right, [1.0], alpha=0.1)
    assert reward[0, 4].item() == pytest.approx(0.1 / (1 + math.e**2))
    assert reward[0, 0].item() == 0
    assert reward[0, 1].item() == pytest.approx(0.1 / (1 + math.exp(-0.5)))
    close(dual_length_reward([[9, 9]], [[1, 0]], [0.3], alpha=0.2), [[0.1, 0]])


def test_simple_prompts_reward_the_short_and_hard_ones_the_long() -> None:
    lengths, right = [[10, 20, 30, 40]] * 2, [[1, 1, 1, 0]] * 2
    simple, hard = dual_length_reward(lengths, right, [0.5, -0.5])
    assert simple[0] > simple[1] > simple[2] > simple[3] == 0
    assert hard[2] > hard[1] > hard[0] > hard[3] == 0


def test_groups_that_are_all_right_or_all_wrong_get_no_length_reward_unless_mastered_ones_are_kept() -> None:
    lengths, right = [[10, 20]] * 2, [[1, 1], [0, 0]]
    close(dual_length_reward(lengths, right, [0.5, -0.5]), [[0, 0], [0, 0]])
    kept = dual_length_reward(lengths, right, [0.5, -0.5], keep_all_correct=True)
    assert kept[0, 0] > kept[0, 1] > 0
    close(kept[1], [0, 0])


def test_below_the_target_length_nothing_is_gained_by_being_shorter() -> None:
    # at a target of 20 the lengths count as 20, 20, 40: mean 80 / 3, deviation sqrt(800) / 3
    lengths, right = [[10, 20, 40], [5, 10, 20]], [[1, 1, 1], [1, 1, 1]]
    found = deepcompress_reward(lengths, right, 1.0, 0.2, keep_all_correct=True, target_length=20)
    close(found[0], [1 + 0.2 / (1 + math.exp(-math.sqrt(0.5)))] * 2 + [1 + 0.2 / (1 + math.exp(math.sqrt(2)))])
    close(found[1], [1.1, 1.1, 1.1])
    without = deepcompress_reward(lengths, right, 1.0, 0.2, keep_all_correct=True)
    assert without[1, 0] > without[1, 1] > without[1, 2]


def test_the_overlong_penalty_of_the_paper() -> None:
    lengths = [[100, 8192, 8193, 9216, 10240]]
    close(soft_overlong(lengths, 10240, 2048), [[0, 0, -1 / 2048, -0.5, -1]])
    close(soft_overlong(lengths, 10240, 2048, factor=0.5)[:, -1], [-0.5])


def test_the_whole_reward_of_a_batch_worked_out_by_hand() -> None:
    # prompt 1: P_g = 0.5, mean 20, deviation 10, z = -1, 1; beta = 0.5 - 0.6 = -0.1
    # prompt 2: all right, no length reward; the last response is 4 tokens into a buffer of 8: -0.5
    found = deepcompress_reward([[10, 30], [20, 36]], [[1, 0], [1, 1]], 0.6, alpha=0.2, max_length=40, buffer=8)
    close(found, [[1 + 0.2 / (1 + math.exp(0.1)), -1], [1, 0.5]])


@given(
    B=st.integers(1, 4),
    G=st.integers(2, 6),
    seed=st.integers(0, 10**6),
    rule=st.sampled_from(["dual", "penalty", "bonus", "none"]),
    keep=st.booleans(),
    overlong=st.sampled_from([None, (60, 20, 1.0), (100, 100, 0.5)]),
    target=st.sampled_from([None, 30]),
)
@settings(max_examples=200, deadline=None)
def test_every_batch_is_rewarded_as_by_the_reference_implementation(
    B: int, G: int, seed: int, rule: Any, keep: bool, overlong: tuple[int, int, float] | None, target: int | None
) -> None:
    draws = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 60, (B, G), generator=draws)
    verdicts = torch.tensor([0.0, 1.0, 1.0, NAN])[torch.randint(4, (B, G), generator=draws)]
    average = float(torch.rand((), generator=draws))
    limits = {} if overlong is None else dict(zip(("max_length", "buffer", "factor"), overlong, strict=True))
    options: dict[str, Any] = {"alpha": 0.3, "length_reward_mode": rule, "keep_all_correct": keep}
    options["target_length"] = None if rule == "none" else target
    found = deepcompress_reward(lengths, verdicts, average, **options, **limits)
    wanted = [
        [reward_slowly(row, right, i, average, overlong=overlong, **options) for i in range(G)]
        for row, right in zip(lengths.tolist(), verdicts.tolist(), strict=True)
    ]
    close(found, wanted)


def test_lists_arrays_and_tensors_of_any_type_give_the_same() -> None:
    lengths, right = [[3, 5, 9]], [[1, 0, 1]]
    wanted = deepcompress_reward(lengths, right, 0.4)
    for make in (np.array, torch.tensor, lambda x: torch.tensor(x, dtype=torch.bfloat16)):
        assert torch.equal(deepcompress_reward(make(lengths), make(right), 0.4), wanted)
    assert torch.equal(deepcompress_reward(lengths, torch.tensor(right).bool(), 0.4), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length_reward_mode": "duel"}, "Did you mean 'dual'"),
        ({"alpha": -0.1}, r"alpha=-0\.1"),
        ({"lengths_BG": [[1]], "correct_BG": [[1]]}, "a group of one"),
        ({"lengths_BG": [[1, 2, 3]]}, "both must be"),
        ({"correct_BG": [[1, -1]]}, r"1 .right., 0 .wrong. or NaN"),
        ({"max_length": 10, "buffer": 11}, "0 < buffer <= max_length"),
        ({"max_length": 10, "buffer": 5, "factor": -1.0}, "factor >= 0"),
    ],
)
def test_arguments_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    plain: dict[str, Any] = {"lengths_BG": [[1, 2]], "correct_BG": [[1, 0]], "batch_pass_ratio": 0.5}
    with pytest.raises(UsageError, match=message):
        deepcompress_reward(**(plain | change))


def test_rewards_load_neither_transformers_nor_trl() -> None:
    code = "import sys, leanthink.rl.rewards; assert not {'transformers', 'trl'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_groups_weigh_in_the_update_by_what_they_can_teach() -> None:
    verdicts = [[1, 0], [1, 1], [0, 0], [math.nan, math.nan], [1, math.nan]]
    assert group_weights(verdicts, 0.25).tolist() == [1, 0.25, 0, 0, 0.25]
    assert group_weights(verdicts, 0.0, others=1.0).tolist() == [1, 0, 1, 1, 0]


def test_the_average_begins_at_its_initial_value_or_at_the_first_batch() -> None:
    how: dict[str, Any] = {"ema_decay": 0.75}
    assert next_average(None, 0.5, **how, ema_initial_value=1.0) == 0.875
    assert next_average(None, 0.5, **how, ema_initial_value="observed") == 0.5
    assert next_average(1.0, 0.5, **how, ema_initial_value="observed") == 0.875
