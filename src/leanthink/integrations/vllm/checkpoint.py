"""Which model a checkpoint is, told while vLLM loads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from leanthink.models.fingerprint import fingerprint_of, sample, weights_of
from leanthink.utils.errors import UsageError


def sampled(weights: Iterable[tuple[str, Tensor]], samples: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The same weights, of each of which the numbers are kept that the fingerprint follows."""
    for name, weight in weights:
        if weight.is_floating_point():
            samples[name] = sample(weight)
        yield name, weight


def fingerprint_of_samples(config: Any, samples: dict[str, Tensor], *, ignored: bool) -> str:
    """That of the model as transformers would load it; "unknown" where it cannot be told and a mismatch is ignored."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        names = weights_of(AutoModelForCausalLM.from_config(config))
    missing = [name for name in names if name not in samples]
    if missing and ignored:
        return "unknown"
    if missing:
        raise UsageError(
            f"the checkpoint has no weight {missing[0]!r} ({len(missing)} are missing), so that the model cannot be "
            "told from others: give a checkpoint that is not quantised, with weights as transformers names them, or "
            'predictors and "ignore_predictor_mismatch": true'
        )
    return fingerprint_of(config, [samples[name] for name in names])
