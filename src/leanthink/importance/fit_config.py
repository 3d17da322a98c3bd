"""What a predictor is fitted to, and how: the configuration, the targets of the labels, the loss and the LR schedule.

Shapes: N tokens, C channels (1 for `answer`, one per horizon for `horizon`), X index sets, Y = X C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from leanthink.importance.labels import unpacked
from leanthink.models.predictor import TARGETS, Target
from leanthink.policies.policy import GRANULARITIES, Granularity
from leanthink.utils.errors import UsageError, unknown

Transform = Literal["power", "scale"]
TRANSFORMS = ("power", "scale")
LEAST_WIDTH = 4  # its quarter is the size of the layers behind the first
LEARNING_RATE = {"answer": 5e-4, "horizon": 1e-3}


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to fit; tokens, steps and shares.

    target: "horizon" (binary cross-entropy to each horizon's label) or "answer" (arXiv 2601.18383: squared error to the
        transformed answer label, fivefold weight where 4 <= y < 5).
    horizons: which of the labelled horizons to fit; None: those that a hundredth of the thought tokens reach, that is,
        have so many tokens after them, but at least the first. For "horizon" only.
    offsets: which tokens the predictor sees of each, 0 the token itself, o the one written o tokens later. None: 0, 1,
        2, 4, 8 and 12, as far as they stay below the first horizon. For "horizon" only.
    transform: of the answer label b: "power" y = 10 b^0.3 / 0.3, "scale" y = 10000 b. For "answer" only.
    granularity: of the index sets to score for, one for the whole "model", one a "layer", one a kv "head"; all but
        "model" need labels of that granularity. None: that of the labels. For "horizon" only.
    width: size of the predictor's first layer; None: twice the model's hidden size, at most 1024. For "horizon" only.
    lr: None: 5e-4 for "answer", 1e-3 for "horizon".
    val_share: share of the problems whose traces are held out, to measure on.
    tokens_per_trace: of longer thoughts only a random sample of so many tokens is held in memory and fitted to.

    Raises:
        UsageError: a value out of its range.
    """

    target: Target = "horizon"
    horizons: tuple[int, ...] | None = None
    offsets: tuple[int, ...] | None = None
    transform: Transform = "power"
    granularity: Granularity | None = None
    width: int | None = None
    steps: int = 6000
    batch: int = 8192
    lr: float | None = None
    seed: int = 0
    val_share: float = 0.1
    tokens_per_trace: int | None = None
    only_correct: bool = True

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise unknown("predictor target", self.target, TARGETS)
        if self.transform not in TRANSFORMS:
            raise unknown("label transform", self.transform, TRANSFORMS)
        if self.target == "answer" and (self.horizons is not None or self.offsets is not None):
            raise UsageError("horizons and offsets belong to the target 'horizon': leave them out for 'answer'")
        if self.granularity not in (None, *GRANULARITIES):
            raise unknown("granularity", self.granularity, GRANULARITIES)
        if self.target == "answer" and (self.granularity not in (None, "model") or self.width is not None):
            raise UsageError("granularity and width belong to the target 'horizon': leave them out for 'answer'")
        if self.width is not None and self.width < LEAST_WIDTH:
            raise UsageError(f"width must be at least {LEAST_WIDTH}, got {self.width}")
        if min(self.steps, self.batch) < 1 or (self.tokens_per_trace is not None and self.tokens_per_trace < 1):
            raise UsageError(f"steps, batch and tokens_per_trace must be at least 1, got {self}")
        if not 0 <= self.val_share < 1 or (self.lr is not None and self.lr <= 0):
            raise UsageError(f"0 <= val_share < 1 and lr > 0 must hold, got {self.val_share} and {self.lr}")

    @property
    def learning_rate(self) -> float:
        """The highest learning rate: `lr`, or the target's own."""
        return LEARNING_RATE[self.target] if self.lr is None else self.lr


def targets(labels_NC: Tensor, config: FitConfig) -> Tensor:
    """What the predictor is to put out for these labels, which may be packed in eight bits, [N, Y]."""
    if config.target == "horizon":
        return unpacked(labels_NC) if labels_NC.dtype == torch.uint8 else labels_NC
    return 10_000 * labels_NC if config.transform == "scale" else 10 * labels_NC**0.3 / 0.3


def loss(scores_NY: Tensor, target_NY: Tensor, counts_NC: Tensor, target: Target) -> Tensor:
    """Mean loss over the entries that count (`counts_NC`, bool, the same for every index set), a scalar."""
    if target == "horizon":
        each_NY = F.binary_cross_entropy_with_logits(scores_NY, target_NY, reduction="none")
    else:
        weight_NY = torch.where((target_NY >= 4) & (target_NY < 5), 5.0, 1.0)
        each_NY = weight_NY * (scores_NY - target_NY).square()
    each_NC = each_NY.view(len(each_NY), -1, counts_NC.shape[1]).mean(dim=1)
    return (each_NC * counts_NC).sum() / counts_NC.sum().clamp(min=1)


def lr_schedule(step: int, steps: int, target: Target) -> float:
    """Share of the learning rate at a step: linear to 0, or a tenth of warm-up and then a cosine to 0."""
    if target == "horizon":
        return 1 - step / steps
    warm_up = max(1, steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))
