"""Log-probabilities of a generation batch by the policy as it was when it generated, where an update needs them.

TRL takes them of every response of a round, before it is known which groups stay, and pads all of them to the longest.
Here they are taken of the micro-batches of what stays, and not of those of the first update: the policy has not changed
by then, so the loss takes its own. Of 1024 responses of a generation batch of GRPO 128 are left to score.

N responses of a micro-batch   T tokens of the longest response
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing

from leanthink.rl.length_bucketing import MicroBatch

NAME = "old_per_token_logps"  # TRL's, in a micro-batch


def with_old_log_probs(trainer: Any, micro_batches: Sequence[MicroBatch]) -> list[MicroBatch]:
    """The micro-batches of a generation batch, those of its second and further updates with `old_per_token_logps`."""
    passes, window = trainer.num_iterations, trainer.args.gradient_accumulation_steps  # micro-batches of an update
    if window % (len(micro_batches) * passes) == 0:
        first = len(micro_batches)  # one update takes all of them
    else:
        first = window if len(micro_batches) % window == 0 and passes == 1 else 0
    return [
        {name: value for name, value in batch.items() if name != NAME} if number < first else _scored(trainer, batch)
        for number, batch in enumerate(micro_batches)
    ]


def _scored(trainer: Any, batch: MicroBatch) -> MicroBatch:
    """With them; where a bounded cache has sampled, `weighed` has taken them already."""
    return batch if NAME in batch else batch | {NAME: log_probs_of(trainer, batch)}


def log_probs_of(trainer: Any, batch: Mapping[str, Any], rows: int | None = None) -> Tensor:
    """Of each token of the responses by the policy, 0 for padding, [N, T].

    Args:
        trainer: a DeepCompressTrainer.
        batch: prompts and responses, as TRL pads them.
        rows: of a forward; None for all at once.
    """
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    tokens, model = batch["completion_ids"].shape[1], trainer.model
    with torch.no_grad(), disable_gradient_checkpointing(model, trainer.args.gradient_checkpointing_kwargs):
        found, _, _ = trainer._get_per_token_logps_and_entropies(model, ids, mask, tokens, rows)
    log_probs: Tensor = found
    return log_probs


def weighed(trainer: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Advantages per token where a bounded cache has sampled: the update is to the policy with the whole cache.

    Each token weighs as much as the whole cache makes it likelier, up to a cap: truncated importance sampling, as TRL
    does it for vLLM. Logged are the mean weight and the KL divergence of the sampling policy from the other.
    """
    mask = batch["completion_mask"]
    whole = log_probs_of(trainer, batch, trainer.args.per_device_train_batch_size)
    difference = (whole - batch["sampling_per_token_logps"]) * mask
    weights = difference.exp().clamp(max=trainer.args.rollout_ratio_cap)
    sums = torch.stack([-difference.sum(), (weights * mask).sum(), mask.sum().float()])
    kl, weight, tokens = trainer.accelerator.reduce(sums, reduction="sum").tolist()
    trainer._metrics["train"]["rollouts/kl"].append(kl / tokens)
    trainer._metrics["train"]["rollouts/weight"].append(weight / tokens)
    return {**batch, "advantages": batch["advantages"][:, None] * weights, NAME: whole}
