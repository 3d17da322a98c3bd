"""What the next forward pass is: the cache is told before it runs, and attention layers read it while it does.

N rows   U allocations in use, where all have one size   T slots of the cache
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leanthink.engine.slot_allocator import Allocation, SlotAllocator


@dataclass(frozen=True, kw_only=True)
class PromptChunk:
    """Prompt tokens [done, done + tokens) of one request, which the next forward writes into its allocation."""

    allocation: Allocation
    done: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class PrefillBatch:
    """The next forward feeds the tokens of these chunks, one after the other, as one sequence."""

    chunks: tuple[PromptChunk, ...]


@dataclass(frozen=True, kw_only=True)
class DecodeBatch:
    """The next forward feeds one token to each of rows 0 to N - 1; computed once, shared by all layers."""

    starts_N: Tensor
    last_N: Tensor  # slots that the row holds already: the place of the new token in its allocation
    write_N: Tensor  # the slot of the cache that each row writes; T, which is nobody's, for a row without a request
    live_N: Tensor
    longest: int  # slots that attention has to read of the longest row, the new one included; 0 in a CUDA graph
    bias_U11T: Tensor | None = None  # with a fixed size: 0 where an allocation holds a slot, -inf elsewhere
    allocation_N: Tensor | None = None  # and which of the U in use is each row's; None where row n has the n-th


def by_allocation(
    allocator: SlotAllocator, starts_N: Tensor, lengths_N: Tensor, *, longest: int, dtype: torch.dtype
) -> dict[str, Tensor | None]:
    """What one attention call over all allocations of a fixed size needs, as fields of `DecodeBatch`.

    An allocation without a row shows its first slot.
    """
    assert allocator.fixed_size is not None
    allocation_N, num_allocations = starts_N // allocator.fixed_size, len(allocator.allocations)
    in_order = len(starts_N) == num_allocations and torch.equal(allocation_N, torch.arange(len(starts_N)))
    last_U = torch.zeros(num_allocations, dtype=torch.int64)
    last_U[allocation_N] = lengths_N
    behind_UT = torch.arange(longest) > last_U[:, None]
    bias_UT = torch.zeros(behind_UT.shape, dtype=dtype).masked_fill(behind_UT, -torch.inf)
    return {"bias_U11T": bias_UT[:, None, None], "allocation_N": None if in_order else allocation_N}
