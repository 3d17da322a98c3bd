"""Micro-batches of responses of like length, so that little of what is computed is padding.

TRL shuffles a generation batch, cuts it into equal micro-batches and pads all of them to the longest response. Their
lengths differ by a factor of ten, so most tokens that the forward and the backward pass saw were padding.

N responses of a micro-batch   P tokens of the longest prompt   T tokens of the longest response
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

MicroBatch = dict[str, Tensor]


def is_text(micro_batch: Mapping[str, Any]) -> bool:
    """Whether every entry is a tensor with a row for each response, or one number for all; images are not."""
    return "pixel_values" not in micro_batch and all(isinstance(value, Tensor) for value in micro_batch.values())


def by_length(micro_batches: Sequence[MicroBatch], window: int) -> list[MicroBatch]:
    """The same rows in as many micro-batches, the longest responses first, each cut to its own longest.

    Rows stay within their optimiser update: that of `window` micro-batches one after the other. A loss that is divided
    by the tokens or the responses of the whole update is the same for any order; what TRL logs as a mean of
    micro-batches, such as the entropy, counts each of them alike.

    Args:
        micro_batches: of one generation batch, as TRL holds them; only text.
        window: micro-batches of an update.
    """
    sorted_batches: list[MicroBatch] = []
    for first in range(0, len(micro_batches), window):
        part = micro_batches[first : first + window]
        rows = {name: torch.cat([batch[name] for batch in part]) for name, value in part[0].items() if value.dim()}
        longest_first_N = rows["completion_mask"].sum(dim=1).argsort(descending=True, stable=True)
        for batch, chosen_N in zip(part, longest_first_N.chunk(len(part)), strict=True):
            sorted_batches.append(cut(batch | {name: value[chosen_N] for name, value in rows.items()}))
    return sorted_batches


def cut(batch: MicroBatch) -> MicroBatch:
    """Without the columns in which every row is padding: on the left of prompts, on the right of all else."""
    prompt, response = batch["prompt_mask"], batch["completion_mask"]
    prompt_tokens, response_tokens = (max(1, int(mask.sum(dim=1).max())) for mask in (prompt, response))
    shorter = dict(batch)
    for name, value in batch.items():
        if name.startswith("prompt_"):
            shorter[name] = value[:, -prompt_tokens:]
        elif value.dim() == 2 and value.shape[1] == response.shape[1]:
            shorter[name] = value[:, :response_tokens]
    return shorter
