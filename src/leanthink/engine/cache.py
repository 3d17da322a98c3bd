"""The bounded KV cache: one tensor of slots, a contiguous allocation of them for each request, eviction in place.

N active rows   R chosen rows   L layers   H kv heads   G query heads per kv head   D head dim   T slots of the cache
X index sets: 1, or one for each layer (L), or for each layer and kv head (L H)
S thought slots, or tokens   K kept slots   C token scores of a slot   F hidden state size
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from leanthink.engine import attention_sums
from leanthink.engine.cache_requirements import CacheRequirements
from leanthink.engine.compaction import evict_slots, move
from leanthink.engine.forward_batch import Batch, DecodeBatch, PrefillBatch, PromptChunk, by_allocation, prefill_batch
from leanthink.engine.integrity import check_cache
from leanthink.engine.layer_kv import LayerKV, layers_of
from leanthink.engine.quantized_kv import KVQuantization
from leanthink.engine.recurrent_states import RecurrentStates
from leanthink.engine.rings import larger_ring
from leanthink.engine.row_assignment import FedPrompt, assign_rows
from leanthink.engine.sliding_windows import SlidingWindows
from leanthink.engine.slot_allocator import Allocation, SlotAllocator
from leanthink.models.kv_shape import KVShape
from leanthink.policies import Policy
from leanthink.utils.constants import constant
from leanthink.utils.device import to_device
from leanthink.utils.errors import UsageError


class SlotCache:
    """Keys, values and bookkeeping of up to `rows` requests at a time, in `slots` slots.

    A request is given an allocation, its prompt is fed into it in one or more pieces, then it takes the next row and
    decodes. Rows [0, active) are in use. The prompt holds the first slots for ever; thought and answer
    follow, oldest first. Lengths follow from what was fed, so the host mirrors them and never waits for the device.

    Args:
        shape: of the model's keys and values.
        slots: of all requests together; their memory is allocated here, once.
        rows: most requests that decode at a time.
        dtype: of keys and values.
        device: where they lie.
        hidden_state_size: numbers of one token's hidden states (see `leanthink.engine.hidden_states`).
        row_slots: None, or the size that all allocations have (see `leanthink.engine.slot_allocator`).
        quantization: how keys and values are held in FP8, a byte each; None: in `dtype`.

    Raises:
        UsageError: the device has no room for the slots.
    """

    def __init__(
        self,
        shape: KVShape,
        *,
        slots: int,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        hidden_state_size: int = 0,
        row_slots: int | None = None,
        quantization: KVQuantization | None = None,
    ) -> None:
        self.shape, self.slots, self.quantization = shape, slots, quantization
        kv_dtype = dtype if quantization is None else torch.uint8  # whoever moves slots moves bytes
        self.allocator = SlotAllocator(slots, fixed_size=row_slots)
        try:
            # Zeros, not empty: attention multiplies what lies behind a row's length by 0, and 0 * nan is nan.
            # One slot more than anyone is given: rows without a request write there.
            sizes = (shape.layers, 2, shape.kv_heads, slots + 1, shape.head_dim)
            self.kv_LPHTD = torch.zeros(sizes, dtype=kv_dtype, device=device)  # P: keys, values
            self.windows = SlidingWindows(shape, rows, dtype, device) if shape.sliding_layers else None
            self.recurrent = RecurrentStates(shape.states, rows, dtype, device) if shape.states else None
        except RuntimeError as error:
            size = (slots * shape.bytes_per_slot(kv_dtype) + (rows + 1) * shape.bytes_per_state(dtype)) / 2**30
            raise UsageError(
                f"{device} has no room for {slots} slots ({size:.1f} GiB of keys and values): "
                "lower slots or max_rows, the budget or max_new_tokens"
            ) from error
        self._layers = layers_of(self.kv_LPHTD, quantization)
        self.requirements = CacheRequirements()
        self.positions = torch.zeros(1, 1, slots + 1, dtype=torch.int64, device=device)
        self.token_scores = torch.zeros(slots + 1, 0, device=device)
        self.hidden_states = torch.zeros(rows + 1, 0, hidden_state_size, dtype=dtype, device=device)
        ring = (rows + 1, shape.layers, shape.kv_heads, shape.group, 0, shape.head_dim)
        self.queries = torch.zeros(ring, dtype=dtype, device=device)
        self.token_ids = torch.zeros(0, dtype=torch.int64, device=device)
        self.accumulated_attention_LHT = torch.zeros(shape.layers, shape.kv_heads, 0, device=device)
        # One column per row, and one that stays free: rows of a CUDA graph without a request read and write there.
        self.table = torch.zeros(8, rows + 1, dtype=torch.int64, device=device)
        self.table[0], self.table[7] = slots, rows
        self.starts, self.lengths, self.prompt_lengths, self.next_positions, self.live = self.table[:5].unbind(0)
        # Slots in front that are never evicted: the prompt's, or none. Position whose query's attention is added next.
        # State index of the row's allocation; the number of rows, which is no request's, where there is none.
        self.pinned, self.added, self.states = self.table[5:].unbind(0)
        self.rows_N = torch.arange(rows + 1, device=device)
        self.allocations: list[Allocation] = []  # by row
        self.host_lengths = torch.zeros(rows, dtype=torch.int64)
        self.host_pinned = torch.zeros(rows, dtype=torch.int64)
        self.host_waiting = torch.zeros(rows, dtype=torch.int64)  # tokens whose queries' attention is not yet added
        self.host_sizes = torch.zeros(rows, dtype=torch.int64)
        self.max_rows, self.steps_ahead = rows, 0  # by how many steps the device is ahead of the host's mirror
        self.forward_batch: Batch | None = None
        self.scaling: float | None = None  # of query-key products, as the model's attention layers name it
        self.sinks: dict[int, Tensor] = {}  # of each layer that has them, [H * G] (see `engine.causal_attention`)

    @property
    def active(self) -> int:
        """Rows in use."""
        return len(self.allocations)

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of the keys and values of one token, all layers together."""
        return self.shape.bytes_per_slot(self.kv_LPHTD.dtype)

    def layer(self, layer: int) -> LayerKV:
        """Keys and values of one layer of `shape.layers`."""
        return self._layers[layer]

    def require(self, requirements: CacheRequirements) -> None:
        """Make room for what a policy requires; what is held stays as it is."""
        old, device = self.requirements, self.starts.device
        self.requirements = old.joined(requirements)
        score_dims, score_dtype = self.requirements.score_dims, self.requirements.score_dtype
        if self.token_scores.shape[1] < score_dims or self.token_scores.dtype != score_dtype:
            # Not by cat, which would need the room of the new ones twice.
            wider = self.token_scores.new_zeros(self.slots + 1, score_dims, dtype=score_dtype)
            wider[:, : old.score_dims] = self.token_scores
            self.token_scores = wider
        if requirements.per_head and not old.per_head:
            sets = (self.shape.layers, self.shape.kv_heads, -1)
            self.positions = self.positions.expand(sets).clone(memory_format=torch.contiguous_format)
        if requirements.token_ids and not old.token_ids:
            self.token_ids = torch.zeros(self.slots + 1, dtype=torch.int64, device=device)
        if requirements.accumulated_attention and not old.accumulated_attention:
            heads = (self.shape.layers, self.shape.kv_heads)
            self.accumulated_attention_LHT = torch.zeros(*heads, self.slots + 1, device=device)
        if requirements.hidden_states > old.hidden_states:
            size = requirements.hidden_states
            self.hidden_states = larger_ring(self.hidden_states, size, 1, self.next_positions)
        if requirements.queries > old.queries:
            self.queries = larger_ring(self.queries, requirements.queries, 4, self.next_positions)

    # -- prompts ---------------------------------------------------------------------------------------------------

    def start_prefill(self, chunks: Sequence[PromptChunk], *, packed: bool = False) -> Tensor:
        """Announce a forward over these chunks of prompts, as one sequence; returns its positions [1, tokens].

        `packed`: with what one kernel for all of them has to know, on a GPU.
        """
        assert self.forward_batch is None
        assert all(0 < chunk.done + chunk.tokens <= chunk.allocation.size for chunk in chunks)
        windows = () if self.windows is None else self.windows.chunks(chunks)
        self.forward_batch = prefill_batch(chunks, self.queries, self.shape.group if packed else None, windows)
        return self.forward_batch.positions_S[None]

    def copy_prompt(self, source: Allocation, target: Allocation, tokens: int) -> None:
        """The first `tokens` slots of an allocation get the keys and values of another's: both prompts begin alike."""
        from_T, to_T = (slice(allocation.start, allocation.start + tokens) for allocation in (source, target))
        self.kv_LPHTD[:, :, :, to_T] = self.kv_LPHTD[:, :, :, from_T]

    def assign_row(
        self, allocation: Allocation, prompt: int, *, pinned: bool = True, token_ids: Sequence[int] = ()
    ) -> int:
        """The next row decodes on this allocation of a prompt of so many tokens, see `assign_rows`; returns the row."""
        assign_rows(self, [FedPrompt(allocation, prompt, pinned, token_ids)])
        return self.active - 1

    # -- decoding --------------------------------------------------------------------------------------------------

    def start_step(self, rows: int | None = None) -> Tensor:
        """Announce a forward over one token of every active row; returns their positions [N, 1].

        Chunks of prompts that are announced already are fed with them: their positions come first. With `rows`, of that
        many rows, whether active or not, by work on the device alone: for a CUDA graph.
        """
        n, prompts = self.active if rows is None else rows, self.forward_batch
        assert prompts is None or isinstance(prompts, PrefillBatch)
        starts_N, lengths_N, _, next_N, live_N = self.table[:5, :n].unbind(0)
        longest = 0
        if rows is None:
            longest = int(self.host_lengths[:n].max()) + 1
            assert bool((self.host_lengths[:n] < self.host_sizes[:n]).all()), "a row outgrew its allocation"
        fixed: dict[str, Any] = {}
        if self.allocator.fixed_size and not starts_N.is_cuda:
            held = (self.starts[: self.active] // self.allocator.fixed_size, self.lengths[: self.active])
            fixed = by_allocation(*held, len(self.allocator.allocations), longest=longest, dtype=self.queries.dtype)
        batch = DecodeBatch(
            starts_N=starts_N,
            last_N=lengths_N.clone(),
            write_N=torch.where(live_N > 0, starts_N + lengths_N, self.slots),
            live_N=live_N,
            states_N=None if self.shape.only_slots else torch.where(live_N > 0, self.states[:n], self.max_rows),
            longest=longest,
            largest=self.allocator.largest_so_far,
            **fixed,
        )
        if self.windows is not None:
            batch = self.windows.announced(batch, self.states[:n], next_N, packed=bool(fixed))
        self.forward_batch = batch if prompts is None else prompts.beside(batch)
        positions = next_N.clone() if prompts is None else torch.cat([prompts.positions_S, next_N])
        return positions[:, None]

    def write(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store what a layer computed: keys and values [rows, H, tokens, D], queries [rows, H*G, tokens, D]."""
        batch = self.forward_batch
        assert batch is not None, "announce the forward first: start_prefill or start_step"
        decodes = isinstance(batch, DecodeBatch)
        each = [of_all[:, :, 0] if decodes else of_all[0].transpose(0, 1) for of_all in (queries, keys, values)]
        self.append(layer, batch, *each[1:])
        self.note_queries(layer, batch, each[0])

    def append(self, layer: int, batch: Batch, keys_NHD: Tensor, values_NHD: Tensor) -> None:
        """Write each token of the forward."""
        self.layer(layer).append(batch, keys_NHD, values_NHD)

    def _rows(self, batch: DecodeBatch) -> Tensor:
        """Row numbers, [N]; the free one for rows without a request."""
        return torch.where(batch.live_N > 0, self.rows_N[: len(batch.live_N)], self.max_rows)

    def note_token_ids(self, ids_N: Tensor) -> None:
        """Keep the tokens that the announced forward feeds to the rows."""
        assert not isinstance(self.forward_batch, PrefillBatch | None)
        self.token_ids[self.forward_batch.write_N[-len(ids_N) :]] = ids_N

    def note_queries(self, layer: int, batch: Batch, queries_NAD: Tensor) -> None:
        """Keep the queries of one token of every row, A = H*G heads, in a ring for each row, if any are required.

        Of chunks, whose keys are written, add up the attention instead, if that is required.
        """
        if isinstance(batch, PrefillBatch):
            if self.requirements.prompt_attention:
                attention_sums.add_prompts(self, layer, batch, queries_NAD)
        elif not isinstance(batch, DecodeBatch):
            for part, fed in batch.parts:
                self.note_queries(layer, part, queries_NAD[fed])
        elif self.requirements.queries:
            at_N = self.next_positions[: len(queries_NAD)] % self.requirements.queries
            packed_NHGD = queries_NAD.reshape(-1, self.shape.kv_heads, self.shape.group, self.shape.head_dim)
            self.queries[:, layer][self._rows(batch), :, :, at_N] = packed_NHGD

    @contextmanager
    def accounted(self) -> Iterator[None]:
        """The announced forward runs inside: accounted for when it succeeds, called off when it fails."""
        try:
            yield
        except BaseException:
            self.forward_batch = None
            raise
        self.finish()

    def finish(self) -> None:
        """Account on the device for the tokens that the announced forward wrote."""
        batch, self.forward_batch = self.forward_batch, None
        rows = batch if isinstance(batch, PrefillBatch | DecodeBatch | None) else batch.rows
        if isinstance(rows, DecodeBatch):
            n = len(rows.live_N)
            self.positions[:, :, rows.write_N] = self.next_positions[:n]
            if self.requirements.accumulated_attention:
                # Of the slot's former token; assigning 0.0 would copy it from the host, and a graph cannot.
                self.accumulated_attention_LHT.index_fill_(2, rows.write_N, 0.0)
            self.lengths[:n] += rows.live_N
            self.next_positions[:n] += rows.live_N
            self.row_N = self._rows(rows)

    def advance(self) -> None:
        """Account on the host for a step of all active rows."""
        self.host_lengths[: self.active] += 1
        self.host_waiting[: self.active] += 1
        if self.recurrent is not None:
            self.recurrent.settle()

    def rewind(self, next_positions: Sequence[int]) -> None:
        """Forget a step that the host has not accounted for; `next_positions` are those of the active rows before it.

        What it wrote lies behind each row's slots, where the next step writes.
        """
        n, self.forward_batch = self.active, None
        self.lengths[:n] = self.host_lengths[:n].to(self.lengths.device)
        self.next_positions[:n] = torch.tensor(next_positions, device=self.lengths.device)
        self.live[:n] = 1
        if self.recurrent is not None:
            self.recurrent.rewind()

    def store_token_scores(self, rows_R: Tensor, scores_RSC: Tensor, *, first: int = 0, late: int = 0) -> None:
        """Attach scores, from column `first` on, to S tokens of each row, up to the one `late` before its last.

        Oldest first. They must be the youngest in the row's slots, or else be gone. Where the thought is still shorter,
        slots of the prompt get them, which nobody ranks.
        """
        back_S = constant(tuple(range(-late - scores_RSC.shape[1], -late)), rows_R.device)
        index_RS = self.lengths[rows_R][:, None] + back_S
        there_RS = (self.live[rows_R][:, None] > 0) & (index_RS >= 0)
        slots_RS = torch.where(there_RS, self.starts[rows_R][:, None] + index_RS, self.slots)
        columns = slice(first, first + scores_RSC.shape[-1])
        self.token_scores[slots_RS, columns] = scores_RSC.to(self.token_scores.dtype)

    def token_scores_of(self, policy: Policy, first: int) -> Tensor:
        """A view of the token scores of a policy, for each of its index sets, [T + 1, X, C]."""
        X, C = policy.num_sets, policy.score_dims
        return self.token_scores[:, first : first + X * C].view(self.slots + 1, X, C)

    # -- evicting --------------------------------------------------------------------------------------------------

    def indices(self, rows: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        """These numbers, such as rows, on the device, without waiting for it."""
        return to_device(torch.tensor(rows, dtype=torch.int64), self.starts.device)

    def evict(
        self,
        rows: Sequence[int],
        kept: Tensor,
        policy: Policy | None = None,
        *,
        first: int = 0,
        rows_R: Tensor | None = None,
    ) -> None:
        """Keep only these thought slots of each row, moved together behind the prompt in their old order.

        Args:
            rows: rows that hold prompt and thought, and no answer yet.
            kept: ascending indices, 0 = the slot behind the prompt: [R, K] for all layers and heads, or [R, X, K].
            policy: who ranked; its token scores for each of X sets are moved with that set's slots. None: none are,
                unless there is one set, with which everybody's token scores are moved.
            first: the first of its columns among the token scores.
            rows_R: the same rows on the device, if they are there already.
        """
        evict_slots(self, self.indices(rows) if rows_R is None else rows_R, kept, policy, first)
        self.host_lengths.numpy()[rows] = self.host_pinned.numpy()[rows] + kept.shape[-1]

    # -- leaving ---------------------------------------------------------------------------------------------------

    def scrub(self, allocation: Allocation, slots: int | None = None) -> None:
        """Zero the first so many slots of an allocation, None for all, and what is kept of its row's tokens.

        For those that a NaN may lie in: attention multiplies what lies behind a row's length by 0, which it survives.
        """
        allocation.intact = False
        self._zero(allocation, slice(allocation.start, allocation.end if slots is None else allocation.start + slots))

    def scrub_ahead(self, rows: Sequence[int]) -> None:
        """Zero what a step that is launched ahead has written of these rows, which have ended: it may be NaN, too."""
        for row in rows if self.steps_ahead and self.allocator.fixed_size else ():
            allocation = self.allocations[row]
            fed = allocation.start + int(self.host_lengths[row])
            self._zero(allocation, slice(fed, fed + self.steps_ahead))

    def _zero(self, allocation: Allocation, slots_T: slice) -> None:
        """These of its slots, and what is kept of its row's tokens."""
        self.kv_LPHTD[:, :, :, slots_T] = 0
        self.token_scores[slots_T] = 0
        if self.windows is not None:
            self.windows.scrub(allocation.state_index)
        if allocation.row is not None:
            self.hidden_states[allocation.row] = 0

    def free(self, allocation: Allocation) -> None:
        """Give an allocation back; of those of fixed size another may move into its place, with all that it holds."""
        if (moved := self.allocator.free(allocation)) is None:
            return
        other, was = moved
        to_T, from_T = slice(other.start, other.end), slice(was, was + other.size)
        move(self, from_T, to_T)
        if other.row is not None:
            self.starts[other.row] = other.start

    def free_rows(self, rows: Sequence[int]) -> tuple[list[int], list[int]]:
        """Give up these rows; the last active rows take their numbers. Returns (sources, targets) of the moves."""
        gone, left = set(rows), self.active - len(set(rows))
        sources = [row for row in range(left, self.active) if row not in gone]
        targets = sorted(row for row in gone if row < left)
        for row in gone:
            self.allocations[row].row = None
            self.free(self.allocations[row])
        if sources:
            source, target = self.indices(sources), self.indices(targets)
            self.table[:, target] = self.table[:, source]
            for ring in (self.hidden_states, self.queries):
                ring[target] = ring[source]
        for counter in (self.host_lengths, self.host_pinned, self.host_waiting, self.host_sizes):
            counter[targets] = counter[sources]
        for old, new in zip(sources, targets, strict=True):
            self.allocations[new] = self.allocations[old]
            self.allocations[new].row = new
        self.table[:, left : self.active] = self.table[:, -1:]
        del self.allocations[left:]
        return sources, targets

    def check_integrity(self) -> None:
        """Raise AssertionError unless every row has its slots, its prompt, its order and its length on both sides."""
        check_cache(self)
