from __future__ import annotations

import math
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from leanthink.rl.rewards import deepcompress_reward
from leanthink.rl.trl_reward import STATE, DeepCompressReward, metrics, warn
from leanthink.utils.errors import LeanThinkWarning, UsageError
from models import END, make_tokenizer
from test_tags import make_tokenizer as without_tags

RIGHT, WRONG, UNKNOWN = "right", "wrong", "?"


def says_right(row: Any, text: str, *, think_tags: bool) -> bool | None:
    """By the answer that the text ends in; in tests every text says what it is."""
    if think_tags and "</think>" not in text:
        return False
    return None if text.endswith("?") else text.endswith("right")


def response(answer: str, thought: int = 3, *, closed: bool = True) -> list[int]:
    return tokens("a" * thought + ("</think>" if closed else "") + answer)


def tokens(text: str) -> list[int]:
    return [*make_tokenizer()(text).input_ids, END]


def attached(*, group: int = 2, scale_rewards: str = "group", **settings: Any) -> Any:
    """A reward that belongs to a trainer which has nothing but what a reward may look at."""
    reward = DeepCompressReward(**{"max_length": 64, "grader": says_right, "ema_decay": 0.5, **settings})
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        num_generations=group,
        num_generations_eval=4,
        scale_rewards=scale_rewards,
        processing_class=make_tokenizer(),
        accelerator=SimpleNamespace(process_index=0),
        state=SimpleNamespace(global_step=0, stateful_callbacks={}),
    )
    reward.attach(trainer)
    return SimpleNamespace(
        trainer=trainer,
        reward=reward,
        kept=lambda: trainer.state.stateful_callbacks[STATE]["attributes"],
        score=lambda *ids, **columns: reward(
            [None] * len(ids), [None] * len(ids), ids, trainer_state=trainer.state, **columns
        ),
    )


MIXED = [response(RIGHT, 2), response(WRONG, 6), response(RIGHT, 3), response(RIGHT, 9)]


def test_rewards_are_those_of_the_pure_functions_on_whole_groups() -> None:
    one = attached()
    found = one.score(*MIXED)
    lengths = [[len(ids) for ids in MIXED[:2]], [len(ids) for ids in MIXED[2:]]]
    wanted = deepcompress_reward(lengths, [[1, 0], [1, 1]], 0.5 * 1.0 + 0.5 * 0.75)
    assert found == wanted.flatten().tolist()


def test_the_overlong_penalty_is_added_where_there_is_a_buffer() -> None:
    ids = [response(RIGHT, 40), response(WRONG, 2)]
    without, with_penalty = attached().score(*ids), attached(buffer=32).score(*ids)
    over = (len(ids[0]) - 32) / 32
    assert with_penalty[0] == pytest.approx(without[0] - over)
    assert with_penalty[1] == without[1]


def test_a_response_that_leaves_its_thought_open_is_wrong() -> None:
    ids = [response(RIGHT, closed=False), response(RIGHT)]
    assert attached().score(*ids)[0] == -1
    assert attached(think_tags=False).score(*ids)[0] == 1
    one, tokenizer = attached(), without_tags(pieces=())
    one.trainer.processing_class = tokenizer
    ids = [tokenizer(text).input_ids for text in ("<think>a</think>right", "right", "<think>right", "wrong")]
    assert [reward > 0 for reward in one.score(*ids)] == [True, True, False, False]


def test_what_could_not_be_graded_gets_no_reward_and_is_in_no_statistics() -> None:
    one = attached(group=3)
    found = one.score(response(RIGHT, 2), response(WRONG, 6), response(UNKNOWN, 50))
    assert found[2] is None
    assert one.reward.scored.observed == 0.5
    assert found[:2] == deepcompress_reward([[9, 13]], [[1, 0]], 0.75).flatten().tolist()
    assert metrics(one.reward.scored)["ungraded"] == pytest.approx(1 / 3)


def test_the_average_advances_once_per_optimiser_step_however_often_it_scores() -> None:
    one = attached()
    one.score(*MIXED)  # 0.75
    assert one.kept() == {"step": 0, "before": None, "average": 0.875}
    one.score(*MIXED[:2])  # another round of the same step, 0.5: from 1.0 again, and only this one is stored
    assert one.kept() == {"step": 0, "before": None, "average": 0.75}
    one.trainer.state.global_step = 1
    for _ in range(2):
        one.score(*MIXED)
        assert one.kept() == {"step": 1, "before": 0.75, "average": 0.75}


def test_evaluation_reads_the_average_and_leaves_it_alone() -> None:
    one = attached()
    one.score(*MIXED)
    before = dict(one.kept())
    one.trainer.model.training = False
    one.score(*[response(WRONG)] * 4)  # one group of num_generations_eval
    assert one.kept() == before
    assert one.reward.scored.average == 0.875
    assert one.reward.scored.beta_B.tolist() == [-0.875]


def test_evaluation_before_any_training_starts_from_the_start_and_stores_nothing() -> None:
    for start, average in ((1.0, 1.0), (0.25, 0.25), ("observed", 0.5)):
        one = attached(ema_initial_value=start)
        one.trainer.model.training = False
        one.score(*[response(WRONG)] * 2, *[response(RIGHT)] * 2)
        assert one.reward.scored.average == average
        assert one.trainer.state.stateful_callbacks == {}


def test_an_observed_start_is_the_first_batch_and_then_averages() -> None:
    one = attached(ema_initial_value="observed")
    one.score(*MIXED)
    one.score(*MIXED[:2])
    assert one.kept()["average"] == 0.5  # the second round of the first step starts anew
    one.trainer.state.global_step = 1
    one.score(*[response(RIGHT)] * 2)
    assert one.kept()["average"] == 0.75


def test_a_batch_that_nobody_can_grade_leaves_the_average_where_it_is() -> None:
    one = attached(ema_initial_value="observed")
    assert one.score(*[response(UNKNOWN)] * 2) == [None, None]
    assert one.trainer.state.stateful_callbacks == {}
    one.score(*MIXED)
    one.trainer.state.global_step = 1
    one.score(*[response(UNKNOWN)] * 2)
    assert one.kept()["average"] == 0.75


def test_mastered_groups_keep_a_length_signal_if_asked_for() -> None:
    ids = [response(RIGHT, 2), response(RIGHT, 9)]
    assert attached(ema_initial_value=0.0).score(*ids) == [1.0, 1.0]
    short, long = attached(ema_initial_value=0.0, keep_all_correct=True, scale_rewards="batch").score(*ids)
    assert short == pytest.approx(1 + 0.2 / (1 + math.exp(-1)))  # z = -1, and β = 1 whatever the average
    assert long == pytest.approx(1 + 0.2 / (1 + math.exp(1)))


def test_responses_below_the_target_length_are_rewarded_alike() -> None:
    ids = [response(RIGHT, 2), response(RIGHT, 9)]
    options = {"ema_initial_value": 0.0, "keep_all_correct": True, "scale_rewards": "batch"}
    assert attached(**options, target_length=50).score(*ids) == [1.1, 1.1]
    assert attached(**options, target_length=1).score(*ids) == attached(**options).score(*ids)


def test_metrics_have_the_same_names_whatever_there_is_and_say_what_they_say() -> None:
    logged: dict[str, float] = {}
    one = attached(ema_decay=0.0)
    one.score(
        response(RIGHT, 2), response(RIGHT, 4), response(WRONG, 6), response(UNKNOWN, 8), log_metric=logged.__setitem__
    )
    wanted = {
        "pass_ratio/batch": 0.5, "pass_ratio/average": 0.5, "accuracy": 2 / 3, "beta": 0.0, "share_simple": 0.5,
        "length_reward": 0.0, "tokens/right": 10.0, "tokens/wrong": 13.0, "thought_tokens": 5.0,
        "simple/accuracy": 1.0, "simple/thought_tokens": 3.0, "hard/accuracy": 0.0, "hard/thought_tokens": 7.0,
        "groups/all_right": 0.5, "groups/all_wrong": 0.5, "closed": 1.0, "ungraded": 0.25, "self_checks": 0.0,
    }  # fmt: skip
    assert logged == pytest.approx(wanted)
    names = set(logged)
    logged.clear()
    one.score(*[response(UNKNOWN)] * 2, log_metric=logged.__setitem__)
    assert set(logged) == names
    assert math.isnan(logged["tokens/right"])


def test_self_checks_and_thoughts_are_counted_per_response() -> None:
    one = attached()
    checking = tokens("2+2 check ok. Wait, verify</think>check right")
    one.score(checking, response(WRONG, 4, closed=False))
    first, second = one.reward.scored.judged
    assert (first.checks, first.thought_tokens, first.closed, first.tokens) == (3, 26, True, len(checking))
    assert (second.checks, second.thought_tokens, second.closed) == (0, 10, False)


def test_it_pickles_without_its_trainer() -> None:
    one = attached(alpha=0.3)
    one.score(*MIXED)
    copy = pickle.loads(pickle.dumps(one.reward))
    assert copy.__name__ == "deepcompress"
    assert copy.alpha == 0.3
    with pytest.raises(UsageError, match="attach"):
        copy([], [], [], trainer_state=one.trainer.state)


def test_parts_of_groups_are_refused() -> None:
    with pytest.raises(UsageError, match="whole groups of 2"):
        attached().score(*MIXED[:3])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"length_reward_mode": "duel"}, "dual"),
        ({"ema_decay": 1.01}, "ema_decay=1.01"),
        ({"ema_decay": -0.1}, "ema_decay=-0.1"),
        ({"ema_initial_value": 1.5}, "ema_initial_value=1.5"),
        ({"ema_initial_value": "seen"}, "observed"),
        ({"alpha": -1}, "alpha=-1"),
        ({"buffer": 65}, "buffer=65"),
        ({"buffer": 8, "factor": -1}, "factor=-1"),
        ({"keep_all_correct": True}, 'scale_rewards="batch"'),
        ({"keep_all_correct": True, "scale_rewards": "none"}, 'scale_rewards="batch"'),
    ],
)
def test_settings_out_of_range_are_refused_with_the_fix(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        attached(**settings)


def test_fixed_rules_take_beta_from_nowhere_but_still_tell_difficulty() -> None:
    for rule, short_pays in (("penalty", True), ("bonus", False)):
        one = attached(length_reward_mode=rule)
        short, long, *_ = one.score(response(RIGHT, 2), response(RIGHT, 9), *MIXED[:1], *MIXED[1:2])
        assert short == long == 1  # all right
        one = attached(length_reward_mode=rule, group=4)
        short, long, *_ = one.score(response(RIGHT, 2), response(RIGHT, 9), response(WRONG), response(WRONG))
        assert (short > long) is short_pays
        assert one.reward.scored.beta_B.tolist() == [-0.25]
    assert attached(length_reward_mode="none").score(*MIXED) == [1, -1, 1, 1]


def test_told_apart_are_groups_with_both_and_mastered_those_all_right() -> None:
    one = attached()
    one.score(*MIXED, response(WRONG), response(WRONG))
    assert one.reward.scored.mixed_B.tolist() == [True, False, False]
    assert one.reward.scored.all_correct_B.tolist() == [False, True, False]
    assert torch.equal(one.reward.scored.correct_BG, torch.tensor([[1, 0], [1, 1], [0, 0]]).double())


@pytest.mark.parametrize(
    ("tokenizer", "texts", "words"),
    [
        (make_tokenizer, ["aaawrong"] * 4, "no thought closed in max_completion_length=9: raise it"),
        (without_tags, ["wrong"] * 4, "of 2 groups 0 all right, 2 all wrong: take easier problems"),
        (without_tags, ["right"] * 4, "of 2 groups 2 all right, 0 all wrong: take harder problems"),
        (without_tags, ["right"] * 2 + ["wrong"] * 2, "of 2 groups 1 all right, 1 all wrong: take other problems"),
        (
            without_tags,
            ["right"] + ["aaaaaaawrong"] * 3,
            "of 2 groups 0 all right, 1 all wrong, and max_completion_length=9 cuts off 3 of 4 responses: raise it",
        ),
    ],
)
def test_a_batch_that_teaches_nothing_is_told_why(tokenizer: Any, texts: list[str], words: str) -> None:
    run = attached()
    run.trainer.processing_class = tokenizer()
    run.score(*([*tokenizer()(text).input_ids, END] for text in texts))
    with pytest.warns(LeanThinkWarning) as told:
        warn(run.reward.scored, SimpleNamespace(max_completion_length=9), teaches=False)
    assert str(told[0].message).startswith(f"nothing to learn from: {words}")
