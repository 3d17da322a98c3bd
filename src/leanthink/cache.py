"""The bounded KV cache: one slab per layer, one length per row, eviction in place.

N active rows   R chosen rows   L layers   H kv heads   G query heads per kv head   D head dim
S thought slots   K kept slots   W remembered queries   C stamped numbers per slot   T slots reserved per row
F state size      O offsets
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanthink.errors import UsageError
from leanthink.policies import Policy, Slots


@dataclass(frozen=True, kw_only=True)
class KVShape:
    """What a model writes per token: `layers` x `kv_heads` keys and values of `head_dim` numbers."""

    layers: int
    kv_heads: int
    group: int  # query heads per kv head
    head_dim: int

    def bytes_per_slot(self, dtype: torch.dtype) -> int:
        """Bytes of the keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """The next forward writes `tokens` prompt tokens into each of rows `first`, ..., `first + count - 1`."""

    first: int
    count: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Decode:
    """The next forward writes one token into each active row; computed once, shared by all layers."""

    rows_N: Tensor
    write_N: Tensor  # the slot that each row writes
    longest: int  # slots that attention has to read: the longest row, the new token included
    bias_N11T: Tensor | None  # 0 where a slot is held, -inf elsewhere; None on a GPU, whose kernel reads write_N


class SlotCache:
    """Keys, values and bookkeeping of up to `rows` requests of at most `capacity` slots each.

    Rows [0, active) are in use. The prompt holds slots [0, prompt) of its row for ever; thought and answer
    follow, oldest first. Lengths follow from what was fed, so the host mirrors them and never waits for the device.

    Args:
        shape: of the model's keys and values.
        rows: most requests at a time.
        capacity: slots reserved for each row.
        dtype: of the slabs, which are allocated here, once.
        device: where they lie.
        channels: stamped numbers per slot; 0 for none.
        num_queries: how many of the latest queries to remember per layer; 0 for none.
        num_states: of how many of the latest tokens to remember the states; 0 for none.
        state_size: numbers of one token's states.
        per_head: whether any policy keeps different slots in different layers and heads.

    Raises:
        UsageError: the device has no room for the slabs.
    """

    def __init__(
        self,
        shape: KVShape,
        *,
        rows: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        channels: int = 0,
        num_queries: int = 0,
        num_states: int = 0,
        state_size: int = 0,
        per_head: bool = False,
    ) -> None:
        self.shape, self.rows, self.capacity, self.num_queries = shape, rows, capacity, num_queries
        slab = (rows, shape.kv_heads, capacity, shape.head_dim)
        try:
            # Zeros, not empty: attention multiplies what lies behind a row's length by 0, and 0 * nan is nan.
            self.keys = [torch.zeros(slab, dtype=dtype, device=device) for _ in range(shape.layers)]
            self.values = [torch.zeros(slab, dtype=dtype, device=device) for _ in range(shape.layers)]
        except RuntimeError as error:
            size = rows * capacity * shape.bytes_per_slot(dtype) / 2**30
            raise UsageError(
                f"{device} has no room for {rows} rows of {capacity} slots ({size:.1f} GiB of keys and values): "
                "lower max_rows, the budget or max_new_tokens"
            ) from error
        ring = (rows, shape.kv_heads, shape.group, num_queries, shape.head_dim)
        self.queries = [
            torch.zeros(ring, dtype=dtype, device=device) for _ in range(shape.layers if num_queries else 0)
        ]
        self.num_states = num_states
        self.states = torch.zeros(rows, num_states, state_size if num_states else 0, dtype=dtype, device=device)
        sets = (shape.layers, shape.kv_heads) if per_head else (1, 1)
        self.positions = torch.zeros(rows, *sets, capacity, dtype=torch.int64, device=device)
        self.stamps = torch.zeros(rows, capacity, channels, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.prompt_lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.next_positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self.host_lengths = torch.zeros(rows, dtype=torch.int64)
        self.host_prompts = torch.zeros(rows, dtype=torch.int64)
        self.active = 0
        self.feed: Prefill | Decode | None = None
        self.scaling: float | None = None  # of query-key products, as the model's attention layers name it

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of the keys and values of one token, all layers together."""
        return self.shape.bytes_per_slot(self.keys[0].dtype)

    @property
    def reserved_bytes(self) -> int:
        """Bytes of all key and value slabs."""
        return sum(slab.nbytes for slab in (*self.keys, *self.values))

    def start_prefill(self, count: int, tokens: int) -> Tensor:
        """Announce a forward over `count` new rows of `tokens` prompt tokens; returns positions [count, tokens]."""
        assert self.feed is None
        assert self.active + count <= self.rows
        assert 0 < tokens <= self.capacity
        self.feed = Prefill(first=self.active, count=count, tokens=tokens)
        return torch.arange(tokens, device=self.lengths.device).expand(count, tokens)

    def start_step(self) -> Tensor:
        """Announce a forward over one token of every active row; returns their positions [N, 1]."""
        n = self.active
        longest = int(self.host_lengths[:n].max()) + 1
        assert self.feed is None
        assert longest <= self.capacity, f"a row outgrew the {self.capacity} slots reserved for it"
        write_N = self.lengths[:n].clone()
        bias_N11T = None
        if not write_N.is_cuda:
            behind_N11T = torch.arange(longest, device=write_N.device) > write_N[:, None, None, None]
            bias_N11T = self.keys[0].new_zeros(behind_N11T.shape).masked_fill(behind_N11T, -torch.inf)
        rows_N = torch.arange(n, device=write_N.device)
        self.feed = Decode(rows_N=rows_N, write_N=write_N, longest=longest, bias_N11T=bias_N11T)
        return self.next_positions[:n, None].clone()

    def write(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store what a layer computed: keys and values [rows, H, tokens, D], queries [rows, H*G, tokens, D]."""
        feed = self.feed
        assert feed is not None, "announce the forward first: start_prefill or start_step"
        if isinstance(feed, Prefill):
            rows = slice(feed.first, feed.first + feed.count)
            self.keys[layer][rows, :, : feed.tokens] = keys
            self.values[layer][rows, :, : feed.tokens] = values
        else:
            self.keys[layer][feed.rows_N, :, feed.write_N] = keys[:, :, 0]
            self.values[layer][feed.rows_N, :, feed.write_N] = values[:, :, 0]
        if self.num_queries:
            self._remember(layer, queries, feed)

    def _remember(self, layer: int, queries: Tensor, feed: Prefill | Decode) -> None:
        """The query of position p lies at p modulo W of the ring."""
        ring, W = self.queries[layer], self.num_queries
        packed = queries.reshape(len(queries), self.shape.kv_heads, self.shape.group, *queries.shape[2:])
        if isinstance(feed, Decode):
            ring[feed.rows_N, :, :, self.next_positions[: self.active] % W] = packed[:, :, :, 0]
            return
        rows = slice(feed.first, feed.first + feed.count)
        ring[rows] = 0  # a prompt shorter than the ring must not leave the former owner's queries behind
        latest = torch.arange(max(0, feed.tokens - W), feed.tokens, device=ring.device)
        ring[rows, :, :, latest % W] = packed[:, :, :, latest]

    def finish(self) -> None:
        """Account for the tokens that the announced forward wrote."""
        feed, self.feed = self.feed, None
        assert feed is not None
        if isinstance(feed, Prefill):
            rows = slice(feed.first, feed.first + feed.count)
            self.positions[rows, :, :, : feed.tokens] = torch.arange(feed.tokens, device=self.positions.device)
            for counter in (
                self.lengths,
                self.prompt_lengths,
                self.next_positions,
                self.host_lengths,
                self.host_prompts,
            ):
                counter[rows] = feed.tokens
            self.active += feed.count
        else:
            n = self.active
            self.positions[feed.rows_N, :, :, feed.write_N] = self.next_positions[:n, None, None]
            self.lengths[:n] += 1
            self.next_positions[:n] += 1
            self.host_lengths[:n] += 1

    def remember(self, states_NF: Tensor) -> None:
        """Keep the states of the token just fed to each active row, in a ring: position p at p modulo its size."""
        rows_N = torch.arange(self.active, device=self.states.device)
        self.states[rows_N, (self.next_positions[: self.active] - 1) % self.num_states] = states_NF

    def recall(self, rows_R: Tensor, offsets: Sequence[int]) -> Tensor:
        """States [R, O, F] of the token `offsets[-1]` before the last of each row, and of those at `offsets` after it.

        Before so many thought tokens are written they are another token's; that token is of the prompt, or gone.
        """
        assert offsets[-1] < self.num_states
        back = torch.tensor(offsets, device=self.states.device) - offsets[-1] - 1
        return self.states[rows_R[:, None], (self.next_positions[rows_R, None] + back) % self.num_states]

    def stamp(self, rows_R: Tensor, stamps_RC: Tensor, *, late: int = 0) -> None:
        """Attach numbers to the slot that each of these rows wrote `late` tokens before its last."""
        slots_R = (self.lengths[rows_R] - 1 - late).clamp(min=0)  # of the prompt where the thought is still shorter
        self.stamps[rows_R, slots_R, : stamps_RC.shape[1]] = stamps_RC.float()

    def show(self, rows_R: Tensor, count: int, seeds_R: Tensor, policy: Policy, layer: int | None = None) -> Slots:
        """The `count` thought slots of each of these rows, as the policy sees them; `layer` for a policy per head."""
        slots_RS = self._thought_slots(rows_R, count)
        next_R = self.next_positions[rows_R]
        facts: dict[str, Any] = {
            "next_position": next_R,
            "prompt_tokens": self.prompt_lengths[rows_R],
            "seeds": seeds_R,
        }
        if layer is None:
            positions_RS = self.positions[rows_R[:, None], 0, 0, slots_RS]
            if policy.channels:
                facts["stamps"] = self.stamps[rows_R[:, None], slots_RS, : policy.channels]
            return Slots(ages=next_R[:, None] - 1 - positions_RS, positions=positions_RS, **facts)
        heads = torch.arange(self.shape.kv_heads, device=rows_R.device)[:, None]
        where = rows_R[:, None, None], heads, slots_RS[:, None]
        positions_RHS = self.positions[where[0], layer, where[1], where[2]]
        if policy.num_queries:
            facts["queries"] = self._latest_queries(layer, rows_R, policy.num_queries)
        return Slots(
            ages=next_R[:, None, None] - 1 - positions_RHS,
            positions=positions_RHS,
            layer=layer,
            keys=self.keys[layer][where],
            values=self.values[layer][where],
            scaling=self.scaling,
            **facts,
        )

    def _thought_slots(self, rows_R: Tensor, count: int) -> Tensor:
        """Indices [R, count] of the `count` slots that follow each row's prompt."""
        return self.prompt_lengths[rows_R, None] + torch.arange(count, device=self.lengths.device)

    def _latest_queries(self, layer: int, rows_R: Tensor, count: int) -> Tensor:
        """The last `count` queries of each row, oldest first, [R, H, G, count, D]; zeros before the first token."""
        age = torch.arange(count, 0, -1, device=self.lengths.device)
        ring_RW = (self.next_positions[rows_R, None] - age) % self.num_queries
        return self.queries[layer][rows_R[:, None], :, :, ring_RW].permute(0, 2, 3, 1, 4)

    def evict(self, rows: Sequence[int], kept: Tensor) -> None:
        """Keep only these thought slots of each row, moved together behind the prompt in their old order.

        Args:
            rows: rows that hold prompt and thought, and no answer yet.
            kept: ascending indices, 0 = the slot behind the prompt: [R, K] for all layers and heads, or [R, L, H, K].
        """
        assert kept.dim() == 2 or self.positions.shape[1:3] == kept.shape[1:3]
        host_R = torch.tensor(rows)
        rows_R, K = host_R.to(self.lengths.device), kept.shape[-1]
        to_RK = self._thought_slots(rows_R, K)
        sets_RLHK = kept if kept.dim() == 4 else kept[:, None, None]
        from_RLHK = sets_RLHK + self.prompt_lengths[rows_R, None, None, None]
        row, head = rows_R[:, None, None], torch.arange(self.shape.kv_heads, device=rows_R.device)[:, None]
        for layer, slabs in enumerate(zip(self.keys, self.values, strict=True)):
            from_RHK = from_RLHK[:, layer if kept.dim() == 4 else 0]
            for slab in slabs:
                slab[row, head, to_RK[:, None]] = slab[row, head, from_RHK]
        held_RLHT = self.positions[rows_R]
        moved_RLHK = held_RLHT.gather(-1, from_RLHK.expand(-1, *held_RLHT.shape[1:3], -1))
        self.positions[rows_R] = held_RLHT.scatter(-1, to_RK[:, None, None].expand_as(moved_RLHK), moved_RLHK)
        if kept.dim() == 2:
            self.stamps[rows_R[:, None], to_RK] = self.stamps[rows_R[:, None], from_RLHK[:, 0, 0]]
        self.lengths[rows_R] = self.prompt_lengths[rows_R] + K
        self.host_lengths[host_R] = self.host_prompts[host_R] + K

    def retire(self, rows: Sequence[int]) -> tuple[list[int], list[int]]:
        """Give up these rows; the last active rows move into the holes. Returns (sources, targets) of the moves."""
        gone, left = set(rows), self.active - len(set(rows))
        sources = [row for row in range(left, self.active) if row not in gone]
        targets = sorted(row for row in gone if row < left)
        self.active = left
        if not sources:
            return sources, targets
        host_source, host_target = torch.tensor(sources), torch.tensor(targets)
        source, target = host_source.to(self.lengths.device), host_target.to(self.lengths.device)
        longest = int(self.host_lengths[host_source].max())
        for slab in (*self.keys, *self.values):
            slab[target, :, :longest] = slab[source, :, :longest]
        for table in (
            *self.queries,
            self.states,
            self.positions,
            self.stamps,
            self.lengths,
            self.prompt_lengths,
            self.next_positions,
        ):
            table[target] = table[source]
        for counter in (self.host_lengths, self.host_prompts):
            counter[host_target] = counter[host_source]
        return sources, targets

    def check_integrity(self) -> None:
        """Raise AssertionError unless every active row has its prompt, its order, and one length on host and device."""
        assert 0 <= self.active <= self.rows
        assert torch.equal(self.lengths[: self.active].cpu(), self.host_lengths[: self.active])
        assert torch.equal(self.prompt_lengths[: self.active].cpu(), self.host_prompts[: self.active])
        for row in range(self.active):
            length, prompt = int(self.host_lengths[row]), int(self.host_prompts[row])
            assert prompt <= length <= self.capacity, f"row {row} holds {length} slots of {self.capacity}"
            held = self.positions[row, :, :, :length].cpu()
            assert bool((held[..., :prompt] == torch.arange(prompt)).all()), f"row {row} lost a prompt slot"
            assert bool((held.diff(dim=-1) > 0).all()), f"row {row} holds its slots out of order"
            assert bool((held[..., -1] < int(self.next_positions[row])).all()), f"row {row} holds a slot of the future"
