"""The settings of a DeepCompress run, out of verl's configuration, and what of that configuration must be as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from leanthink.rl.rewards import (
    PUBLISHED_ALL_CORRECT_WEIGHT,
    PUBLISHED_BUFFER,
    LengthRewardMode,
    check_target_length,
    soft_overlong,
)
from leanthink.rl.trl_reward import check_settings
from leanthink.utils.errors import UsageError, unknown

NAME = "deepcompress"
PLUGIN = "leanthink.integrations.verl.deepcompress"
FROM_ELSEWHERE = ("responses", "max_length")  # settings that verl has a place for already

# What of verl's configuration the method depends on: the values it may have, and why.
REQUIRED: dict[str, tuple[tuple[Any, ...], str]] = {
    "algorithm.adv_estimator": ((NAME,), "nothing else would use the settings of DeepCompress"),
    "algorithm.norm_adv_by_std_in_grpo": ((True,), "advantages are divided by the deviation of their group"),
    "algorithm.use_kl_in_reward": ((False, None), "the rewards must tell right from wrong"),
    "algorithm.filter_groups.enable": (
        (False, None),
        "statistics are of all groups, and verl drops some before advantages; those that are all right or all wrong "
        "have advantage 0 without it",
    ),
    "algorithm.rollout_correction.rollout_rs": ((None,), "it masks tokens, and lengths are counted by that mask"),
    "reward.reward_manager.source": (("importlib",), "that is how verl finds the reward manager"),
    "reward.reward_manager.name": (("DeepCompressRewardManager",), "the advantages are made of its rewards"),
    "reward.reward_manager.module.path": ((f"pkg://{PLUGIN}",), "the reward manager is there"),
    "reward.reward_model.enable": ((False, None), "rewards are verdicts, by the right answers of the data"),
    "reward.custom_reward_function.path": ((None,), "responses are graded as everywhere in LeanThink"),
    "trainer.use_v1": ((True,), "the older trainer saves no average"),
    "trainer.v1.trainer_mode": (("sync",), "in other modes groups are dropped for their age before advantages"),
    "trainer.checkpoint_callback_class": ((f"{PLUGIN}.DeepCompressCheckpoint",), "the average is saved by it"),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to reward and to weigh; defaults are those of the released scripts (arXiv 2510.27419).

    Attributes:
        responses: of one prompt, at most.
        max_length: response tokens where the overlong penalty is whole.
        length_reward_mode: "dual", or to compare with "penalty" (β = 1), "bonus" (β = -1), "none".
        alpha: the largest length reward.
        ema_decay: λ of the moving average of the pass ratio.
        ema_initial_value: the average before the first batch, or "observed" for the first batch's own ratio.
        all_correct_weight: ours: groups that are all right get a length reward of β = 1 and this share of their
            advantages; 0: their advantages are 0, as published.
        target_length: ours: tokens below which nothing is gained by being shorter; None: shorter always pays.
        overlong_buffer: tokens before max_length over which a penalty grows; None: a fifth of it; 0: none.
        overlong_factor: that penalty at max_length.
        think_tags: whether a response must close its thought to be right.

    Raises:
        UsageError: a value out of range.
    """

    responses: int
    max_length: int
    length_reward_mode: LengthRewardMode = "dual"
    alpha: float = 0.2
    ema_decay: float = 0.99
    ema_initial_value: float | Literal["observed"] = 1.0
    all_correct_weight: float = PUBLISHED_ALL_CORRECT_WEIGHT
    target_length: int | None = None
    overlong_buffer: int | None = None
    overlong_factor: float = 1.0
    think_tags: bool = True

    def __post_init__(self) -> None:
        check_settings(
            length_reward_mode=self.length_reward_mode,
            ema_decay=self.ema_decay,
            ema_initial_value=self.ema_initial_value,
        )
        if self.responses < 2:
            raise UsageError(
                f"actor_rollout_ref.rollout.n={self.responses}: a group of one has nothing to be compared with; give 2 "
                "or more (published: 16)"
            )
        if self.alpha < 0:
            raise UsageError(f"alpha={self.alpha}: the weight of the length reward must be 0 or more")
        if not 0 <= self.all_correct_weight <= 1:
            raise UsageError(
                f"all_correct_weight={self.all_correct_weight}: from 0, as published, to 1, as correctness counts"
            )
        check_target_length(self.target_length, self.length_reward_mode, self.max_length)
        if self.buffer is not None:
            soft_overlong([[1]], self.max_length, self.buffer, self.overlong_factor)

    @property
    def buffer(self) -> int | None:
        """Tokens over which the overlong penalty grows; None for no penalty."""
        if self.overlong_buffer is None:
            return max(1, self.max_length // PUBLISHED_BUFFER)
        return self.overlong_buffer or None


def settings_of(config: Mapping[str, Any]) -> Settings:
    """The settings under `algorithm.deepcompress` of verl's whole configuration, with what else they depend on.

    Raises:
        UsageError: an unknown setting, a value out of range, or a part of verl set to what the method cannot bear.
    """
    for path, (allowed, why) in REQUIRED.items():
        given = _at(config, path)
        if given not in allowed:
            raise UsageError(f"{path}={given!r}: must be {allowed[0]!r} with DeepCompress, as {why}")
    given = _at(config, f"algorithm.{NAME}") or {}
    names = [field.name for field in fields(Settings) if field.name not in FROM_ELSEWHERE]
    for name in given:
        if name not in names:
            raise unknown(f"setting of algorithm.{NAME}", name, names)
    responses, max_length = _at(config, "actor_rollout_ref.rollout.n"), _at(config, "data.max_response_length")
    return Settings(responses=responses, max_length=max_length, **given)


def _at(config: Mapping[str, Any], path: str) -> Any:
    """What stands at a dotted path; None where it ends early."""
    value: Any = config
    for name in path.split("."):
        value = None if value is None else value.get(name)
    return value
