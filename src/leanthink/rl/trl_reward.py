"""DeepCompress as a reward of TRL: judges responses, takes its statistics over all ranks, and keeps the average.

TRL calls a reward on each rank with that rank's part of the generation batch, and a group may lie on two ranks. So
every rank gathers everybody's lengths and verdicts, computes the same whole batch, and returns its own part.

The average lives in the trainer's state, which is written into each checkpoint and read back on resuming, under
`stateful_callbacks["DeepCompressReward"]`. It advances once per optimiser step: what is scored again before the next
one (rounds of dynamic sampling) is scored against the same previous value and replaces what was stored. It is read and
never written in evaluation.

B groups of G responses   N responses of this rank
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from leanthink.data.think_tags import CLOSE_TAG, ThinkTags, close_index, think_tags
from leanthink.engine.outputs import decode
from leanthink.rl.data import grade
from leanthink.rl.rewards import (
    OBSERVED,
    LengthRewardMode,
    batch_pass_ratio,
    check_mode,
    deepcompress_reward,
    difficulty,
    moving_average,
    next_average,
    outcome_reward,
    pass_ratio,
    soft_overlong,
)
from leanthink.utils.errors import LeanThinkWarning, UsageError

STATE = "DeepCompressReward"
SELF_CHECK = re.compile(r"\b(?:checks?|checking|wait|verify|verifying|re-?check|let me see)\b", re.IGNORECASE)
Grader = Callable[..., bool | None]


class Judged(NamedTuple):
    """One response, as all ranks get to know it."""

    id: str
    family: str | None
    level: int | None
    tokens: int  # all that was generated, the end token included
    thought_tokens: int  # before </think>; all of them where it never came
    closed: bool  # whether </think> came
    correct: float  # 1, 0, or NaN where nobody can tell
    checks: int  # how often the thought says that it checks itself
    must_close: bool  # whether it is a thought until a closing tag comes


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One generation batch of all ranks. `observed` and `average` are P_b of this batch and with it mixed in."""

    judged: list[Judged]  # [B * G], group after group
    correct_BG: Tensor
    beta_B: Tensor
    length_reward_BG: Tensor
    reward_BG: Tensor
    observed: float
    average: float

    @property
    def mixed_B(self) -> Tensor:
        """Which groups are neither all right nor all wrong."""
        ratio_B = pass_ratio(self.correct_BG)
        return (ratio_B > 0) & (ratio_B < 1)

    @property
    def all_correct_B(self) -> Tensor:
        """Which groups are all right."""
        return pass_ratio(self.correct_BG) == 1


class DeepCompressReward:
    """The dual length reward of DeepCompress, for `reward_funcs` of a GRPOTrainer.

    A response is right if it closes its thought and what follows is right. After the trainer is made, call `attach`:
    TRL does not tell a reward the size of the groups, nor training from evaluation.

    Args:
        max_length: tokens of the longest response, where the overlong penalty is whole.
        length_reward_mode: "dual" as published; "penalty" (β = 1), "bonus" (β = -1) and "none" (no length reward) to
            compare with.
        alpha: the largest length reward.
        ema_decay: λ of the exponential moving average; 0 for the batch's own ratio.
        ema_initial_value: the average before the first batch; "observed": it begins at the first batch's ratio.
            Published: 1.0.
        keep_all_correct: groups that are all right get a length reward too. Not as published, and only where their
            advantages are bounded: see `check_bounded`.
        target_length: tokens below which nothing is gained by being shorter; None: shorter always pays.
        buffer: tokens before `max_length` over which the penalty grows; None for no penalty.
        factor: the penalty at `max_length`.
        think_tags: whether a thought must be closed; False grades the whole text of a model without think tags, as
            happens to a text without the opening tag where nothing announces the tags.
        grader: from a row's columns, the text and `think_tags` to right, wrong or None (nobody can tell); in the text
            the tags are `<think>` and `</think>`, whatever the model's are.

    Raises:
        UsageError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        max_length: int,
        length_reward_mode: LengthRewardMode = "dual",
        alpha: float = 0.2,
        ema_decay: float = 0.99,
        ema_initial_value: float | Literal["observed"] = 1.0,
        keep_all_correct: bool = False,
        target_length: int | None = None,
        buffer: int | None = None,
        factor: float = 1.0,
        think_tags: bool = True,
        grader: Grader = grade,
    ) -> None:
        check_settings(length_reward_mode=length_reward_mode, ema_decay=ema_decay, ema_initial_value=ema_initial_value)
        self.__name__ = "deepcompress"
        self.length_reward_mode, self.alpha = length_reward_mode, alpha
        self.ema_decay, self.ema_initial_value = ema_decay, ema_initial_value
        self.max_length, self.buffer, self.factor = max_length, buffer, factor
        self.keep_all_correct, self.target_length = keep_all_correct, target_length
        self.think_tags, self.grader = think_tags, grader
        self.scored: Scored | None = None  # the latest generation batch
        self._trainer: Any = None
        self._score(torch.ones(1, 2), torch.ones(1, 2), 0.5)  # refuses what the pure functions refuse, before a rollout

    def attach(self, trainer: Any, *, bounded: bool = False) -> None:
        """Belong to this GRPOTrainer, which may bound the advantages of all-correct groups by itself.

        Raises UsageError as of `check_bounded`.
        """
        check_bounded(keep_all_correct=self.keep_all_correct, bounded=bounded, scale_rewards=trainer.scale_rewards)
        self._trainer = trainer

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_trainer": None, "scored": None}

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        *,
        trainer_state: Any,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Rewards of this rank's responses, [N]; None for one that could not be graded.

        Raises:
            UsageError: called before `attach`, or with parts of groups.
        """
        from accelerate.utils import gather_object

        if self._trainer is None:
            raise UsageError("DeepCompressReward was not told its trainer: call reward.attach(trainer) once it is made")
        training = self._trainer.model.training
        group = self._trainer.num_generations if training else self._trainer.num_generations_eval
        rows = {name: values for name, values in columns.items() if isinstance(values, list)}
        tokenizer = self._trainer.processing_class
        tags = think_tags(tokenizer)
        local = [
            self._judge({name: values[i] for name, values in rows.items()}, ids, tokenizer, tags)
            for i, ids in enumerate(completion_ids)
        ]
        judged = gather_object(local)
        if len(judged) % group:
            raise UsageError(
                f"{len(judged)} responses are no whole groups of {group}: change the evaluation batch size"
            )
        self.scored = self._score_batch(judged, group, trainer_state, training=training)
        if log_metric is not None:
            for name, value in metrics(self.scored).items():
                log_metric(name, value)
        first = self._trainer.accelerator.process_index * len(local)
        own = self.scored.reward_BG.flatten()[first : first + len(local)].tolist()
        return [None if math.isnan(reward) else reward for reward in own]

    def _judge(self, row: Mapping[str, Any], ids: Sequence[int], tokenizer: Any, tags: ThinkTags) -> Judged:
        """Decodes the tokens itself: TRL leaves out special tokens, and of a parsed response the thought."""
        raw = decode(tokenizer, ids, tags)
        text = tags.usual(raw)
        thought, closing, _ = text.partition(CLOSE_TAG)
        must_close = self.think_tags and tags.must_close(raw)
        correct = self.grader(row, text, think_tags=must_close)
        ends = close_index(tags, ids)
        return Judged(
            id=str(row.get("id", "")),
            family=row.get("family"),
            level=row.get("level"),
            tokens=len(ids),
            thought_tokens=len(ids) if ends is None else ends,
            closed=bool(closing),
            correct=math.nan if correct is None else float(correct),
            checks=len(SELF_CHECK.findall(thought)),
            must_close=must_close,
        )

    def _score_batch(self, judged: list[Judged], group: int, state: Any, *, training: bool) -> Scored:
        lengths_BG = torch.tensor([one.tokens for one in judged]).view(-1, group)
        correct_BG = torch.tensor([one.correct for one in judged], dtype=torch.float64).view(-1, group)
        observed = batch_pass_ratio(correct_BG)
        average = self._advance(state, observed, training=training)
        total_BG, length_BG = self._score(lengths_BG, correct_BG, average)
        return Scored(
            judged=judged,
            correct_BG=correct_BG,
            beta_B=difficulty(pass_ratio(correct_BG), average),
            length_reward_BG=length_BG,
            reward_BG=total_BG,
            observed=observed,
            average=average,
        )

    def _score(self, lengths_BG: Tensor, correct_BG: Tensor, average: float) -> tuple[Tensor, Tensor]:
        """The whole reward and the length's share of it, both [B, G]."""
        reward_BG = deepcompress_reward(
            lengths_BG,
            correct_BG,
            average,
            self.alpha,
            length_reward_mode=self.length_reward_mode,
            keep_all_correct=self.keep_all_correct,
            target_length=self.target_length,
        )
        length_BG = reward_BG - outcome_reward(correct_BG)
        if self.buffer is not None:
            reward_BG = reward_BG + soft_overlong(lengths_BG, self.max_length, self.buffer, self.factor)
        return reward_BG, length_BG

    def _advance(self, state: Any, observed: float, *, training: bool) -> float:
        """P_b to score this batch with; in training it is also stored, beside the value before this step."""
        kept = state.stateful_callbacks.get(STATE, {}).get("attributes")
        if not training:
            begun = observed if self.ema_initial_value == OBSERVED else float(self.ema_initial_value)
            return begun if kept is None else float(kept["average"])
        same_step = kept is not None and kept["step"] == state.global_step
        before = None if kept is None else kept["before" if same_step else "average"]
        average = next_average(before, observed, ema_decay=self.ema_decay, ema_initial_value=self.ema_initial_value)
        if not math.isnan(average):
            attributes = {"step": state.global_step, "before": before, "average": average}
            state.stateful_callbacks[STATE] = {"args": {}, "attributes": attributes}
        return average


def check_settings(*, length_reward_mode: str, ema_decay: float, ema_initial_value: float | str) -> None:
    """Raise UsageError for what the pure functions would find out only when a batch is scored."""
    check_mode(length_reward_mode)
    moving_average(1.0, 1.0, ema_decay)
    if ema_initial_value != OBSERVED and not (
        isinstance(ema_initial_value, int | float) and 0 <= ema_initial_value <= 1
    ):
        raise UsageError(
            f'ema_initial_value={ema_initial_value!r}: the average starts at a number from 0 to 1, or at "observed"'
        )


def check_bounded(*, keep_all_correct: bool, bounded: bool, scale_rewards: str) -> None:
    """Raise UsageError if advantages are scaled in a way that blows up what `keep_all_correct` keeps."""
    if keep_all_correct and not bounded and scale_rewards != "batch":
        raise UsageError(
            f"keep_all_correct with scale_rewards={scale_rewards!r}: divided by its own group's deviation, the length "
            "signal of a group that is all right would count as much as correctness; give "
            'scale_rewards="batch", or train with DeepCompressTrainer and all_correct_weight'
        )


def warn(scored: Scored, args: Any, *, teaches: bool) -> None:
    """Warn where no thought is closed or no group teaches; Python shows equal texts once."""
    ratios, judged, most = pass_ratio(scored.correct_BG).tolist(), scored.judged, args.max_completion_length
    if not any(ratios) and all(one.must_close and not one.closed for one in judged):
        why = f"no thought closed in max_completion_length={most}: raise it, or think_tags=False"
    elif teaches:
        return
    else:
        right, wrong = ratios.count(1), ratios.count(0)
        cut = sum(one.tokens >= most for one in judged)
        why = f"of {len(ratios)} group{'s' * (len(ratios) != 1)} {right} all right, {wrong} all wrong"
        if wrong and 2 * cut > len(judged):
            why += f", and max_completion_length={most} cuts off {cut} of {len(judged)} responses: raise it"
        else:
            why += f": take {'harder' if not wrong else 'easier' if not right else 'other'} problems"
    warnings.warn(f"nothing to learn from: {why}", LeanThinkWarning, stacklevel=1)


def metrics(scored: Scored) -> dict[str, float]:
    """What is logged of a batch: always the same keys, NaN where there is nothing to take the mean of.

    Simple prompts are those with β > 0, hard ones all others. Tokens are means: of whole responses, right and wrong,
    and of thoughts, on simple and on hard prompts.
    """
    correct_BG, shape = scored.correct_BG, scored.correct_BG.shape
    tokens_BG = torch.tensor([one.tokens for one in scored.judged], dtype=torch.float64).view(shape)
    thought_BG = torch.tensor([one.thought_tokens for one in scored.judged], dtype=torch.float64).view(shape)
    ratio_B = pass_ratio(correct_BG)
    simple_B = scored.beta_B > 0
    right_BG = correct_BG == 1
    found: dict[str, Tensor | float] = {
        "pass_ratio/batch": scored.observed,
        "pass_ratio/average": scored.average,
        "accuracy": correct_BG.nanmean(),
        "beta": scored.beta_B.nanmean(),
        "share_simple": simple_B.double().mean(),
        "length_reward": scored.length_reward_BG[right_BG].mean(),
        "tokens/right": tokens_BG[right_BG].mean(),
        "tokens/wrong": tokens_BG[correct_BG == 0].mean(),
        "thought_tokens": thought_BG.mean(),
        "simple/accuracy": correct_BG[simple_B].nanmean(),
        "simple/thought_tokens": thought_BG[simple_B].mean(),
        "hard/accuracy": correct_BG[~simple_B].nanmean(),
        "hard/thought_tokens": thought_BG[~simple_B].mean(),
        "groups/all_right": (ratio_B == 1).double().mean(),
        "groups/all_wrong": (ratio_B == 0).double().mean(),
        "closed": sum(one.closed for one in scored.judged) / len(scored.judged),
        "ungraded": correct_BG.isnan().double().mean(),
        "self_checks": sum(one.checks for one in scored.judged) / len(scored.judged),
    }
    return {name: float(value) for name, value in found.items()}
