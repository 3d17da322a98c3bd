"""Which model a checkpoint is, told while vLLM loads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leanthink.models.fingerprint import fingerprint_of, sample, weights_of

WHOLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # those of eight bits and less need their scales


@dataclass(frozen=True)
class Identity:
    """What is known of a checkpoint.

    Attributes:
        fingerprint: of the model as transformers would load it; "unknown" where the checkpoint does not tell.
        told: the same as a clause of a refusal.
    """

    fingerprint: str
    told: str


def sampled(weights: Iterable[tuple[str, Tensor]], samples: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The same weights, of each whole one of which the numbers are kept that the fingerprint follows."""
    for name, weight in weights:
        if weight.dtype in WHOLE and type(weight) in (Tensor, nn.Parameter):  # other classes pack what they show
            samples[name] = sample(weight)
        yield name, weight


def identity_of(config: Any, samples: Mapping[str, Tensor], quantization: str | None) -> Identity:
    """Of the checkpoint with these samples, of the model with this config.

    Rounded weights are no model's own: of which it is a copy their hash cannot tell.

    Args:
        config: transformers' own.
        samples: of `sampled`.
        quantization: vLLM's name for how the weights are quantised, here or in the checkpoint; None: not.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        names = weights_of(AutoModelForCausalLM.from_config(config))
    missing = [name for name in names if name not in samples]
    if not missing:
        ours = fingerprint_of(config, [samples[name] for name in names])
        return Identity(ours, f"this model has fingerprint {ours[:12]}")
    if quantization is not None:
        why = f"this checkpoint is quantised ({quantization})"
    else:
        why = f"this checkpoint has no weight {missing[0]!r}, as transformers names it ({len(missing)} are missing)"
    return Identity("unknown", f"{why}, so that it cannot be compared with that model")
