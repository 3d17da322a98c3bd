"""An eviction: if due, score → select → compact, for rows of one policy and budget together.

Host tensors are indexed as numpy's: a list of rows is an index to torch only once it is a tensor, which takes longer.

N active rows   R rows of one eviction   S thought slots   K kept slots   L layers   H kv heads   X index sets
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from leanthink.engine import attention_sums
from leanthink.engine.eviction_recorder import Recorder
from leanthink.engine.faults import Faults
from leanthink.engine.known_policies import KnownPolicies
from leanthink.engine.policy_view import policy_view
from leanthink.engine.rows import Rows
from leanthink.policies import Policy
from leanthink.policies.budget import select


class Evictor:
    """Evicts from the rows that are due, once in each decoding step.

    Args:
        rows: of the engine.
        known: the engine's policies, and where their token scores lie.
        recorder: is told what is about to go.
        faults: of the engine.

    Attributes:
        evictions: of all requests so far.
    """

    def __init__(self, rows: Rows, known: KnownPolicies, recorder: Recorder, faults: Faults) -> None:
        self.cache, self.batch, self.sampler, self.model_runner = (
            rows.cache,
            rows.batch,
            rows.sampler,
            rows.model_runner,
        )
        self.policies, self.columns = known.policies, known.columns
        self.recorder, self.faults = recorder, faults
        self.evictions = 0

    def accumulate_attention(self) -> None:
        """Add up the attention of the queries of each row that thinks and has as many waiting as can wait."""
        for index, policy in enumerate(self.policies):
            if policy.accumulates:
                rows_R = self.batch.rows_of(index)
                full_R = (self.cache.host_waiting[rows_R] == policy.num_queries) & self.batch.thinks(rows_R)
                if full_R.any():
                    add = partial(attention_sums.add, self.cache, num_queries=policy.num_queries)
                    self.faults.row_by_row(add, rows_R[full_R].tolist())

    def evict(self) -> None:
        """Evict from every row that is due, rows of one policy and budget together."""
        cache, batch, n = self.cache, self.batch, self.cache.active
        groups: dict[object, list[int]] = {}
        for row in batch.due_rows(cache.host_lengths[:n], cache.host_pinned[:n]):
            groups.setdefault((id(batch.requests[row].policy), batch.requests[row].budget), []).append(row)
        for rows in groups.values():
            self.faults.row_by_row(self._evict_due, rows)

    def _evict_due(self, rows: list[int]) -> None:
        """`_evict_group` for those of these rows that are still due: a part of them may be done when another raises."""
        budget = self.batch.requests[rows[0]].budget
        assert budget is not None
        held = (self.cache.host_lengths.numpy()[rows] - self.cache.host_pinned.numpy()[rows]).tolist()
        due = [row for row, thought_slots in zip(rows, held, strict=True) if budget.is_due(thought_slots)]
        if due:
            self._evict_group(due)

    def _evict_group(self, rows: list[int]) -> None:
        """Score → select → compact, for rows of one policy and budget."""
        cache, policy = self.cache, self.batch.requests[rows[0]].policy
        if policy.accumulates and int(cache.host_waiting[rows].max()):
            attention_sums.add(cache, rows, policy.num_queries)
        rows_R, column = cache.indices(rows), self.columns[int(self.batch.policy[rows[0]])]
        num_rows, layers = self._at_a_time(rows, policy)
        for start in range(0, len(rows), num_rows):
            part, part_R = rows[start : start + num_rows], rows_R[start : start + num_rows]
            of_layers = [self._kept(part, part_R, some) for some in layers]
            kept = of_layers[0] if len(of_layers) == 1 else torch.cat(of_layers, dim=1)
            cache.evict(part, kept, policy, first=column, rows_R=part_R)
            self.batch.evictions.numpy()[part] += 1
            self.evictions += len(part)

    def _at_a_time(self, rows: list[int], policy: Policy) -> tuple[int, Sequence[range | None]]:
        """How many of these rows are ranked at one time, and the layers one part after the other; None: all at once."""
        cache, count = self.cache, self._thought_slots(rows)
        if policy.per_head:  # room for the attention of its queries, and for a number for each pair of slots
            per_slot = 2 * count + 4 * cache.shape.head_dim + 3 * cache.shape.group * policy.num_queries
            bytes_of_one = 4 * cache.shape.kv_heads * count * per_slot
            bytes_of_one += attention_sums.pinned_bytes(cache, policy.num_queries) if policy.num_queries else 0
            num_rows, num_layers = attention_sums.at_a_time(cache, bytes_of_one, len(rows))
            return num_rows, attention_sums.layers_in_parts(cache, num_layers)
        if policy.num_sets > 1:  # room for its token scores, and for the sorting of its scores
            per_slot = policy.num_sets * (6 * policy.score_dims + 100)
            return max(1, attention_sums.SCRATCH_BYTES // (count * per_slot)), [None]
        return len(rows), [None]

    def _kept(self, rows: list[int], rows_R: Tensor, layers: range | None) -> Tensor:
        """Score → select, for rows of one policy and budget: of some layers [R, L H, K], of all [R, K] or [R, X, K]."""
        request, column = self.batch.requests[rows[0]], self.columns[int(self.batch.policy[rows[0]])]
        assert request.budget is not None
        count, seeds_N = self._thought_slots(rows), self.sampler.seeds
        slots = policy_view(self.cache, rows_R, count, seeds_N, request.policy, first=column, layers=layers)
        scores = request.policy.score(slots)
        self.model_runner.note_scores(rows_R, scores)
        # Pinned slots and the answer are not among those shown, which lie oldest first.
        kept = select(scores, ages=None, pinned=None, budget=request.budget)
        self.recorder.note(rows, request.policy, slots, kept)
        return kept if layers is None else kept.reshape(len(rows), -1, kept.shape[-1])

    def _thought_slots(self, rows: list[int]) -> int:
        """Thought slots that each of these rows holds, which are due."""
        budget = self.batch.requests[rows[0]].budget
        assert budget is not None
        return budget.max_thought_slots
