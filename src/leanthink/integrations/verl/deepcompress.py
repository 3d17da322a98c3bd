"""The import path for verl's configuration: importing it checks verl's version and registers the advantage estimator.

What it relies on, in verl 0.9.1:
- `trainer.checkpoint_callback_class` is imported and made with the whole configuration in the process that computes
  advantages, before anything else of the trainer; its `on_save` is called after each checkpoint.
- `reward.reward_manager` with source "importlib" is imported in each reward worker, made with the whole configuration,
  and its `run_single` judges one response.
- What `register_adv_est` was given is called with the rewards, mask, uids and settings of each step's whole batch.
"""

from __future__ import annotations

from leanthink.integrations.verl.version import check_version

check_version()

from verl.trainer.ppo.core_algos import register_adv_est  # noqa: E402  # not before the version is known

from leanthink.integrations.verl.checkpoint import ADVANTAGE, DeepCompressCheckpoint  # noqa: E402
from leanthink.integrations.verl.reward_manager import DeepCompressRewardManager  # noqa: E402
from leanthink.integrations.verl.settings import NAME  # noqa: E402

__all__ = ["ADVANTAGE", "DeepCompressCheckpoint", "DeepCompressRewardManager"]

register_adv_est(NAME)(ADVANTAGE)
