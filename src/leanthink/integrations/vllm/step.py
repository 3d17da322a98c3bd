"""One step of vLLM's batch as it is really run: in one forward, or in several where evictions fall inside a prompt.

N tokens of the batch   n tokens of one sub-batch
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanthink.integrations.vllm.lengths import Piece
from leanthink.integrations.vllm.row import Row


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one request feeds in one sub-batch.

    Attributes:
        row: None for a request without a budget.
        index: of the request in the batch.
        first: its first token, counted in the sub-batch.
        piece: its tokens.
    """

    row: Row | None
    index: int
    first: int
    piece: Piece


@dataclass(frozen=True, kw_only=True)
class SubBatch:
    """Tokens that are fed in one forward.

    Attributes:
        parts: the requests that feed any.
        tokens_n: which of the batch's tokens; None: all of them.
        metadata: vLLM's, for the attention layers.
        slots_n: where each token's keys and values are written, in vLLM's count over all blocks.
    """

    parts: list[Part]
    tokens_n: Tensor | None
    metadata: Any
    slots_n: Tensor


@dataclass(frozen=True, kw_only=True)
class Step:
    """All sub-batches, and what evicts: (request's index in the batch, kept thought slots, row) → slots are moved."""

    sub_batches: list[SubBatch]
    compact: Callable[[int, Tensor, Row], None]

    @property
    def scores_tokens(self) -> bool:
        """Whether any policy wants to be shown states."""
        rows = [part.row for part in self.sub_batches[0].parts]
        return any(row is not None and row.policy.score_dims for row in rows)


@dataclass(frozen=True, kw_only=True)
class TokenSpan:
    """One request's pieces, and where its tokens begin in the batch."""

    row: Row | None
    index: int
    start: int
    pieces: list[Piece]


def sub_batches_of(spans: list[TokenSpan]) -> list[tuple[list[Part], Tensor]]:
    """The parts of each sub-batch and the batch's tokens that it feeds: the n-th pieces of all requests go together."""
    sub_batches = []
    for number in range(max(len(span.pieces) for span in spans)):
        parts, tokens, first = [], [], 0
        for span in spans:
            if number >= len(span.pieces):
                continue
            piece = span.pieces[number]
            start = span.start + sum(earlier.tokens for earlier in span.pieces[:number])
            parts.append(Part(row=span.row, index=span.index, first=first, piece=piece))
            tokens.append(torch.arange(start, start + piece.tokens))
            first += piece.tokens
        sub_batches.append((parts, torch.cat(tokens)))
    return sub_batches


def settle(step: Step, sub_batch: SubBatch, states_nF: Tensor | None) -> None:
    """The sub-batch is fed: account for its tokens, and evict where that is due."""
    for part in sub_batch.parts:
        row, tokens = part.row, part.piece.tokens
        if row is None:
            continue
        wanted = states_nF is not None and row.policy.score_dims
        row.note(states_nF[part.first : part.first + tokens] if wanted and states_nF is not None else None, tokens)
        if part.piece.evicts:
            step.compact(part.index, row.evict(), row)
        assert row.physical == row.lengths.physical(row.logical), "scheduler and worker would not agree"
