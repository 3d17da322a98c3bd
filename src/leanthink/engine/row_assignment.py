"""Prompts that are fed take rows: what the cache notes of them, for all at once, without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from leanthink.engine.slot_allocator import Allocation

if TYPE_CHECKING:
    from leanthink.engine.cache import SlotCache


class FedPrompt(NamedTuple):
    """An allocation that holds all but the last of a prompt's tokens; `token_ids` are these, where they are kept."""

    allocation: Allocation
    tokens: int
    pinned: bool = True  # a prompt that is not pinned counts as thought
    token_ids: Sequence[int] = ()


def assign_rows(cache: SlotCache, prompts: Sequence[FedPrompt]) -> None:
    """The next rows decode on these allocations.

    The last token of a prompt is fed with the decoding steps, so that all logits come out of these.
    """
    first, device = cache.active, cache.starts.device
    rows, facts = slice(first, first + len(prompts)), []
    assert rows.stop <= cache.max_rows
    places = torch.arange(max(prompt.tokens for prompt in prompts), device=device)
    for row, (allocation, tokens, pinned, token_ids) in enumerate(prompts, first):
        allocation.row = row
        cache.allocations.append(allocation)
        fixed, start = tokens if pinned else 0, allocation.start
        facts.append([start, tokens - 1, tokens, tokens - 1, 1, fixed, tokens - 1, allocation.state_index])
        cache.host_lengths[row], cache.host_pinned[row], cache.host_sizes[row] = tokens - 1, fixed, allocation.size
        cache.positions[:, :, start : start + tokens] = places[:tokens]
        if cache.recurrent is not None and tokens == 1:  # nothing was fed yet
            cache.recurrent.clear(allocation.state_index)
        if cache.requirements.token_ids:
            cache.token_ids[start : start + len(token_ids)] = cache.indices(token_ids)
    cache.host_waiting[rows] = 0
    cache.table[:, rows] = cache.indices(facts).T
    cache.queries[rows] = 0  # of the rows' former owners; the prompts' own are not kept
