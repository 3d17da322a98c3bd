"""What recorded requests lose and what was predicted of their tokens: noted beside their rows, told to their streams.

R rows of one eviction   S thought slots   K kept slots   C token scores per slot
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

from torch import Tensor

from leanthink.engine.cache import SlotCache
from leanthink.engine.outputs import Eviction
from leanthink.engine.policy_view import policy_view
from leanthink.engine.running_batch import RunningBatch
from leanthink.engine.sampling import Sampler
from leanthink.policies import Policy, Slots


class Recorder:
    """Looks on when slots are ranked and evicted, and changes nothing that a token depends on.

    Args:
        cache, batch, sampler: of the engine.
        columns: of each policy, the first of its columns among the token scores; the list may grow.
        streamed: ids of the requests whose steps are reported; they may change.
    """

    def __init__(
        self, cache: SlotCache, batch: RunningBatch, sampler: Sampler, columns: Sequence[int], streamed: Container[int]
    ) -> None:
        self.cache, self.batch, self.sampler, self.columns, self.streamed = cache, batch, sampler, columns, streamed
        self._evicted: dict[int, Eviction] = {}  # by id of the streamed requests, in this step
        self._ranked: dict[int, int] = {}  # of those: the last position whose importance was told

    def note(self, rows: list[int], policy: Policy, slots: Slots, kept_RK: Tensor) -> None:
        """Note what the recorded ones of these rows are about to lose, and tell it to those that are streamed."""
        batch = self.batch
        noted = batch.recorded.numpy()[rows].nonzero()[0].tolist()
        if not noted:
            return
        told = [rows[place] for place in noted]
        gone = batch.note_evicted(told, slots.positions[noted].cpu(), kept_RK[noted].cpu())
        news: dict[int, dict[int, tuple[float, ...]]] = {}
        for row, positions_S, scores_SC in self._scored(rows, policy, slots):
            if batch.requests[row].index in self.streamed:
                news[row] = self._importance(batch.requests[row].index, positions_S, scores_SC)
            batch.note_token_scores(row, positions_S, scores_SC)
        for row, positions in zip(told, gone, strict=True):
            if batch.requests[row].index in self.streamed:
                eviction = Eviction(positions=positions, importance=news.get(row, {}))
                self._evicted[batch.requests[row].index] = eviction

    def note_held(self, rows: list[int]) -> None:
        """Note the token scores of the slots that these finished requests hold to the end."""
        for row in rows:
            request = self.batch.requests[row]
            if request.index not in self.batch.token_scores:
                continue
            held = int(self.cache.host_lengths[row] - self.cache.host_pinned[row])
            rows_R, column = self.cache.indices([row]), self.columns[int(self.batch.policy[row])]
            slots = policy_view(self.cache, rows_R, held, self.sampler.seeds, request.policy, first=column)
            for _, positions_S, scores_SC in self._scored([row], request.policy, slots):
                self.batch.note_token_scores(row, positions_S, scores_SC)

    def take(self, request_id: int) -> Eviction | None:
        """What this step's eviction took from a streamed request; None if there was none. Told once."""
        return self._evicted.pop(request_id, None)

    def forget(self, request_id: int) -> None:
        """Drop what is kept of a request."""
        for kept in (self._evicted, self._ranked):
            kept.pop(request_id, None)

    def _importance(self, request_id: int, positions_S: Tensor, scores_SC: Tensor) -> dict[int, tuple[float, ...]]:
        """By position, the scores of those tokens that were not told before."""
        news_S = positions_S > self._ranked.get(request_id, -1)
        positions: list[int] = positions_S[news_S].tolist()
        self._ranked[request_id] = max(positions, default=self._ranked.get(request_id, -1))
        return {at: tuple(scores) for at, scores in zip(positions, scores_SC[news_S].tolist(), strict=True)}

    def _scored(self, rows: list[int], policy: Policy, slots: Slots) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Of the recorded ones of these rows: row, positions [S] of the slots with token scores, these [S, C].

        None yet have those whose followers are still to be written or scored.
        """
        if slots.token_scores is None:
            return
        waiting = policy.offsets[-1] + policy.stride - 1  # at most; fixed, so that no neighbour shows in the record
        facts = (slots.ages.cpu(), slots.positions.cpu(), slots.token_scores.cpu())
        for row, ages_S, positions_S, scores_SC in zip(rows, *facts, strict=True):
            if self.batch.recorded[row]:
                scored_S = ages_S >= waiting
                yield row, positions_S[scored_S], scores_SC[scored_S]
