"""prompt → prefill → [ forward one token → stamp → if due: score → select → compact → sample ], for many rows at once.

N active rows   R rows of one eviction   S thought slots   K kept slots   L layers   H kv heads   F state size
W tokens that a predictor sees of each   V vocabulary
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leanthink.attention import forward
from leanthink.budget import select
from leanthink.cache import SlotCache
from leanthink.completion import Completion
from leanthink.load import ThinkTags, kv_shape
from leanthink.policies import Policy
from leanthink.request import Request
from leanthink.sampling import Sampler
from leanthink.seats import GOING_ON, Seats
from leanthink.states import state_size

PREFILL_TOKENS = 16384  # most prompt tokens in one forward, unless one prompt alone is longer


class Run:
    """Requests on one cache: free rows take waiting requests, every step feeds one token of each active row.

    Memory is reserved here for `rows` times the largest bound of the requests. A step waits for the device once,
    for the sampled tokens, and once more for each eviction.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        requests: Sequence[Request],
        *,
        tags: ThinkTags,
        ends: Sequence[int],
        rows: int,
        record: bool = False,
    ) -> None:
        policies = list({id(request.policy): request.policy for request in requests}.values())
        self.model = model
        self.device: torch.device = model.device
        self.waiting = deque(sorted(requests, key=lambda request: len(request.prompt_ids)))
        self.cache = SlotCache(
            kv_shape(model.config),
            rows=rows,
            capacity=max(request.bound for request in requests),
            dtype=model.dtype,
            device=self.device,
            channels=max(policy.channels for policy in policies),
            num_queries=max(policy.num_queries for policy in policies),
            num_states=max((policy.offsets[-1] + 1 for policy in policies if policy.channels), default=0),
            state_size=state_size(model),
            per_head=any(policy.per_head for policy in policies),
        )
        self.seats = Seats(rows, tokenizer, tags=tags, ends=ends, policies=policies, record=record)
        self.sampler = Sampler(rows, self.device)
        self.last_ids = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self.stamping: list[tuple[Policy, Tensor]] = []  # policies that stamp, each with its rows

    @property
    def unfinished(self) -> bool:
        """Whether there is anything left to do."""
        return bool(self.waiting) or self.cache.active > 0

    def advance(self) -> list[tuple[int, Completion]]:
        """Admit what fits, take one step, and return what finished: (request index, completion) of each."""
        self.admit()
        done = self.retire()
        if self.cache.active:
            self.step()
            done += self.retire()
        return done

    @torch.inference_mode()
    def admit(self) -> None:
        """Prefill waiting requests into the free rows, equal prompt lengths together, and sample their first tokens."""
        while self.waiting and self.cache.active < self.cache.rows:
            first, batch = self.cache.active, self._next_prefill()
            tokens = len(batch[0].prompt_ids)
            ids_NS = torch.tensor([request.prompt_ids for request in batch], device=self.device)
            positions_NS = self.cache.start_prefill(len(batch), tokens)
            _, logits_NV = forward(self.model, self.cache, ids_NS, positions_NS)
            self.seats.seat(batch, held=tokens)
            self.sampler.seat(first, [request.sampling for request in batch])
            self._find_stamping()
            self._sample(slice(first, first + len(batch)), logits_NV)

    @torch.inference_mode()
    def step(self) -> None:
        """One token for every active row: forward → stamp → evict → sample."""
        n = self.cache.active
        positions_N1 = self.cache.start_step()
        states_NF, logits_NV = forward(self.model, self.cache, self.last_ids[:n, None], positions_N1)
        if self.stamping:
            self.cache.remember(states_NF)
        for policy, rows_R in self.stamping:
            seen_RWF = self.cache.recall(rows_R, policy.offsets)
            self.cache.stamp(rows_R, policy.stamp(seen_RWF), late=policy.offsets[-1])
        self._evict()
        self._sample(slice(0, n), logits_NV)

    @torch.inference_mode()
    def retire(self) -> list[tuple[int, Completion]]:
        """Free the rows of finished requests: (request index, completion) of each."""
        cache, seats = self.cache, self.seats
        rows = (seats.ended[: cache.active] != GOING_ON).nonzero()[:, 0].tolist()
        if not rows:
            return []
        facts = {"capacity": cache.capacity, "bytes_per_slot": cache.bytes_per_slot}
        done = [
            (seats.requests[row].index, seats.complete(row, held=int(cache.host_lengths[row]), **facts)) for row in rows
        ]
        sources, targets = cache.retire(rows)
        seats.free(rows, sources, targets)
        if sources:
            self.sampler.move(sources, targets)
            self.last_ids[targets] = self.last_ids[sources]
        self._find_stamping()
        return done

    def _next_prefill(self) -> list[Request]:
        """Waiting requests of one prompt length, as many as rows and PREFILL_TOKENS allow, at least one."""
        tokens = len(self.waiting[0].prompt_ids)
        most = min(self.cache.rows - self.cache.active, max(1, PREFILL_TOKENS // tokens))
        batch: list[Request] = []
        while self.waiting and len(batch) < most and len(self.waiting[0].prompt_ids) == tokens:
            batch.append(self.waiting.popleft())
        return batch

    def _find_stamping(self) -> None:
        groups = ((policy, self.seats.rows_of(index)) for index, policy in enumerate(self.seats.policies))
        self.stamping = [
            (policy, rows_R.to(self.device)) for policy, rows_R in groups if policy.channels and len(rows_R)
        ]

    def _evict(self) -> None:
        """Evict from every row that is due, rows of one policy and budget together."""
        cache, seats, n = self.cache, self.seats, self.cache.active
        groups: dict[object, list[int]] = {}
        for row in seats.due_rows(cache.host_lengths[:n], cache.host_prompts[:n]):
            groups.setdefault((int(seats.policy[row]), seats.requests[row].budget), []).append(row)
        for rows in groups.values():
            kept, positions_RS = self._rank(rows)
            if seats.record and positions_RS is not None:
                seats.note_evicted(rows, positions_RS.cpu(), kept.cpu())
            cache.evict(rows, kept)
            seats.evictions[rows] += 1

    def _rank(self, rows: list[int]) -> tuple[Tensor, Tensor | None]:
        """Score → select: kept indices [R, K] and the positions ranked [R, S]; [R, L, H, K] and None per head."""
        policy, budget = self.seats.requests[rows[0]].policy, self.seats.requests[rows[0]].budget
        assert budget is not None
        rows_R = torch.tensor(rows, device=self.device)
        seeds_R, count = self.sampler.seeds[rows_R], int(self.seats.due[rows[0]])
        layers = range(self.cache.shape.layers) if policy.per_head else [None]
        kept = []
        for layer in layers:
            slots = self.cache.show(rows_R, count, seeds_R, policy, layer)
            pinned = torch.zeros_like(slots.ages, dtype=torch.bool)  # prompt and answer are not among the slots shown
            kept.append(select(policy.score(slots), slots.ages, pinned, budget))
        return (torch.stack(kept, dim=1), None) if policy.per_head else (kept[0], slots.positions)

    def _sample(self, rows: slice, logits_NV: Tensor) -> None:
        counts_N = self.cache.next_positions[rows] - self.cache.prompt_lengths[rows]
        ids_N = self.sampler.pick(logits_NV, rows, counts_N)
        self.last_ids[rows] = ids_N
        self.seats.note_tokens(rows, ids_N.cpu())
