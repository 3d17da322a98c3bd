"""Closing tags that only the text shows: the host reads the tokens, without the device ever waiting for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from leanthink.integrations.vllm.lengths import NEVER
from leanthink.integrations.vllm.thought import Watch
from leanthink.integrations.vllm.v2.device_rows import Batch


@dataclass(eq=False, kw_only=True)
class _Thinking:
    """A request whose thought is not over, as far as is known."""

    watch: Watch
    output_ids: list[int]


@dataclass(frozen=True, kw_only=True)
class _Copy:
    """Tokens of one step on their way to the host: [2, n], what was sampled for each row, and how many tokens."""

    tokens_2n: Tensor
    there: torch.cuda.Event | None
    rows: list[tuple[int, int, _Thinking]] = field(repr=False)  # row of the step, index and request


class TextTags:
    """Who thinks, and the last two steps, of which the older one is read when the next step is prepared.

    By then the scheduler has its output, with or without asynchronous scheduling: reading it waits for nothing, and
    scheduler and workers know of the tag in the same step.
    """

    def __init__(self) -> None:
        self._thinking: dict[int, _Thinking] = {}
        self._copies: deque[_Copy] = deque()

    def enter(self, index: int, watch: Watch | None, output_ids: list[int]) -> None:
        """This request sits there from now on, with what it has written so far; None: one that is not watched."""
        if watch is None or watch.answer_at(output_ids) != NEVER:
            self._thinking.pop(index, None)
        else:
            self._thinking[index] = _Thinking(watch=watch, output_ids=output_ids)

    def note(self, batch: Batch, tokens_R1: Tensor, counts_n: Tensor) -> None:
        """A step was sampled.

        Args:
            batch: the step.
            tokens_R1: last sampled token of every request.
            counts_n: tokens sampled for each row, 0 or 1.
        """
        indices = batch.indices.tolist()
        rows = [(row, index, self._thinking[index]) for row, index in enumerate(indices) if index in self._thinking]
        if not rows:
            return
        tokens_2n = torch.stack([tokens_R1[batch.indices_n, 0].long(), counts_n[: len(indices)].long()])
        there = None
        if tokens_2n.is_cuda:
            host_2n = torch.empty(tokens_2n.shape, dtype=torch.int64, pin_memory=True)
            tokens_2n, there = host_2n.copy_(tokens_2n, non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
            there.record()
        self._copies.append(_Copy(tokens_2n=tokens_2n, there=there, rows=rows))

    def found(self) -> Iterator[tuple[int, int]]:
        """Before a step: requests that sit where they sat, and where their answers begin."""
        while len(self._copies) >= 2:
            copy = self._copies.popleft()
            if copy.there is not None:
                copy.there.synchronize()
            tokens, counts = copy.tokens_2n.tolist()
            for row, index, request in copy.rows:
                if counts[row] == 0 or self._thinking.get(index) is not request:
                    continue
                request.output_ids.append(tokens[row])
                answer_at = request.watch.answer_at(request.output_ids)
                if answer_at != NEVER:
                    del self._thinking[index]
                    yield index, answer_at
