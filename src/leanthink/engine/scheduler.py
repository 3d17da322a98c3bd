"""Which requests hold slots and rows: admission in order, prompts fed in chunks, one prefill for equal prompts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from leanthink.engine.faults import Faults
from leanthink.engine.forward_batch import PromptChunk
from leanthink.engine.request import Request
from leanthink.engine.rows import Rows
from leanthink.engine.slot_allocator import Allocation

Prefix = tuple[str | None, tuple[int, ...]]  # salt and prompt, as of `Request.prefix`


@dataclass(eq=False)
class Prefilling:
    """A request that holds its allocation, and `done` tokens of whose prompt are fed."""

    request: Request
    allocation: Allocation
    done: int = 0

    @property
    def left(self) -> int:
        """Tokens that are still to be fed before it decodes: the last one is fed with the decoding steps."""
        return len(self.request.prompt_ids) - 1 - self.done


class Scheduler:
    """Takes requests from waiting to decoding, first come, first served, and frees what they held.

    A request reserves the slots of its bound, so nothing is ever over-committed, and nothing is ever preempted.

    Args:
        rows: of the engine.
        faults: of the engine.
        prefill_tokens: most prompt tokens that one step feeds.

    Attributes:
        waiting: requests that hold nothing yet.
        prefilling: requests that hold their slots, and whose prompts are being fed.
        prefixes: where each prompt of a decoding request lies whole.
    """

    def __init__(self, rows: Rows, faults: Faults, *, prefill_tokens: int) -> None:
        self.rows, self.cache, self.faults, self.prefill_tokens = rows, rows.cache, faults, prefill_tokens
        self.waiting: deque[Request] = deque()
        self.prefilling: deque[Prefilling] = deque()
        self.prefixes: dict[Prefix, list[Allocation]] = {}

    @property
    def unfinished(self) -> int:
        """Requests that wait, are fed or decode."""
        return len(self.waiting) + len(self.prefilling) + self.cache.active

    @property
    def requests(self) -> Iterator[Request]:
        """All of these."""
        return chain(self.waiting, (entry.request for entry in self.prefilling), self.rows.batch.requests)

    def schedule(self) -> None:
        """Admit what fits, feed a part of the prompts, and give rows to those that are fed."""
        self._admit()
        self._prefill()
        self._start_decoding()

    def _admit(self) -> None:
        """Reserve slots for waiting requests, strictly in their order."""
        while self.waiting and len(self.prefilling) + self.cache.active < self.cache.max_rows:
            allocation = self.cache.allocator.allocate(self.waiting[0].bound)
            if allocation is None:
                return
            self.prefilling.append(Prefilling(request=self.waiting.popleft(), allocation=allocation))

    def _prefill(self) -> None:
        """Feed up to `prefill_tokens` tokens of the prompts that wait, all but the last token of each."""
        chunks: list[tuple[Prefilling, PromptChunk]] = []
        room, fed_now = self.prefill_tokens, set()
        for entry in self.prefilling:
            prefix = entry.request.prefix
            if entry.done == 0 and prefix in self.prefixes and entry.request.policy.pins_prompt:
                self.cache.copy_prompt(self.prefixes[prefix][0], entry.allocation, entry.left)
                entry.done += entry.left
            tokens = min(room, entry.left)
            if tokens and prefix not in fed_now:  # an equal prompt waits for the one that is being fed
                chunks.append((entry, PromptChunk(allocation=entry.allocation, done=entry.done, tokens=tokens)))
                fed_now.add(prefix)
                room -= tokens
            if not room:
                break
        if not chunks:
            return
        try:
            self.forward(chunks)
        except Exception as error:
            self.faults.check_device(error)
            self._forward_alone([entry for entry, _ in chunks])

    def _forward_alone(self, entries: Sequence[Prefilling]) -> None:
        """Each prompt from its beginning, as nobody knows how far the last forward came; those that raise fail."""
        for entry in entries:
            entry.done = 0
            tokens = min(self.prefill_tokens, entry.left)
            try:
                self.forward([(entry, PromptChunk(allocation=entry.allocation, done=0, tokens=tokens))])
            except Exception as error:
                self.faults.check_device(error)
                self.faults.note(entry.request, error)
                self._drop(entry)

    def forward(self, chunks: Sequence[tuple[Prefilling, PromptChunk]]) -> None:
        """One forward over these chunks of prompts."""
        ids = [entry.request.prompt_ids[chunk.done : chunk.done + chunk.tokens] for entry, chunk in chunks]
        self.rows.model_runner.prefill(list(chain(*ids)), [chunk for _, chunk in chunks])
        for entry, chunk in chunks:
            entry.done += chunk.tokens

    def _start_decoding(self) -> None:
        """Prompts that are fed take the next rows, in their order; a longer one that is still fed is overtaken."""
        ready = [entry for entry in self.prefilling if not entry.left]
        if not ready:
            return
        for entry in ready:
            self.prefilling.remove(entry)
            if entry.request.policy.pins_prompt:  # any other may lose slots of its prompt
                self.prefixes.setdefault(entry.request.prefix, []).append(entry.allocation)
        self.rows.assign([(entry.request, entry.allocation) for entry in ready])

    def drop(self, request_id: int) -> bool:
        """Give up a request that does not decode yet, and its slots; False if there is none of this id."""
        for request in self.waiting:
            if request.index == request_id:
                self.waiting.remove(request)
                return True
        for entry in self.prefilling:
            if entry.request.index == request_id:
                self._drop(entry)
                return True
        return False

    def _drop(self, entry: Prefilling) -> None:
        self.prefilling.remove(entry)
        self.cache.scrub(entry.allocation)  # nobody has looked at its numbers
        self.cache.free(entry.allocation)

    def fail_prefilling(self, error: Exception) -> None:
        """Every request whose prompt is being fed ends with this error."""
        for entry in list(self.prefilling):
            self.faults.note(entry.request, error)
            self._drop(entry)

    def free(self, rows: Sequence[int]) -> None:
        """Free these rows and their slots, which nobody shares any more."""
        for row in rows:
            request, allocation = self.rows.batch.requests[row], self.cache.allocations[row]
            if request.policy.pins_prompt:
                self.prefixes[request.prefix].remove(allocation)
                if not self.prefixes[request.prefix]:
                    del self.prefixes[request.prefix]
        self.rows.free(rows)

    def check_integrity(self) -> None:
        """Raise AssertionError unless all tables agree and no slot is held for nobody."""
        self.rows.check_integrity()
        prefilling = {entry.allocation for entry in self.prefilling}
        in_use = set(self.cache.allocator.allocations)
        assert prefilling | set(self.cache.allocations) == in_use, "an allocation belongs to nobody"
        assigned = zip(self.rows.batch.requests, self.cache.allocations, strict=True)
        whole = [allocation for request, allocation in assigned if request.policy.pins_prompt]
        assert sorted(map(id, chain(*self.prefixes.values()))) == sorted(map(id, whole)), "a prompt is lost"
