"""The bounded KV cache: one arena of slots, a region of it for each request, eviction in place.

N active rows   R chosen rows   L layers   H kv heads   G query heads per kv head   D head dim   T slots of the arena
X index sets: 1, or one for each layer (L), or for each layer and kv head (L H)
S thought slots   K kept slots   M = R K   W remembered queries   C stamped numbers per slot   F state size   O offsets
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from leanthink.engine import attention_sums
from leanthink.engine.cache_requirements import Wishes
from leanthink.engine.forward_batch import Decode, Prefill, Segment
from leanthink.engine.slot_allocator import Arena, Region
from leanthink.models.kv_shape import KVShape
from leanthink.policies import Policy, Slots
from leanthink.utils.constants import constant
from leanthink.utils.errors import UsageError


class SlotCache:
    """Keys, values and bookkeeping of up to `rows` requests at a time, on an arena of `slots` slots.

    A request reserves a region, its prompt is fed into it in one or more pieces, then it takes the next row and
    decodes. Rows [0, active) are in use. The prompt holds the first slots of the region for ever; thought and answer
    follow, oldest first. Lengths follow from what was fed, so the host mirrors them and never waits for the device.

    Args:
        shape: of the model's keys and values.
        slots: of the arena.
        rows: most requests that decode at a time.
        dtype: of the arena, which is allocated here, once.
        device: where it lies.
        state_size: numbers of one token's states (see `leanthink.engine.hidden_states`).
        row_slots: None, or the size that all regions have (see `leanthink.engine.slot_allocator`).

    Raises:
        UsageError: the device has no room for the arena.
    """

    def __init__(
        self,
        shape: KVShape,
        *,
        slots: int,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        state_size: int = 0,
        row_slots: int | None = None,
    ) -> None:
        self.shape, self.slots = shape, slots
        self.arena = Arena(slots, equal=row_slots)
        try:
            # Zeros, not empty: attention multiplies what lies behind a row's length by 0, and 0 * nan is nan.
            # One slot more than anyone is given: rows without a request write there.
            arena = (shape.layers, 2, shape.kv_heads, slots + 1, shape.head_dim)
            self.kv_LPHTD = torch.zeros(arena, dtype=dtype, device=device)  # P: keys, values
        except RuntimeError as error:
            size = slots * shape.bytes_per_slot(dtype) / 2**30
            raise UsageError(
                f"{device} has no room for {slots} slots ({size:.1f} GiB of keys and values): "
                "lower slots or max_rows, the budget or max_new_tokens"
            ) from error
        self.wishes = Wishes()
        self.positions = torch.zeros(1, 1, slots + 1, dtype=torch.int64, device=device)
        self.stamps = torch.zeros(slots + 1, 0, device=device)
        self.states = torch.zeros(rows + 1, 0, state_size, dtype=dtype, device=device)
        ring = (rows + 1, shape.layers, shape.kv_heads, shape.group, 0, shape.head_dim)
        self.queries = torch.zeros(ring, dtype=dtype, device=device)
        self.token_ids = torch.zeros(0, dtype=torch.int64, device=device)
        self.attended_LHT = torch.zeros(shape.layers, shape.kv_heads, 0, device=device)
        # One column per row, and one that stays free: rows of a CUDA graph without a request read and write there.
        self.table = torch.zeros(7, rows + 1, dtype=torch.int64, device=device)
        self.table[0] = slots
        self.starts, self.lengths, self.prompt_lengths, self.next_positions, self.live = self.table[:5].unbind(0)
        # Slots in front that are never evicted: the prompt's, or none. Position whose query's attention is added next.
        self.pinned, self.added = self.table[5:].unbind(0)
        self.rows_N = torch.arange(rows + 1, device=device)
        self.regions: list[Region] = []  # by row
        self.host_lengths = torch.zeros(rows, dtype=torch.int64)
        self.host_pinned = torch.zeros(rows, dtype=torch.int64)
        self.host_waiting = torch.zeros(rows, dtype=torch.int64)  # tokens whose queries' attention is not yet added
        self.host_sizes = torch.zeros(rows, dtype=torch.int64)
        self.most_rows = rows
        self.feed: Prefill | Decode | None = None
        self.scaling: float | None = None  # of query-key products, as the model's attention layers name it

    @property
    def active(self) -> int:
        """Rows in use."""
        return len(self.regions)

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of the keys and values of one token, all layers together."""
        return self.shape.bytes_per_slot(self.kv_LPHTD.dtype)

    def keys(self, layer: int) -> Tensor:
        """Keys of one layer, [H, T + 1, D]."""
        keys_HTD: Tensor = self.kv_LPHTD[layer, 0]
        return keys_HTD

    def values(self, layer: int) -> Tensor:
        """Values of one layer, [H, T + 1, D]."""
        values_HTD: Tensor = self.kv_LPHTD[layer, 1]
        return values_HTD

    def provide(self, wishes: Wishes) -> None:
        """Make room for what a policy wants to be shown; what is held stays as it is."""
        old, device = self.wishes, self.starts.device
        self.wishes = old.joined(wishes)
        if self.stamps.shape[1] < self.wishes.channels or self.stamps.dtype != self.wishes.stamp_dtype:
            # Not by cat, which would need the room of the new ones twice.
            wider = self.stamps.new_zeros(self.slots + 1, self.wishes.channels, dtype=self.wishes.stamp_dtype)
            wider[:, : old.channels] = self.stamps
            self.stamps = wider
        if wishes.per_head and not old.per_head:
            sets = (self.shape.layers, self.shape.kv_heads, -1)
            self.positions = self.positions.expand(sets).clone(memory_format=torch.contiguous_format)
        if wishes.token_ids and not old.token_ids:
            self.token_ids = torch.zeros(self.slots + 1, dtype=torch.int64, device=device)
        if wishes.attention and not old.attention:
            self.attended_LHT = torch.zeros(self.shape.layers, self.shape.kv_heads, self.slots + 1, device=device)
        if wishes.states > old.states:
            self.states = _larger_ring(self.states, wishes.states, 1, self.next_positions)
        if wishes.queries > old.queries:
            self.queries = _larger_ring(self.queries, wishes.queries, 4, self.next_positions)

    # -- prompts ---------------------------------------------------------------------------------------------------

    def start_prefill(self, segments: Sequence[Segment]) -> Tensor:
        """Announce a forward over these pieces of prompts, as one sequence; returns its positions [1, tokens]."""
        assert self.feed is None
        assert all(0 < piece.done + piece.tokens <= piece.region.size for piece in segments)
        self.feed = Prefill(segments=tuple(segments))
        pieces = [torch.arange(piece.done, piece.done + piece.tokens) for piece in segments]
        return torch.cat(pieces)[None].to(self.starts.device)

    def copy_prompt(self, source: Region, target: Region, tokens: int) -> None:
        """The first `tokens` slots of a region get the keys and values of another's: both prompts begin alike."""
        from_T, to_T = (slice(region.start, region.start + tokens) for region in (source, target))
        self.kv_LPHTD[:, :, :, to_T] = self.kv_LPHTD[:, :, :, from_T]

    def seat(self, region: Region, prompt: int, *, pinned: bool = True, token_ids: Sequence[int] = ()) -> int:
        """The next row decodes on this region, which holds all but the last of its `prompt` tokens; returns the row.

        The last prompt token is fed with the decoding steps, so that all logits come out of these. A prompt that is
        not pinned counts as thought. `token_ids` are the prompt's, where they are remembered.
        """
        row, start, device = self.active, region.start, self.starts.device
        assert row < self.most_rows
        region.row = row
        self.regions.append(region)
        fixed = prompt if pinned else 0
        self.host_lengths[row], self.host_pinned[row], self.host_sizes[row] = prompt - 1, fixed, region.size
        self.host_waiting[row] = 0
        facts = [start, prompt - 1, prompt, prompt - 1, 1, fixed, prompt - 1]
        self.table[:, row] = torch.tensor(facts, device=device)
        self.positions[:, :, start : start + prompt] = torch.arange(prompt, device=device)
        if self.wishes.token_ids:
            self.token_ids[start : start + len(token_ids)] = torch.tensor(token_ids, dtype=torch.int64, device=device)
        self.queries[row] = 0  # of the row's former owner; the prompt's own are not kept
        return row

    # -- decoding --------------------------------------------------------------------------------------------------

    def start_step(self, rows: int | None = None) -> Tensor:
        """Announce a forward over one token of every active row; returns their positions [N, 1].

        With `rows`, of that many rows, whether active or not, by work on the device alone: for a CUDA graph.
        """
        n = self.active if rows is None else rows
        assert self.feed is None
        starts_N, lengths_N, _, next_N, live_N = self.table[:5, :n].unbind(0)
        longest = 0
        if rows is None:
            longest = int(self.host_lengths[:n].max()) + 1
            assert bool((self.host_lengths[:n] < self.host_sizes[:n]).all()), "a row outgrew its region"
        self.feed = Decode(
            starts_N=starts_N,
            last_N=lengths_N.clone(),
            write_N=torch.where(live_N > 0, starts_N + lengths_N, self.slots),
            live_N=live_N,
            longest=longest,
            **(self._by_region(longest) if self.arena.equal and not starts_N.is_cuda else {}),
        )
        return next_N[:, None].clone()

    def _by_region(self, longest: int) -> dict[str, Tensor | None]:
        """What one attention call over all regions in use needs; a region without a row shows its first slot."""
        assert self.arena.equal is not None
        region_N = self.starts[: self.active] // self.arena.equal
        in_order = self.active == len(self.arena.regions) and torch.equal(region_N, self.rows_N[: self.active])
        last_U = torch.zeros(len(self.arena.regions), dtype=torch.int64)
        last_U[region_N] = self.lengths[: self.active]
        behind_UT = torch.arange(longest) > last_U[:, None]
        bias_UT = torch.zeros(behind_UT.shape, dtype=self.kv_LPHTD.dtype).masked_fill(behind_UT, -torch.inf)
        return {"bias_U11T": bias_UT[:, None, None], "region_N": None if in_order else region_N}

    def write(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store what a layer computed: keys and values [rows, H, tokens, D], queries [rows, H*G, tokens, D]."""
        feed = self.feed
        assert feed is not None, "announce the forward first: start_prefill or start_step"
        if isinstance(feed, Decode):
            self.append(layer, feed, keys[:, :, 0], values[:, :, 0])
            self.keep_queries(layer, feed, queries[:, :, 0])
            return
        first = 0
        for piece in feed.segments:
            fed = slice(first, first + piece.tokens)
            held = slice(piece.region.start + piece.done, piece.region.start + piece.done + piece.tokens)
            self.keys(layer)[:, held] = keys[0, :, fed]
            self.values(layer)[:, held] = values[0, :, fed]
            if self.wishes.prompt_attention:
                attention_sums.add_prompt(self, layer, piece, queries[0, :, fed])
            first += piece.tokens

    def append(self, layer: int, feed: Decode, keys_NHD: Tensor, values_NHD: Tensor) -> None:
        """Write one token of every row."""
        if keys_NHD.is_cuda:
            from leanthink.engine.kernels.append import append

            append(self.keys(layer), self.values(layer), feed.write_N, keys_NHD, values_NHD)
            return
        self.keys(layer)[:, feed.write_N] = keys_NHD.transpose(0, 1)
        self.values(layer)[:, feed.write_N] = values_NHD.transpose(0, 1)

    def _rows(self, feed: Decode) -> Tensor:
        """Row numbers, [N]; the free one for rows without a request."""
        return torch.where(feed.live_N > 0, self.rows_N[: len(feed.live_N)], self.most_rows)

    def note_token_ids(self, ids_N: Tensor) -> None:
        """Remember the tokens that the announced forward feeds."""
        assert isinstance(self.feed, Decode)
        self.token_ids[self.feed.write_N] = ids_N

    def keep_queries(self, layer: int, feed: Decode, queries_NAD: Tensor) -> None:
        """Keep the queries of one token of every row, A = H*G heads, in a ring for each row, if anybody wants them."""
        if self.wishes.queries:
            at_N = self.next_positions[: len(queries_NAD)] % self.wishes.queries
            packed_NHGD = queries_NAD.reshape(-1, self.shape.kv_heads, self.shape.group, self.shape.head_dim)
            self.queries[:, layer][self._rows(feed), :, :, at_N] = packed_NHGD

    @contextmanager
    def accounted(self) -> Iterator[None]:
        """The announced forward runs inside: accounted for when it succeeds, called off when it fails."""
        try:
            yield
        except BaseException:
            self.feed = None
            raise
        self.finish()

    def finish(self) -> None:
        """Account on the device for the tokens that the announced forward wrote."""
        feed, self.feed = self.feed, None
        if isinstance(feed, Decode):
            n = len(feed.live_N)
            self.positions[:, :, feed.write_N] = self.next_positions[:n]
            if self.wishes.attention:
                # Of the slot's former token; assigning 0.0 would copy it from the host, and a graph cannot.
                self.attended_LHT.index_fill_(2, feed.write_N, 0.0)
            self.lengths[:n] += feed.live_N
            self.next_positions[:n] += feed.live_N
            self.row_N = self._rows(feed)

    def tick(self) -> None:
        """Account on the host for a step of all active rows."""
        self.host_lengths[: self.active] += 1
        self.host_waiting[: self.active] += 1

    def rewind(self, next_positions: Sequence[int]) -> None:
        """Forget a step that the host has not accounted for; `next_positions` are those of the active rows before it.

        What it wrote lies behind each row's slots, where the next step writes.
        """
        n, self.feed = self.active, None
        self.lengths[:n] = self.host_lengths[:n].to(self.lengths.device)
        self.next_positions[:n] = torch.tensor(next_positions, device=self.lengths.device)
        self.live[:n] = 1

    def remember(self, states_NF: Tensor) -> None:
        """Keep the states of the tokens just fed, in a ring for each row: position p at p modulo its size."""
        at_N = (self.next_positions[: len(states_NF)] - 1) % self.wishes.states
        self.states[self.row_N, at_N] = states_NF

    def recall(self, rows_R: Tensor, offsets: tuple[int, ...], count: int = 1) -> Tensor:
        """What of S = `count` tokens of each row was remembered, [R, S, O, F]: the states of the tokens at `offsets`.

        The first token is the one `offsets[-1]` before the row's last, each further one is a token older. Before so
        many thought tokens are written they are another token's; that token is of the prompt, or gone.
        """
        size, late = self.wishes.states, offsets[-1]
        assert late + count <= size
        token_RS = self.next_positions[rows_R][:, None] - 1 - late - self._ages(count)
        at_RSO = (token_RS[..., None] + constant(offsets, rows_R.device)) % size
        # By one index: whole states are copied, where two would be looked up for each of their numbers.
        at_M = (rows_R[:, None, None] * size + at_RSO).flatten()
        return self.states.flatten(0, 1).index_select(0, at_M).view(*at_RSO.shape, self.states.shape[2])

    def stamp(self, rows_R: Tensor, stamps_RSC: Tensor, *, first: int = 0, late: int = 0) -> None:
        """Attach numbers, from channel `first` on, to S tokens of each row: the one `late` before its last, and older.

        They must be the youngest in the row's slots, or else be gone. Where the thought is still shorter, slots of the
        prompt are stamped, which nobody ranks.
        """
        back_RS = self.lengths[rows_R][:, None] - 1 - late - self._ages(stamps_RSC.shape[1])
        there_RS = (self.live[rows_R][:, None] > 0) & (back_RS >= 0)
        slots_RS = torch.where(there_RS, self.starts[rows_R][:, None] + back_RS, self.slots)
        self.stamps[slots_RS, first : first + stamps_RSC.shape[-1]] = stamps_RSC.to(self.stamps.dtype)

    def _ages(self, count: int) -> Tensor:
        return constant(tuple(range(count)), self.starts.device)

    # -- evicting --------------------------------------------------------------------------------------------------

    def indices(self, rows: Sequence[int]) -> Tensor:
        """These rows as an index on the device, copied from pinned memory: any other copy would wait for its work."""
        rows_R = torch.tensor(rows)
        on_gpu = self.starts.is_cuda
        return rows_R.pin_memory().to(self.starts.device, non_blocking=True) if on_gpu else rows_R

    def show(
        self,
        rows_R: Tensor,
        count: int,
        seeds_R: Tensor,
        policy: Policy,
        *,
        first: int = 0,
        layers: range | None = None,
    ) -> Slots:
        """The `count` thought slots of each of these rows, as the policy sees them.

        Args:
            rows_R: rows that hold prompt and thought, and no answer yet.
            count: thought slots of each.
            seeds_R: the seeds of their requests.
            policy: who looks.
            first: the first of its channels among the stamps.
            layers: which of them, for a policy per head: each of them of each row is then a row of its own, those of
                one row next to each other.
        """
        if layers is not None:
            return self._show_layers(rows_R, count, seeds_R, policy, layers)
        slots_RS = self._thought_slots(rows_R, count)
        next_R = self.next_positions[rows_R]
        facts: dict[str, Any] = {
            "next_position": next_R,
            "prompt_tokens": self.prompt_lengths[rows_R],
            "seeds": seeds_R,
        }
        if policy.num_sets > 1:
            positions_RXS = self._positions_of(policy.num_sets)[:, slots_RS].transpose(0, 1)
            if policy.channels:
                facts["stamps"] = self._stamps_of(policy, first)[slots_RS].transpose(1, 2).float()
            return Slots(ages=next_R[:, None, None] - 1 - positions_RXS, positions=positions_RXS, **facts)
        positions_RS = self.positions[0, 0, slots_RS]
        if policy.channels:
            facts["stamps"] = self.stamps[slots_RS, first : first + policy.channels].float()
        if policy.texts:
            facts["token_ids"] = self.token_ids[slots_RS]
        return Slots(ages=next_R[:, None] - 1 - positions_RS, positions=positions_RS, **facts)

    def _show_layers(self, rows_R: Tensor, count: int, seeds_R: Tensor, policy: Policy, layers: range) -> Slots:
        """The slots of some layers as a policy per head sees them: M rows, one for each layer of each row."""
        slots_RS, H = self._thought_slots(rows_R, count), self.shape.kv_heads
        positions_MHS = self.held_positions(layers, slots_RS).flatten(0, 1)
        next_M = _for_each(layers, self.next_positions[rows_R])
        facts: dict[str, Any] = {}
        if policy.num_queries:
            queries_RLHGWD = self.latest_queries(layers, rows_R, policy.num_queries)
            facts["queries"] = queries_RLHGWD.flatten(0, 1)
            facts["pinned_log_sums"] = attention_sums.pinned_log_sums(self, layers, rows_R, queries_RLHGWD).flatten(
                0, 1
            )
        if policy.accumulates:
            facts["attended"] = _gather(self.attended_LHT, layers, range(H), slots_RS).flatten(0, 1)
        return Slots(
            ages=next_M[:, None, None] - 1 - positions_MHS,
            positions=positions_MHS,
            next_position=next_M,
            prompt_tokens=_for_each(layers, self.prompt_lengths[rows_R]),
            seeds=_for_each(layers, seeds_R),
            layer=_numbers(layers, rows_R.device).expand(len(rows_R), -1).flatten(),
            keys=self.held_keys(layers, slots_RS).flatten(0, 1),
            values=_gather(self.kv_LPHTD.flatten(1, 2), layers, range(H, 2 * H), slots_RS).flatten(0, 1),
            scaling=self.scaling,
            **facts,
        )

    def held_positions(self, layers: range, slots_RS: Tensor) -> Tensor:
        """Positions of what the heads of these layers hold in these slots, [R, L, H, S]."""
        return _gather(self.positions, layers, range(self.shape.kv_heads), slots_RS)

    def held_keys(self, layers: range, slots_RS: Tensor) -> Tensor:
        """Keys that the heads of these layers hold in these slots, [R, L, H, S, D]."""
        return _gather(self.kv_LPHTD.flatten(1, 2), layers, range(self.shape.kv_heads), slots_RS)

    def _positions_of(self, num_sets: int) -> Tensor:
        """Positions of the tokens that each index set holds, [X, T + 1]."""
        if num_sets == self.shape.layers:
            return self.positions[:, 0]
        assert num_sets == self.shape.layers * self.shape.kv_heads
        return self.positions.flatten(0, 1)

    def _stamps_of(self, policy: Policy, first: int) -> Tensor:
        """A view of what was stamped for each index set of a policy, [T + 1, X, C]."""
        X, C = policy.num_sets, policy.channels
        return self.stamps[:, first : first + X * C].view(self.slots + 1, X, C)

    def _thought_slots(self, rows_R: Tensor, count: int) -> Tensor:
        """Slots [R, count] of the arena that follow each row's pinned ones."""
        first_R = self.starts[rows_R] + self.pinned[rows_R]
        return first_R[:, None] + torch.arange(count, device=first_R.device)

    def latest_queries(self, layers: range, rows_R: Tensor, count: int) -> Tensor:
        """The last W = `count` queries of each row, oldest first, [R, L, H, G, W, D]; zeros for the prompt's tokens."""
        age = torch.arange(count, 0, -1, device=self.lengths.device)
        ring_RW = (self.next_positions[rows_R, None] - age) % self.wishes.queries
        _, L, H, G, _, D = self.queries.shape
        layer_RL = rows_R[:, None] * L + _numbers(layers, rows_R.device)
        head_RLA = layer_RL[..., None] * (H * G) + torch.arange(H * G, device=rows_R.device)
        at_RLAW = head_RLA[..., None] * self.wishes.queries + ring_RW[:, None, None]
        return _select(self.queries.view(-1, D), at_RLAW).view(*layer_RL.shape, H, G, count, D)

    def evict(self, rows: Sequence[int], kept: Tensor, policy: Policy | None = None, *, first: int = 0) -> None:
        """Keep only these thought slots of each row, moved together behind the prompt in their old order.

        Args:
            rows: rows that hold prompt and thought, and no answer yet.
            kept: ascending indices, 0 = the slot behind the prompt: [R, K] for all layers and heads, or [R, X, K].
            policy: who ranked; what it stamped for each of X sets is moved with that set's slots. None: nothing is,
                unless there is one set, with which everybody's stamps are moved.
            first: the first of its channels among the stamps.
        """
        rows_R, K = self.indices(rows), kept.shape[-1]
        first_R = self.starts[rows_R] + self.pinned[rows_R]
        if kept.dim() == 3:
            kept = kept.view(len(rows), self.shape.layers, -1, K)  # a set for each layer, or for each of its heads
        if policy is not None or kept.dim() == 2:
            stamps_TXC = self.stamps[:, None] if policy is None else self._stamps_of(policy, first)
            if stamps_TXC.shape[2]:
                sets = kept.shape[1:3] if kept.dim() == 4 else (1, 1)
                stamps_TLHC = stamps_TXC.view(self.slots + 1, *sets, -1)
                _compact(stamps_TLHC.permute(1, 2, 0, 3)[:, None], first_R, kept)
        if kept.dim() == 4:
            kept = kept.expand(-1, -1, self.shape.kv_heads, -1)
        facts = [self.kv_LPHTD, self.positions[:, None, :, :, None]]
        if self.wishes.attention:
            facts.append(self.attended_LHT[:, None, :, :, None])
        if self.wishes.token_ids and kept.dim() == 2:
            facts.append(self.token_ids[None, None, None, :, None])
        for facts_LPHTD in facts:
            _compact(facts_LPHTD, first_R, kept)
        self.lengths[rows_R] = self.pinned[rows_R] + K
        self.host_lengths[rows] = self.host_pinned[rows] + K

    # -- leaving ---------------------------------------------------------------------------------------------------

    def scrub(self, region: Region, slots: int | None = None) -> None:
        """Zero the first so many slots of a region, None for all, and what is remembered of its row's tokens.

        For those that a NaN may lie in: attention multiplies what lies behind a row's length by 0, which it survives.
        """
        scrubbed = slice(region.start, region.end if slots is None else region.start + slots)
        self.kv_LPHTD[:, :, :, scrubbed] = 0
        self.stamps[scrubbed] = 0
        if region.row is not None:
            self.states[region.row] = 0

    def release(self, region: Region) -> None:
        """Give a region back; with equal regions another may move into its place, with all that it holds."""
        moved = self.arena.release(region)
        if moved is None:
            return
        other, was = moved
        to_T, from_T = slice(other.start, other.end), slice(was, was + other.size)
        self.kv_LPHTD[:, :, :, to_T] = self.kv_LPHTD[:, :, :, from_T]
        self.positions[:, :, to_T] = self.positions[:, :, from_T]
        self.stamps[to_T] = self.stamps[from_T]
        if self.wishes.token_ids:
            self.token_ids[to_T] = self.token_ids[from_T]
        if self.wishes.attention:
            self.attended_LHT[:, :, to_T] = self.attended_LHT[:, :, from_T]
        if other.row is not None:
            self.starts[other.row] = other.start

    def retire(self, rows: Sequence[int]) -> tuple[list[int], list[int]]:
        """Give up these rows; the last active rows take their numbers. Returns (sources, targets) of the moves."""
        gone, left = set(rows), self.active - len(set(rows))
        sources = [row for row in range(left, self.active) if row not in gone]
        targets = sorted(row for row in gone if row < left)
        for row in gone:
            self.regions[row].row = None
            self.release(self.regions[row])
        if sources:
            source, target = self.indices(sources), self.indices(targets)
            self.table[:, target] = self.table[:, source]
            for ring in (self.states, self.queries):
                ring[target] = ring[source]
        for counter in (self.host_lengths, self.host_pinned, self.host_waiting, self.host_sizes):
            counter[targets] = counter[sources]
        for old, new in zip(sources, targets, strict=True):
            self.regions[new] = self.regions[old]
            self.regions[new].row = new
        self.table[0, left : self.active], self.table[1:, left : self.active] = self.slots, 0
        del self.regions[left:]
        return sources, targets

    def check_integrity(self) -> None:
        """Raise AssertionError unless every row has its region, its prompt, its order and its length on both sides."""
        self.arena.check_integrity()
        n = self.active
        assert self.starts[:n].tolist() == [region.start for region in self.regions]
        assert torch.equal(self.lengths[:n].cpu(), self.host_lengths[:n])
        assert torch.equal(self.pinned[:n].cpu(), self.host_pinned[:n])
        assert bool(((self.pinned == 0) | (self.pinned == self.prompt_lengths)).all())
        assert torch.equal((self.next_positions - self.added)[:n].cpu(), self.host_waiting[:n])
        assert self.live.tolist() == [1] * n + [0] * (self.most_rows + 1 - n)
        seated = {region for region in self.arena.regions if region.row is not None}
        assert seated == set(self.regions)
        for row, region in enumerate(self.regions):
            length, pinned = int(self.host_lengths[row]), int(self.host_pinned[row])
            assert region.row == row
            assert pinned - 1 <= length <= region.size, f"row {row} holds {length} slots of {region.size}"
            held = self.positions[:, :, region.start : region.start + length].cpu()
            known = min(pinned, length)
            assert bool((held[..., :known] == torch.arange(known)).all()), f"row {row} lost a prompt slot"
            assert bool((held.diff(dim=-1) > 0).all()), f"row {row} holds its slots out of order"
            assert bool((held[..., -1:] < int(self.next_positions[row])).all()), f"row {row} holds a slot of the future"


def _compact(facts_LPHTD: Tensor, first_R: Tensor, kept: Tensor) -> None:
    """Move what belongs to the kept slots together, from `first_R` on; arguments as of `engine.kernels.compact`."""
    if first_R.is_cuda:
        from leanthink.engine.kernels.compact import compact

        compact(facts_LPHTD, first_R, kept)
        return
    to_RK = first_R[:, None] + torch.arange(kept.shape[-1])
    for layer, facts_PHTD in enumerate(facts_LPHTD):
        if kept.dim() == 2:
            facts_PHTD[:, :, to_RK] = facts_PHTD[:, :, first_R[:, None] + kept]
            continue
        for head in range(facts_PHTD.shape[1]):
            facts_PHTD[:, head, to_RK] = facts_PHTD[:, head, first_R[:, None] + kept[:, layer, head]]


def _numbers(numbers: range, device: torch.device) -> Tensor:
    return torch.arange(numbers.start, numbers.stop, device=device)


def _for_each(layers: range, facts_R: Tensor) -> Tensor:
    """A number of each row once for each of these layers, [R L]."""
    return facts_R[:, None].expand(-1, len(layers)).flatten()


def _gather(facts_LXT: Tensor, layers: range, heads: range, slots_RS: Tensor) -> Tensor:
    """What belongs to these slots in some heads of some layers, [R, L, H, S, ...], of facts [L, X, T + 1, ...]."""
    _, X, T = facts_LXT.shape[:3]
    head_LH = _numbers(layers, slots_RS.device)[:, None] * X + _numbers(heads, slots_RS.device)
    return _select(facts_LXT.view(-1, *facts_LXT.shape[3:]), head_LH[..., None] * T + slots_RS[:, None, None])


def _select(facts_N: Tensor, at: Tensor) -> Tensor:
    """Facts [N, ...] at an index of any shape; by one index, as several would be looked up for each number."""
    return facts_N.index_select(0, at.flatten()).view(*at.shape, *facts_N.shape[1:])


def _larger_ring(ring: Tensor, size: int, dim: int, next_positions: Tensor) -> Tensor:
    """A ring of `size` places along `dim`, in which the latest positions of each row lie where they now belong."""
    old = ring.shape[dim]
    larger = ring.new_zeros(*ring.shape[:dim], size, *ring.shape[dim + 1 :])
    rows = torch.arange(len(ring), device=ring.device)
    before, after = ring.movedim(dim, 1), larger.movedim(dim, 1)
    for age in range(1, old + 1):
        position_N = (next_positions - age).clamp(min=0)
        after[rows, position_N % size] = before[rows, position_N % old]
    return larger
