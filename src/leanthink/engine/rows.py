"""The rows of requests that decode: here they are given, moved and freed, in all tables that have an entry for each.

A row has its slots in the cache, its record in the running batch, its knobs in the sampler and its next token in the
model runner. Rows [0, active) are taken in all four.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leanthink.engine.cache import SlotCache
from leanthink.engine.model_runner import ModelRunner
from leanthink.engine.request import Request
from leanthink.engine.row_assignment import FedPrompt, assign_rows
from leanthink.engine.running_batch import RunningBatch
from leanthink.engine.sampling import Sampler
from leanthink.engine.slot_allocator import Allocation


@dataclass(frozen=True)
class Rows:
    """The four tables; nobody else calls what assigns, moves or frees a row of one of them."""

    cache: SlotCache
    batch: RunningBatch
    sampler: Sampler
    model_runner: ModelRunner

    def assign(self, ready: Sequence[tuple[Request, Allocation]]) -> None:
        """The next rows go to these requests, whose allocations hold all but the last token of their prompts."""
        first, requests = self.cache.active, [request for request, _ in ready]
        prompts = [
            FedPrompt(allocation, len(request.prompt_ids), request.policy.pins_prompt, request.prompt_ids)
            for request, allocation in ready
        ]
        assign_rows(self.cache, prompts)
        self.batch.add(requests)
        self.sampler.assign_rows(first, [request.sampling for request in requests])
        self.model_runner.assign_rows(first, [request.prompt_ids[-1] for request in requests])

    def free(self, rows: Sequence[int]) -> None:
        """Free these rows and their slots; the last rows that stay take their numbers."""
        sources, targets = self.cache.free_rows(rows)
        self.batch.free(rows, sources, targets)
        if sources:
            self.sampler.move(sources, targets)
            self.model_runner.move(sources, targets)

    def find(self, request_id: int) -> int | None:
        """The row of this request; None for one that does not decode."""
        return next((row for row, request in enumerate(self.batch.requests) if request.index == request_id), None)

    def check_integrity(self) -> None:
        """Raise AssertionError unless all tables say the same of each row."""
        self.cache.check_integrity()
        requests, n = self.batch.requests, self.cache.active
        assert len(requests) == n
        assert self.sampler.seeds[:n].tolist() == [request.sampling.seed for request in requests]
        for row, request in enumerate(requests):
            assert int(self.cache.host_pinned[row]) == len(request.prompt_ids) * request.policy.pins_prompt
            assert int(self.cache.host_lengths[row]) <= request.bound <= self.cache.allocations[row].size
