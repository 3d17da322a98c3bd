"""Which requests hold slots and rows: admission in order, prompts fed in chunks, what they begin with alike once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from leanthink.engine.faults import Faults
from leanthink.engine.forward_batch import PromptChunk
from leanthink.engine.model_runner import Prompts, TokenScoring
from leanthink.engine.prefix_caching import PrefixCache
from leanthink.engine.request import Request
from leanthink.engine.rows import Rows
from leanthink.engine.slot_allocator import Allocation


@dataclass(eq=False)
class Prefilling:
    """A request that holds its allocation, and `done` tokens of whose prompt are fed or copied, or are in this step.

    `keys` are those of its prompt's chunks, none where it shares nothing (see `leanthink.engine.prefix_caching`).
    """

    request: Request
    allocation: Allocation
    done: int = 0
    keys: tuple[bytes, ...] = ()

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
        enable_prefix_caching: whether what prompts begin with alike is fed once.

    Attributes:
        waiting: requests that hold nothing yet.
        prefilling: requests that hold their slots, and whose prompts are being fed.
        chunks: what this step still is to feed of prompts.
        prefix_cache: knows what prompts lie in the cache.
    """

    def __init__(self, rows: Rows, faults: Faults, *, prefill_tokens: int, enable_prefix_caching: bool) -> None:
        self.rows, self.cache, self.faults, self.prefill_tokens = rows, rows.cache, faults, prefill_tokens
        self.waiting: deque[Request] = deque()
        self.prefilling: deque[Prefilling] = deque()
        self.chunks: list[tuple[Prefilling, PromptChunk]] = []
        self.prefix_cache = PrefixCache(self.cache, enabled=enable_prefix_caching)

    @property
    def unfinished(self) -> int:
        """Requests that wait, are fed or decode."""
        return len(self.waiting) + len(self.prefilling) + self.cache.active

    @property
    def requests(self) -> Iterator[Request]:
        """All of these."""
        return chain(self.waiting, (entry.request for entry in self.prefilling), self.rows.batch.requests)

    def schedule(self) -> None:
        """Admit what fits, feed a part of the prompts, and give rows to those that are fed then.

        Where rows and prompts share a forward, `launch` feeds that part.
        """
        self._admit()
        self._choose_chunks()
        self._start_decoding()
        if self.chunks and not (self.cache.active and self.rows.model_runner.mixes_prompts):
            self._prefill()

    def launch(self, rows: int, scoring: Sequence[TokenScoring], *, logprobs: int) -> None:
        """`ModelRunner.launch`, with the chunks that are still to be fed; if that raises, `feed_alone` feeds them."""
        prompts = _prompts(self.chunks) if self.chunks else None
        self.rows.model_runner.launch(rows, scoring, logprobs=logprobs, prompts=prompts)
        self.chunks = []

    def feed_alone(self) -> None:
        """Feed each prompt of these chunks by itself: those that raise fail."""
        chunks, self.chunks = self.chunks, []
        self._forward_alone(chunks)

    def _admit(self) -> None:
        """Reserve slots for waiting requests, strictly in their order."""
        while self.waiting and len(self.prefilling) + self.cache.active < self.cache.max_rows:
            allocation = self.cache.allocator.allocate(self.waiting[0].bound)
            if allocation is None:
                return
            entry = Prefilling(request=self.waiting.popleft(), allocation=allocation)
            self.prefix_cache.admit(entry)
            self.prefilling.append(entry)

    def _choose_chunks(self) -> None:
        """Up to `prefill_tokens` tokens of the prompts that wait, all but the last token of each."""
        self.chunks = []
        room, being_fed = self.prefill_tokens, set[bytes]()
        for entry in self.prefilling:
            if not self.prefix_cache.reuse(entry, being_fed):
                continue  # it waits for one that begins alike
            tokens = self._next_tokens(entry, room)
            if tokens:
                self.chunks.append((entry, PromptChunk(allocation=entry.allocation, done=entry.done, tokens=tokens)))
                room -= tokens
                being_fed.update(self.prefix_cache.offered(entry))
            if not room:
                break
        self._note(self.chunks)

    def _note(self, chunks: Sequence[tuple[Prefilling, PromptChunk]]) -> None:
        """These are fed, or will be before anybody reads or copies them."""
        for entry, chunk in chunks:
            entry.done += chunk.tokens
            self.prefix_cache.note(entry)

    def _prefill(self) -> None:
        """Feed the chunks of this step in a forward of their own."""
        chunks, self.chunks = self.chunks, []
        try:
            self.rows.model_runner.prefill(*_prompts(chunks))
        except Exception as error:
            self.faults.check_device(error)
            self._forward_alone(chunks)

    def _next_tokens(self, entry: Prefilling, room: int) -> int:
        """How many tokens of this prompt are fed next, at most `room`.

        Where layers keep states, no single token goes on from a state, now or next: Nemotron-H reads one otherwise than
        among others, and other requests decide how much room there is. Of 1 or 2 `prefill_tokens` nothing is spared.
        """
        most = min(room, entry.left)
        if self.cache.recurrent is None:
            return most
        good = (n for n in (most, most - 1) if n > 0 and not (n == 1 and entry.done) and entry.left - n != 1)
        return next(good, most if room == self.prefill_tokens else 0)

    def _forward_alone(self, chunks: Sequence[tuple[Prefilling, PromptChunk]]) -> None:
        """Each prompt from its beginning, as nobody knows how far the last forward came; those that raise fail.

        To the end of its chunk in any case: a prompt that raises in a later chunk would else begin again for ever.
        """
        for entry, chunk in chunks:
            entry.done = entry.allocation.cached_tokens = 0
            self.prefix_cache.forget(entry.allocation)
            try:
                while entry.done < chunk.done + chunk.tokens:
                    tokens = self._next_tokens(entry, self.prefill_tokens)
                    some = [(entry, PromptChunk(allocation=entry.allocation, done=entry.done, tokens=tokens))]
                    self.rows.model_runner.prefill(*_prompts(some))
                    self._note(some)
            except Exception as error:
                self.faults.check_device(error)
                self.faults.note(entry.request, error)
                if entry.allocation.row is None:  # else its row is freed with those of all that failed
                    self._drop(entry)

    def _start_decoding(self) -> None:
        """Prompts that are fed take the next rows, in their order; a longer one that is still fed is overtaken."""
        ready = [entry for entry in self.prefilling if not entry.left]
        if not ready:
            return
        for entry in ready:
            self.prefilling.remove(entry)
            self.prefix_cache.count(entry)
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
        self.prefix_cache.end([entry.allocation])

    def fail_prefilling(self, error: Exception) -> None:
        """Every request whose prompt is being fed ends with this error."""
        for entry in list(self.prefilling):
            self.faults.note(entry.request, error)
            self._drop(entry)

    def free(self, rows: Sequence[int]) -> None:
        """Free these rows and their slots."""
        freed = [self.cache.allocations[row] for row in rows]
        self.rows.free(rows)
        self.prefix_cache.end(freed)

    def check_integrity(self) -> None:
        """Raise AssertionError unless all tables agree and no slot is held for nobody."""
        self.rows.check_integrity()
        held = {entry.allocation: entry.request for entry in self.prefilling}
        held |= dict(zip(self.cache.allocations, self.rows.batch.requests, strict=True))
        assert held.keys() == set(self.cache.allocator.allocations), "an allocation belongs to nobody"
        assert all(allocation.state_index < self.cache.max_rows for allocation in held), "more states than rows"
        self.prefix_cache.check_integrity(held)


def _prompts(chunks: Sequence[tuple[Prefilling, PromptChunk]]) -> Prompts:
    """What the model is fed of these."""
    ids = [entry.request.prompt_ids[chunk.done : chunk.done + chunk.tokens] for entry, chunk in chunks]
    return list(chain(*ids)), [chunk for _, chunk in chunks]
