"""Length bucketing: micro-batches of responses of like length, so that little of what is computed is padding.

TRL shuffles a generation batch, cuts it into equal micro-batches and pads all of them to the longest response. Their
lengths differ by a factor of ten, so most tokens that the forward and the backward pass saw were padding.

N responses of a micro-batch   P tokens of the longest prompt   T tokens of the longest response
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

MicroBatch = dict[str, Tensor]
OverRanks = Callable[[Tensor], Tensor]


def is_text(micro_batch: Mapping[str, Any]) -> bool:
    """Whether every entry is a tensor with a row for each response, or one number for all; images are not."""
    return "pixel_values" not in micro_batch and all(isinstance(value, Tensor) for value in micro_batch.values())


def bucket_by_length(
    micro_batches: Sequence[MicroBatch], window: int, *, even: bool, largest: OverRanks = lambda tokens_N: tokens_N
) -> list[MicroBatch]:
    """The same rows in as many micro-batches, the longest responses first, each cut to its own longest.

    Rows stay within their optimiser update: that of `window` micro-batches one after the other. A loss that is divided
    by the tokens of the whole update is the same for any order and any number of rows in each, so those can be of about
    equal size with their padding: the peak of memory is that of the largest. What TRL logs as a mean of micro-batches,
    such as the entropy, counts each of them alike.

    Args:
        micro_batches: of one generation batch, as TRL holds them; only text.
        window: micro-batches of an update.
        even: all keep as many rows as they have, as a loss needs that is a mean of each micro-batch's responses.
        largest: of each number over all ranks, so that all cut alike: TRL gathers a number for each response of a
            micro-batch, and NCCL waits for ever where ranks bring unequally many.
    """
    sorted_batches: list[MicroBatch] = []
    for first in range(0, len(micro_batches), window):
        part = micro_batches[first : first + window]
        rows = {name: torch.cat([batch[name] for batch in part]) for name, value in part[0].items() if value.dim()}
        tokens_N, longest_first_N = rows["completion_mask"].sum(dim=1).sort(descending=True, stable=True)
        sizes = [len(batch["completion_mask"]) for batch in part]
        if not even:
            sizes = balanced_sizes(largest(tokens_N).tolist(), len(part))
        for batch, chosen_N in zip(part, torch.split(longest_first_N, sizes), strict=True):
            sorted_batches.append(trim_padding(batch | {name: value[chosen_N] for name, value in rows.items()}))
    return sorted_batches


def balanced_sizes(tokens_N: Sequence[int], parts: int) -> list[int]:
    """How many of the rows, longest first, each part takes, so that the largest part with its padding is small.

    Args:
        tokens_N: of the rows, descending; at least as many rows as parts.
        parts: how many; each takes at least one row.
    """
    widths_N = [max(1, tokens) for tokens in tokens_N]
    low, high = widths_N[0], widths_N[0] * len(widths_N)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_filled(widths_N, middle)) <= parts else (middle + 1, high)
    sizes = _filled(widths_N, low)
    while len(sizes) < parts:
        most = sizes.index(max(sizes))
        sizes[most : most + 1] = [sizes[most] - sizes[most] // 2, sizes[most] // 2]
    return sizes


def _filled(widths_N: Sequence[int], room: int) -> list[int]:
    """Sizes of parts that each take rows for as long as all of them, as wide as the first, find room."""
    sizes: list[int] = []
    first = 0
    while first < len(widths_N):
        sizes.append(min(room // widths_N[first], len(widths_N) - first))
        first += sizes[-1]
    return sizes


def trim_padding(batch: MicroBatch) -> MicroBatch:
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


def stacked_rows(name: str, rows: list[Tensor], pad_id: int) -> Tensor:
    """Rows of different rounds in one tensor, padded where TRL pads them."""
    if rows[0].dim() == 0:
        return torch.stack(rows)
    side = "left" if name.startswith("prompt_") else "right"
    padding = pad_id if name in ("prompt_ids", "completion_ids") else 0
    return pad_sequence(rows, batch_first=True, padding_value=padding, padding_side=side)
