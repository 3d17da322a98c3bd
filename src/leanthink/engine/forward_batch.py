"""What the next forward pass is: the cache is told before it runs, and attention layers read it while it does.

N rows   U allocations in use, where all have one size   T slots of the cache
C chunks of prompts   S their tokens together   B blocks of rows of their attention
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from leanthink.engine.kernels.prefill_blocks import block_shape
from leanthink.engine.slot_allocator import Allocation
from leanthink.utils.device import to_device


@dataclass(frozen=True, kw_only=True)
class PromptChunk:
    """Prompt tokens [done, done + tokens) of one request, which the next forward writes into its allocation."""

    allocation: Allocation
    done: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class WindowChunk:
    """What a layer with a sliding window reads and writes for a chunk of a prompt: places of the request's ring."""

    fed: slice  # which of the S tokens the chunk is
    earlier_E: Tensor  # of the tokens before it that its first one sees, oldest first
    latest: slice  # those of the S tokens that are written: no more than the ring holds
    write_K: Tensor  # and where


@dataclass(frozen=True, kw_only=True)
class PrefillBatch:
    """The next forward feeds the tokens of these chunks, one after the other, as one sequence.

    What is told of it is told once, for all layers. The tables of the kernel that attends to all chunks at once are
    None where it does not run; those of layers with a sliding window are empty for a model that has none.
    """

    chunks: tuple[PromptChunk, ...]
    positions_S: Tensor
    write_N: Tensor  # the slot of the cache that each of the S tokens writes
    chunks_C4: Tensor | None = None  # first of the S tokens, tokens, first slot of the allocation, slots written before
    blocks_B2: Tensor | None = None  # as of `in_blocks`
    windows: tuple[WindowChunk, ...] = ()  # of each chunk

    @property
    def spans(self) -> Iterator[tuple[slice, slice]]:
        """Of each chunk, the slots that it writes, and which of the S tokens they are."""
        first = 0
        for chunk in self.chunks:
            start = chunk.allocation.start + chunk.done
            yield slice(start, start + chunk.tokens), slice(first, first + chunk.tokens)
            first += chunk.tokens

    def beside(self, rows: DecodeBatch) -> MixedBatch:
        """This forward, which feeds these rows too."""
        return MixedBatch(prompts=self, rows=rows)


@dataclass(frozen=True, kw_only=True)
class DecodeBatch:
    """The next forward feeds one token to each of rows 0 to N - 1; computed once, shared by all layers."""

    starts_N: Tensor
    last_N: Tensor  # slots that the row holds already: the place of the new token in its allocation
    write_N: Tensor  # the slot of the cache that each row writes; T, which is nobody's, for a row without a request
    live_N: Tensor
    longest: int  # slots that attention has to read of the longest row, the new one included; 0 in a CUDA graph
    largest: int  # slots of the largest allocation so far; of every one, where all have one size
    # State index of the row's allocation, `max_rows` for a row without a request; None where all lies in slots.
    states_N: Tensor | None = None
    bias_U11T: Tensor | None = None  # with a fixed size: 0 where an allocation holds a slot, -inf elsewhere
    allocation_N: Tensor | None = None  # and which of the U in use is each row's; None where row n has the n-th
    windows: DecodeBatch | None = None  # the same of layers with a sliding window, whose slots are places of rings


@dataclass(frozen=True, kw_only=True)
class MixedBatch:
    """The next forward feeds the tokens of chunks of prompts and, behind them, one token to each row.

    A row may be of a prompt that ends with one of the chunks: a layer writes all keys and values before it attends.
    """

    prompts: PrefillBatch
    rows: DecodeBatch

    @cached_property
    def write_N(self) -> Tensor:
        """The slot of the cache that each of all these tokens writes."""
        return torch.cat([self.prompts.write_N, self.rows.write_N])

    @property
    def parts(self) -> tuple[tuple[PrefillBatch, slice], tuple[DecodeBatch, slice]]:
        """Both, and which of the tokens they are."""
        fed = len(self.prompts.positions_S)
        return (self.prompts, slice(0, fed)), (self.rows, slice(fed, None))


Batch = PrefillBatch | DecodeBatch | MixedBatch


def prefill_batch(
    chunks: Sequence[PromptChunk], queries: Tensor, group: int | None, windows: tuple[WindowChunk, ...] = ()
) -> PrefillBatch:
    """The forward over these chunks, with tables for the kernel if a group of query heads is given.

    `queries` [..., D] are any of the model's: of their device, dtype and head dim.
    """
    device = queries.device
    tokens_C, start_C, done_C = torch.tensor(
        [(chunk.tokens, chunk.allocation.start, chunk.done) for chunk in chunks], dtype=torch.int64
    ).unbind(1)
    first_C = tokens_C.cumsum(0) - tokens_C
    positions_S = torch.arange(int(tokens_C.sum())) + (done_C - first_C).repeat_interleave(tokens_C)
    write_S = positions_S + start_C.repeat_interleave(tokens_C)
    tables = [torch.zeros(0, dtype=torch.int64)] * 2
    if group is not None:
        rows = block_shape(queries.shape[-1], queries.dtype).rows
        chunks_C4 = torch.stack([first_C, tokens_C, start_C, done_C], dim=1)
        tables = [chunks_C4.flatten(), in_blocks(tokens_C, done_C, rows, group).flatten()]
    # One copy to the device, that does not wait for it. Each but the last begins at a multiple of 16 bytes whatever the
    # chunks are: kernels are compiled anew for another alignment.
    told = [*tables, write_S, positions_S]
    chunks_X, blocks_X, write_S, positions_S = torch.split(
        to_device(torch.cat(told), device), [len(part) for part in told]
    )
    return PrefillBatch(
        chunks=tuple(chunks),
        positions_S=positions_S,
        write_N=write_S,
        chunks_C4=chunks_X.view(-1, 4) if group else None,
        blocks_B2=blocks_X.view(-1, 2) if group else None,
        windows=windows,
    )


def in_blocks(tokens_C: Tensor, done_C: Tensor, rows: int, group: int) -> Tensor:
    """Chunk and first row of each block of `rows` rows, a chunk having `group` for each token, int64 [B, 2].

    Those that see most slots come first, so that none of them is still at work when all others have ended.
    """
    blocks_C = -(-tokens_C * group // rows)
    chunk_B = torch.arange(len(tokens_C)).repeat_interleave(blocks_C)
    first_row_B = (torch.arange(len(chunk_B)) - (blocks_C.cumsum(0) - blocks_C)[chunk_B]) * rows
    order_B = (done_C[chunk_B] + first_row_B // group).argsort(descending=True, stable=True)
    return torch.stack([chunk_B, first_row_B], dim=1)[order_B]


def by_allocation(
    allocation_N: Tensor, last_N: Tensor, num_allocations: int, *, longest: int, dtype: torch.dtype
) -> dict[str, Any]:
    """What one attention call over the first so many allocations of a fixed size needs, as fields of `DecodeBatch`.

    An allocation without a row shows its first slot.
    """
    in_order = len(last_N) == num_allocations and torch.equal(allocation_N, torch.arange(len(last_N)))
    last_U = torch.zeros(num_allocations, dtype=torch.int64)
    last_U[allocation_N] = last_N
    behind_UT = torch.arange(longest) > last_U[:, None]
    bias_UT = torch.zeros(behind_UT.shape, dtype=dtype).masked_fill(behind_UT, -torch.inf)
    return {"bias_U11T": bias_UT[:, None, None], "allocation_N": None if in_order else allocation_N}
