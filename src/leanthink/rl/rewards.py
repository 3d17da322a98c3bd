"""The rewards of DeepCompress (arXiv 2510.27419): right or wrong, length by difficulty, and a penalty near the limit.

Pure functions of a whole generation batch: B prompts with G responses each. `correct_BG` holds 1 for right, 0 for
wrong and NaN for a response that could not be graded, which then counts nowhere and is rewarded with NaN. Lengths are
response tokens, the end token included. Everything may be nested lists, arrays or tensors; results are float64 tensors.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from leanthink.utils.errors import UsageError, unknown

Numbers = Any  # what torch.as_tensor takes
LengthRewardMode = Literal["dual", "penalty", "bonus", "none"]
FIXED_BETA: dict[str, float | None] = {"dual": None, "penalty": 1.0, "bonus": -1.0, "none": 0.0}
OBSERVED = "observed"
ALL_CORRECT_WEIGHT = 0.15  # measured: a sixth fewer tokens, and as many right answers as with the published 0
PUBLISHED_ALL_CORRECT_WEIGHT = 0.0
PUBLISHED_BUFFER = 5  # the overlong penalty grows over the last fifth: 2048 tokens of 10240


def outcome_reward(correct_BG: Numbers) -> Tensor:
    """+1 for a right response, -1 for a wrong one, [B, G]."""
    return 2 * _graded(correct_BG) - 1


def pass_ratio(correct_BG: Numbers) -> Tensor:
    """P_g: the share of each prompt's graded responses that are right, [B]; NaN where none was graded."""
    return _graded(correct_BG).nanmean(dim=1)


def batch_pass_ratio(correct_BG: Numbers) -> float:
    """The mean of P_g over all prompts that were generated, before any group is dropped; NaN where none was graded."""
    return float(pass_ratio(correct_BG).nanmean())


def moving_average(previous: float, observed: float, ema_decay: float) -> float:
    """P_b: ema_decay * previous + (1 - ema_decay) * observed; the previous value where nothing was observed (NaN).

    The paper starts it at 1.0 with ema_decay 0.99, and scores a batch against the value that has the batch in it.

    Raises:
        UsageError: ema_decay outside [0, 1].
    """
    if not 0 <= ema_decay <= 1:
        raise UsageError(
            f"ema_decay={ema_decay}: must be from 0 (the observed value alone) to 1 (the previous one alone)"
        )
    return previous if observed != observed else ema_decay * previous + (1 - ema_decay) * observed


def next_average(
    previous: float | None, observed: float, *, ema_decay: float, ema_initial_value: float | Literal["observed"]
) -> float:
    """P_b with this batch in it; before the first one it is the initial value, or what the first one shows.

    Args:
        previous: P_b of the batch before; None for the first batch.
        observed: this batch's own ratio, NaN where nothing was graded.
        ema_decay: λ.
        ema_initial_value: a number, or "observed".
    """
    if previous is None and ema_initial_value == OBSERVED:
        return observed
    return moving_average(float(ema_initial_value) if previous is None else previous, observed, ema_decay)


def group_weights(correct_BG: Numbers, all_correct_weight: float, *, others: float = 0.0) -> Tensor:
    """By what the advantages of each group are multiplied in the update, [B].

    1 for mixed groups, which have right and wrong responses. `all_correct_weight` for groups that are all right: they
    can only become shorter. `others` for those that are all wrong or were not graded; 0 as published.
    """
    ratio_B = pass_ratio(correct_BG)
    mixed_B = (ratio_B > 0) & (ratio_B < 1)
    weight_B: Tensor = torch.where(ratio_B == 1, all_correct_weight, mixed_B.double())
    return weight_B.where(mixed_B | (ratio_B == 1), others)


def difficulty(pass_ratio_B: Numbers, batch_pass_ratio: float) -> Tensor:
    """β = P_g - P_b in (-1, 1), [B]: above 0 the prompt is simple and short responses pay, below it is hard."""
    beta_B: Tensor = _numbers(pass_ratio_B) - batch_pass_ratio
    return beta_B


def standardized_length(lengths_BG: Numbers, correct_BG: Numbers | None = None) -> Tensor:
    """z: each length less its group's mean, over its group's population standard deviation; 0 where that is 0, [B, G].

    Right and wrong responses count alike. With `correct_BG`, responses that were not graded stay out of mean and
    deviation.
    """
    known_BG = _numbers(lengths_BG)
    counted_BG = known_BG if correct_BG is None else known_BG.where(~_graded(correct_BG).isnan(), torch.nan)
    centred_BG = counted_BG - counted_BG.nanmean(dim=1, keepdim=True)
    deviation_B1 = centred_BG.square().nanmean(dim=1, keepdim=True).sqrt()
    z_BG: Tensor = (centred_BG / deviation_B1.where(deviation_B1 > 0, 1)).where(deviation_B1 > 0, 0)
    return z_BG.where(~counted_BG.isnan(), 0)


def dual_length_reward(
    lengths_BG: Numbers, correct_BG: Numbers, beta_B: Numbers, alpha: float = 0.2, *, keep_all_correct: bool = False
) -> Tensor:
    """Alpha * sigmoid(-β z) for right responses, 0 for all others, [B, G].

    As published, a group that is all right or all wrong gets none: its outcome rewards are equal, and after the group's
    normalisation the length alone would decide, as strongly as correctness does elsewhere.

    Args:
        lengths_BG: response tokens.
        correct_BG: 1, 0 or NaN.
        beta_B: difficulty of each prompt.
        alpha: the largest length reward.
        keep_all_correct: groups that are all right get a length reward too; not in the paper, and safe only where
            their advantages are bounded by more than their own standard deviation.

    Raises:
        UsageError: alpha is negative.
    """
    if alpha < 0:
        raise UsageError(f"alpha={alpha}: the weight of the length reward must be 0 or more")
    correct_BG = _graded(correct_BG)
    ratio_B1 = pass_ratio(correct_BG)[:, None]
    mixed_B1 = (ratio_B1 > 0) & (ratio_B1 <= 1 if keep_all_correct else ratio_B1 < 1)
    z_BG = standardized_length(lengths_BG, correct_BG)
    reward_BG = alpha * torch.sigmoid(-_numbers(beta_B)[:, None] * z_BG)
    return reward_BG.where((correct_BG == 1) & mixed_B1, 0)


def soft_overlong(lengths_BG: Numbers, max_length: int, buffer: int, factor: float = 1.0) -> Tensor:
    """0 up to max_length - buffer, then falling linearly to -factor at max_length, [B, G] (DAPO, arXiv 2503.14476).

    Raises:
        UsageError: the buffer is not within 1 and max_length, or the factor is negative.
    """
    if not 0 < buffer <= max_length or factor < 0:
        raise UsageError(
            f"max_length={max_length}, buffer={buffer}, factor={factor}: "
            "0 < buffer <= max_length and factor >= 0 must hold"
        )
    over_BG = _numbers(lengths_BG) - (max_length - buffer)
    return (-over_BG / buffer * factor).clamp(max=0)


def deepcompress_reward(
    lengths_BG: Numbers,
    correct_BG: Numbers,
    batch_pass_ratio: float,
    alpha: float = 0.2,
    *,
    length_reward_mode: LengthRewardMode = "dual",
    keep_all_correct: bool = False,
    target_length: int | None = None,
    max_length: int | None = None,
    buffer: int = 2048,
    factor: float = 1.0,
) -> Tensor:
    """The whole reward: outcome + length + overlong, [B, G]; NaN for responses that were not graded.

    Args:
        lengths_BG: response tokens.
        correct_BG: 1, 0 or NaN.
        batch_pass_ratio: P_b, the moving average that this batch is already in.
        alpha: the largest length reward.
        length_reward_mode: "dual" (β from difficulty), or for comparison "penalty" (β = 1), "bonus" (β = -1), "none".
        keep_all_correct: see `dual_length_reward`; under "dual" β = 1 for those groups, as nothing is simpler.
        target_length: tokens below which nothing is gained: shorter responses get the length reward of this length.
            Not in the paper. None: shorter always pays.
        max_length: where the overlong penalty is whole; None for no penalty.
        buffer: over how many tokens before that it grows.
        factor: how large it is.

    Raises:
        UsageError: an argument out of range, or groups of fewer than two responses.
    """
    check_mode(length_reward_mode)
    check_target_length(target_length, length_reward_mode)
    lengths_BG, correct_BG = _numbers(lengths_BG), _graded(correct_BG)
    if lengths_BG.shape != correct_BG.shape or lengths_BG.dim() != 2 or lengths_BG.shape[1] < 2:
        raise UsageError(
            f"lengths are {list(lengths_BG.shape)} and verdicts {list(correct_BG.shape)}: both must be [B, G] with at "
            "least 2 responses a prompt, as a group of one has nothing to be compared with"
        )
    reward_BG = outcome_reward(correct_BG)
    if length_reward_mode != "none":
        fixed, ratio_B = FIXED_BETA[length_reward_mode], pass_ratio(correct_BG)
        beta_B = difficulty(ratio_B, batch_pass_ratio) if fixed is None else torch.full_like(ratio_B, fixed)
        if fixed is None and keep_all_correct:
            beta_B = beta_B.where(ratio_B < 1, 1)
        counted_BG = lengths_BG if target_length is None else lengths_BG.clamp(min=target_length)
        keep = {"keep_all_correct": keep_all_correct}
        reward_BG = reward_BG + dual_length_reward(counted_BG, correct_BG, beta_B, alpha, **keep)
    if max_length is not None:
        reward_BG = reward_BG + soft_overlong(lengths_BG, max_length, buffer, factor)
    return reward_BG


def check_mode(length_reward_mode: str) -> None:
    """Raise UsageError for a mode that nobody knows."""
    if length_reward_mode not in FIXED_BETA:
        raise unknown("length_reward_mode", length_reward_mode, FIXED_BETA)


def check_target_length(target_length: int | None, length_reward_mode: str, max_length: int | None = None) -> None:
    """Raise UsageError for a target that is no number of tokens below the longest response, or that nothing uses."""
    if target_length is None:
        return
    whole = isinstance(target_length, int) and not isinstance(target_length, bool)
    if not whole or not 1 <= target_length < (max_length or math.inf):
        below = "" if max_length is None else f" to below the longest response, which has {max_length}"
        raise UsageError(f"target_length={target_length!r}: a whole number of tokens, from 1{below}, or left out")
    if length_reward_mode == "none":
        raise UsageError(f"target_length={target_length} with length_reward_mode='none': leave one of them out")


def _numbers(values: Numbers) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def _graded(correct_BG: Numbers) -> Tensor:
    """Verdicts as numbers. Raises UsageError for anything but 0, 1 and NaN."""
    graded = _numbers(correct_BG)
    if not bool(((graded == 0) | (graded == 1) | graded.isnan()).all()):
        raise UsageError("verdicts must be 1 (right), 0 (wrong) or NaN (not graded): turn rewards into verdicts first")
    return graded
