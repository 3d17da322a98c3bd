"""The advantages of DeepCompress (arXiv 2510.27419) as verl's trainer asks for them: one call for each step's batch.

verl rewards each response by itself, while others are still generated. What compares responses, the length reward and
the moving average of the pass ratio, is therefore made here, where the whole batch is first seen.

N responses of T tokens at most, in any order   B groups of at most G responses
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leanthink.integrations.verl.settings import Settings
from leanthink.rl.rewards import batch_pass_ratio, deepcompress_reward, group_weights, next_average
from leanthink.utils.errors import UsageError

EPSILON = 1e-6  # on the deviation, as verl has it
log = logging.getLogger(__name__)


class DeepCompressAdvantage:
    """The advantage estimator of one run: its settings, and the average, which each call advances.

    Attributes:
        settings: None until `begin`.
        average: P_b with the latest batch in it; None before the first one.
    """

    def __init__(self) -> None:
        self.settings: Settings | None = None
        self.average: float | None = None

    def begin(self, settings: Settings, average: float | None) -> None:
        """Start a run, with the average of the one that it goes on from."""
        self.settings, self.average = settings, average

    def __call__(
        self, token_level_rewards: Tensor, response_mask: Tensor, index: Sequence[Any], config: Any = None
    ) -> tuple[Tensor, Tensor]:
        """The same advantage for all tokens of a response, [N, T], twice: verl's advantages and returns.

        Args:
            token_level_rewards: [N, T], whose sums are +1 for right and -1 for wrong responses.
            response_mask: [N, T], 1 for the tokens of a response; a row of zeros is padding, and counts nowhere.
            index: of each row, what the responses to the same prompt have in common.
            config: verl's settings of its algorithms, not read: `begin` was given all of them.

        Raises:
            UsageError: before `begin`, or rewards that are no verdicts, or more responses to a prompt than are sampled.
        """
        if self.settings is None:
            raise UsageError(
                "the run has not begun: set trainer.checkpoint_callback_class to "
                "leanthink.integrations.verl.deepcompress.DeepCompressCheckpoint, which also saves the average"
            )
        tokens_N = response_mask.sum(dim=1).cpu()
        rows_BG = grouped(index, tokens_N, self.settings.responses)
        correct_BG = _taken(_verdicts(token_level_rewards.sum(dim=1).cpu(), tokens_N), rows_BG)
        observed = batch_pass_ratio(correct_BG)
        self.average = self._advanced(observed)
        advantage_BG = group_advantages(_taken(tokens_N.double(), rows_BG), correct_BG, self.average, self.settings)
        log.info("pass ratio %.4f, average %.4f, %d groups", observed, self.average, len(rows_BG))
        there_BG = rows_BG >= 0
        advantage_N = torch.zeros(len(tokens_N), dtype=torch.float64)
        advantage_N[rows_BG[there_BG]] = advantage_BG[there_BG]
        advantage_NT = advantage_N.to(token_level_rewards)[:, None] * response_mask
        return advantage_NT, advantage_NT

    def _advanced(self, observed: float) -> float:
        assert self.settings is not None
        how = self.settings
        return next_average(self.average, observed, ema_decay=how.ema_decay, ema_initial_value=how.ema_initial_value)


def group_advantages(tokens_BG: Tensor, correct_BG: Tensor, average: float, settings: Settings) -> Tensor:
    """DeepCompress's rewards, each group's less their mean and over their deviation (unbiased), [B, G].

    A response that is not there has verdict NaN, counts nowhere and gets NaN. Groups that are all right get the share
    `all_correct_weight` of that, and those that are all wrong nothing: dynamic sampling, as published, drops both.
    """
    reward_BG = deepcompress_reward(
        tokens_BG.nan_to_num(),
        correct_BG,
        average,
        settings.alpha,
        length_reward_mode=settings.length_reward_mode,
        keep_all_correct=settings.all_correct_weight > 0,
        target_length=settings.target_length,
        max_length=settings.max_length if settings.buffer is not None else None,
        buffer=settings.buffer or 1,
        factor=settings.overlong_factor,
    )
    centred_BG = reward_BG - reward_BG.nanmean(dim=1, keepdim=True)
    others_B1 = ((~reward_BG.isnan()).sum(dim=1, keepdim=True) - 1).clamp(min=1)
    deviation_B1 = (centred_BG.square().nansum(dim=1, keepdim=True) / others_B1).sqrt()
    weight_B1 = group_weights(correct_BG, settings.all_correct_weight)[:, None]
    advantage_BG: Tensor = centred_BG / (deviation_B1 + EPSILON) * weight_B1
    return advantage_BG


def grouped(index: Sequence[Any], tokens_N: Tensor, responses: int) -> Tensor:
    """The rows of each group, [B, responses], -1 where there are fewer; rows without tokens are padding, in no group.

    Raises UsageError for a group with more rows.
    """
    groups: dict[Any, list[int]] = {}
    for row, (key, tokens) in enumerate(zip(index, tokens_N.tolist(), strict=True)):
        if tokens:
            groups.setdefault(key, []).append(row)
    for key, rows in groups.items():
        if len(rows) > responses:
            raise UsageError(
                f"prompt {key} has {len(rows)} outputs, and {responses} responses were sampled: an agent loop with "
                "several outputs to a response is not supported"
            )
    return torch.tensor([rows + [-1] * (responses - len(rows)) for rows in groups.values()])


def _verdicts(reward_N: Tensor, tokens_N: Tensor) -> Tensor:
    other_N = (reward_N.abs() != 1) & (tokens_N > 0)
    if bool(other_N.any()):
        raise UsageError(
            f"a response has reward {float(reward_N[other_N][0]):g}: only +1 (right) and -1 (wrong) are known; set "
            "reward.reward_manager as in docs/verl.md, and add no other reward"
        )
    return (reward_N > 0).double()


def _taken(values_N: Tensor, rows_BG: Tensor) -> Tensor:
    """What belongs to these rows, [B, G]; NaN where there is none."""
    return values_N[rows_BG.clamp(min=0)].where(rows_BG >= 0, math.nan)
