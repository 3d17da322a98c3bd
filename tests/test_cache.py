from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leanthink.engine import attention_sums
from leanthink.engine.cache import SlotCache
from leanthink.engine.cache_requirements import CacheRequirements
from leanthink.engine.forward_batch import PromptChunk
from leanthink.engine.hidden_states import gather_consecutive, gather_hidden_states, store_hidden_states
from leanthink.engine.policy_view import policy_view
from leanthink.engine.slot_allocator import Allocation
from leanthink.models.kv_shape import KVShape
from leanthink.policies import make_policy
from leanthink.policies.snapkv import SnapKV
from leanthink.utils.errors import UsageError
from policy_slots import make
from reference.cache_slow import SlowCache, SlowRequest

SHAPE = KVShape(layers=2, kv_heads=2, group=3, head_dim=4)
CPU = torch.device("cpu")
EQUAL = 14
STATE = 3  # numbers of one token's state
SCALING = 0.5


def make_cache(slots: int = 60, rows: int = 4, **options: object) -> SlotCache:
    cache = SlotCache(
        SHAPE, slots=slots, rows=rows, dtype=torch.float32, device=CPU, hidden_state_size=STATE, **options
    )  # type: ignore[arg-type]
    cache.scaling = SCALING
    return cache


def write_random(cache: SlotCache, rows: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a forward would write: keys and values [L, rows, H, tokens, D], queries [L, rows, H, G, tokens, D]."""
    keys, values = torch.randn(2, SHAPE.layers, rows, SHAPE.kv_heads, tokens, SHAPE.head_dim)
    queries = torch.randn(SHAPE.layers, rows, SHAPE.kv_heads, SHAPE.group, tokens, SHAPE.head_dim)
    for layer in range(SHAPE.layers):
        cache.write(layer, queries[layer].flatten(1, 2), keys[layer], values[layer])
    cache.finish()
    return keys, values, queries


def feed(cache: SlotCache, allocation: Allocation, pieces: Sequence[int]) -> Tensor:
    """The first tokens of a prompt, in pieces of these sizes; returns their queries [L, H, G, tokens, D]."""
    fed = [torch.empty(SHAPE.layers, SHAPE.kv_heads, SHAPE.group, 0, SHAPE.head_dim)]
    for piece in pieces:
        done = sum(queries.shape[3] for queries in fed)
        cache.start_prefill([PromptChunk(allocation=allocation, done=done, tokens=piece)])
        fed.append(write_random(cache, 1, piece)[2][:, 0])
    return torch.cat(fed, dim=3)


def take_row(cache: SlotCache, prompt: int, size: int = EQUAL) -> Allocation:
    """A row with a prompt of this length, all but the last token of which is fed."""
    allocation = cache.allocator.allocate(size)
    assert allocation is not None
    feed(cache, allocation, [prompt - 1] if prompt > 1 else [])
    cache.assign_row(allocation, prompt)
    return allocation


def step(cache: SlotCache) -> Tensor:
    """One token for every active row; returns the queries [L, N, H, G, D]."""
    cache.start_step()
    queries = write_random(cache, cache.active, 1)[2]
    cache.advance()
    return queries[..., 0, :]


class History:
    """A cache and its reference implementation, which go through the same acts."""

    def __init__(self, seed: int, row_slots: int | None) -> None:
        torch.manual_seed(seed)
        self.chance = random.Random(seed)
        self.cache = make_cache(
            slots=5 * EQUAL + 3, row_slots=row_slots
        )  # one row less than there are equal allocations
        self.slow = SlowCache(SHAPE.layers, SHAPE.kv_heads, SCALING)
        self.prefilling: list[tuple[Allocation, SlowRequest]] = []

    def allocate(self) -> None:
        prompt = self.chance.randint(1, 7)
        allocation = self.cache.allocator.allocate(min(EQUAL, prompt + self.chance.randint(1, 9)))
        if allocation is not None:
            self.prefilling.append((allocation, self.slow.allocate(prompt)))
            self.prefilling[-1][1].watched = "start" if self.cache.requirements.prompt_attention else "never"

    def feed(self) -> None:
        """A piece of some of the prompts that wait, in one forward."""
        pieces, fed = [], []
        for allocation, request in self.prefilling:
            if (left := request.prompt - 1 - request.fed) and self.chance.random() < 0.8:
                tokens = self.chance.randint(1, left)
                pieces.append(PromptChunk(allocation=allocation, done=request.fed, tokens=tokens))
                fed.extend([request] * tokens)
        if not pieces:
            return
        positions = self.cache.start_prefill(pieces)[0].tolist()
        keys, values, queries = write_random(self.cache, 1, len(fed))
        for at, request in enumerate(fed):
            assert positions[at] == request.fed
            self.slow.feed(request, keys[:, 0, :, at], values[:, 0, :, at], queries[:, 0, :, :, at])

    def copy(self) -> None:
        """A request with the prompt of another."""
        complete = [
            (allocation, request) for allocation, request in self.prefilling if request.fed == request.prompt - 1
        ]
        assigned = zip(self.cache.allocations, self.slow.rows, strict=True)
        known = complete + [(allocation, request) for allocation, request in assigned if request.pinned]
        if not known:
            return
        source, twin = self.chance.choice(known)
        allocation = self.cache.allocator.allocate(min(EQUAL, twin.prompt + self.chance.randint(1, 9)))
        if allocation is not None:
            self.cache.copy_prompt(source, allocation, twin.prompt - 1)
            self.prefilling.append((allocation, self.slow.allocate(twin.prompt)))
            self.slow.copy_prompt(twin, self.prefilling[-1][1])

    def assign_rows(self) -> None:
        for allocation, request in list(self.prefilling):
            if request.fed == request.prompt - 1 and self.cache.active < self.cache.max_rows:
                pinned = self.chance.random() < 0.7
                assert self.cache.assign_row(allocation, request.prompt, pinned=pinned) == len(self.slow.rows)
                if self.cache.requirements.accumulated_attention and request.watched == "never":
                    request.watched = "row"
                self.slow.assign_row(request, pinned)
                self.prefilling.remove((allocation, request))

    def step(self) -> None:
        """One token for every row; sometimes for rows without a request, too, as a CUDA graph does."""
        cache, active = self.cache, self.cache.active
        full = [
            row for row, allocation in enumerate(cache.allocations) if int(cache.host_lengths[row]) == allocation.size
        ]
        if full:
            self.leave(full)
            return
        graph_rows = self.chance.choice([None, None, self.chance.randint(max(1, active), cache.max_rows)])
        if not active and (graph_rows is None or self.chance.random() < 0.8):
            return
        positions = cache.start_step(graph_rows)[:active, 0].tolist()
        assert positions == [request.fed for request in self.slow.rows]
        n = active if graph_rows is None else graph_rows
        keys, values, queries = write_random(cache, n, 1)
        cache.advance()
        states, requirements = torch.randn(n, STATE), cache.requirements
        first, late = self.chance.randint(0, requirements.score_dims), self.chance.choice([0, 0, 1, 4])
        count = self.chance.choice([1, 1, 2, 5])
        token_scores = torch.randn(n, count, requirements.score_dims - first)
        if requirements.hidden_states:
            store_hidden_states(cache, states)
        cache.store_token_scores(torch.arange(n), token_scores, first=first, late=late)
        for row, request in enumerate(self.slow.rows):
            self.slow.feed(request, keys[:, row, :, 0], values[:, row, :, 0], queries[:, row, :, :, 0])
            self.slow.store_hidden_state(row, states[row].tolist())
            for older in range(count):
                self.slow.score(row, first, token_scores[row, -1 - older].tolist(), late + older)
        waiting, most = cache.host_waiting[:active], requirements.queries
        if requirements.accumulated_attention and (full := (waiting == most).nonzero()[:, 0].tolist()):
            attention_sums.add(cache, full, most)

    def evict(self) -> None:
        """Rows with equally many thought slots keep some of them."""
        thought = [len(request.token_scores) - request.pinned for request in self.slow.rows]
        if not (held_by_any := [held for held in thought if held > 0]):
            return
        wanted = self.chance.choice(held_by_any)
        rows = [row for row, held in enumerate(thought) if held == wanted]
        num_kept, per_head = (
            self.chance.randint(1, wanted),
            self.cache.requirements.per_head and self.chance.random() < 0.5,
        )
        kept = []
        if self.cache.requirements.accumulated_attention:
            attention_sums.add(self.cache, rows, self.cache.requirements.queries)
        for row in rows:
            sets = [sorted(self.chance.sample(range(wanted), num_kept)) for _ in range(SHAPE.layers * SHAPE.kv_heads)]
            heads = [sets[layer * SHAPE.kv_heads :][: SHAPE.kv_heads] for layer in range(SHAPE.layers)]
            kept.append(heads if per_head else sets[0])
            self.slow.evict(row, kept[-1])
        self.cache.evict(rows, torch.tensor(kept))

    def free_rows(self) -> None:
        if self.cache.active:
            count = min(self.cache.active, self.chance.choice([1, 1, 2, 4]))
            self.leave(self.chance.sample(range(self.cache.active), count))

    def leave(self, rows: list[int]) -> None:
        before = list(self.slow.rows)
        sources, targets = self.cache.free_rows(rows)
        self.slow.free_rows(rows)
        assert [before[row] for row in sources] == [self.slow.rows[row] for row in targets]
        assert all(self.slow.rows[row] is before[row] for row in range(len(self.slow.rows)) if row not in targets)

    def cancel(self) -> None:
        """A request gives its allocation back while its prompt is fed."""
        if self.prefilling:
            allocation, request = self.prefilling.pop(self.chance.randrange(len(self.prefilling)))
            self.cache.free(allocation)
            self.slow.waiting.remove(request)

    def require(self) -> None:
        """A policy joins and wants to be shown more, or no more than others were shown already."""
        requirements = self.chance.choice(
            [
                CacheRequirements(score_dims=self.chance.randint(1, 3)),
                CacheRequirements(score_dims=1, hidden_states=self.chance.randint(1, 6)),
                CacheRequirements(queries=self.chance.randint(1, 6), per_head=True),
                CacheRequirements(queries=self.chance.randint(1, 3), per_head=True, accumulated_attention=True),
                CacheRequirements(queries=2, per_head=True, accumulated_attention=True, prompt_attention=True),
                CacheRequirements(per_head=True),
            ]
        )
        self.cache.require(requirements)
        self.slow.num_queries = max(self.slow.num_queries, requirements.queries)
        self.slow.num_hidden_states = max(self.slow.num_hidden_states, requirements.hidden_states)

    def assert_same(self) -> None:
        self.cache.check_integrity()
        assert self.cache.active == len(self.slow.rows)
        for row, (allocation, request) in enumerate(zip(self.cache.allocations, self.slow.rows, strict=True)):
            self._assert_same_slots(allocation, request, int(self.cache.host_lengths[row]))
            assert int(self.cache.prompt_lengths[row]) == request.prompt
            assert int(self.cache.next_positions[row]) == request.fed
            self._assert_same_memories(row, request)
        for allocation, request in self.prefilling:
            self._assert_same_slots(allocation, request, request.fed, assigned=False)

    def _assert_same_slots(
        self, allocation: Allocation, request: SlowRequest, length: int, assigned: bool = True
    ) -> None:
        held = slice(allocation.start, allocation.start + length)
        for part, name in enumerate(("key", "value")):
            slow = [[[slot[name] for slot in slots] for slots in heads] for heads in request.heads]
            assert self.cache.kv_LPHTD[:, part, :, held].tolist() == slow
        if assigned:
            positions = self.cache.positions.expand(SHAPE.layers, SHAPE.kv_heads, -1)[:, :, held].tolist()
            assert positions == [[[slot["position"] for slot in slots] for slots in heads] for heads in request.heads]
            if request.watched != "never":
                self._assert_same_attention(held, request)
            for token_scores, known in zip(self.cache.token_scores[held].tolist(), request.token_scores, strict=True):
                assert {channel: token_scores[channel] for channel in known} == known

    def _assert_same_attention(self, held: slice, request: SlowRequest) -> None:
        """Once the queries that wait are added: to a copy, since when that is done is up to others."""
        row, known = self.slow.rows.index(request), self.cache.accumulated_attention_LHT.clone()
        added, waiting = self.cache.added.clone(), self.cache.host_waiting.clone()
        if waiting[row] > 0:
            attention_sums.add(self.cache, [row], self.cache.requirements.queries)
        got = self.cache.accumulated_attention_LHT[:, :, held].tolist()
        for layer, heads in enumerate(request.heads):
            for head, slots in enumerate(heads):
                for slot, number in zip(slots, got[layer][head], strict=True):
                    if request.watched == "start" or slot["position"] >= request.prompt:
                        assert number == pytest.approx(slot["accumulated_attention"], rel=1e-4)
        self.cache.accumulated_attention_LHT.copy_(known)
        self.cache.added.copy_(added)
        self.cache.host_waiting.copy_(waiting)

    def _assert_same_memories(self, row: int, request: SlowRequest) -> None:
        requirements, rows = self.cache.requirements, torch.tensor([row])
        if requirements.queries:
            zeros = torch.zeros(SHAPE.kv_heads, SHAPE.group, SHAPE.head_dim).tolist()
            policy, seeds = SnapKV(observation=requirements.queries), torch.zeros(self.cache.max_rows)
            layers = range(SHAPE.layers)
            shown_LHGWD = policy_view(self.cache, rows, 0, seeds, policy, layers=layers).queries
            for shown, asked in zip(shown_LHGWD, request.queries, strict=True):
                latest = [
                    asked.get(position, zeros) for position in range(request.fed - requirements.queries, request.fed)
                ]
                assert shown.movedim(2, 0).tolist() == latest
        if requirements.hidden_states and request.fed:
            count = self.chance.randint(1, requirements.hidden_states)
            offsets = (0, (count - 1) // 2, count - 1)
            latest = gather_consecutive(self.cache, rows, count)[:, 0].tolist()
            for position, state in enumerate(latest, start=request.fed - count):
                assert state == request.hidden_states.get(position, state)
            some = gather_hidden_states(self.cache, rows, offsets)[0].tolist()
            assert some == [latest[offset] for offset in offsets]


ACTS = [
    "allocate",
    "allocate",
    "feed",
    "feed",
    "copy",
    "assign_rows",
    "assign_rows",
    "step",
    "step",
    "step",
    "step",
    "step",
]
ACTS += ["evict", "evict", "free_rows", "cancel", "require", "require"]


@pytest.mark.parametrize("row_slots", [None, EQUAL])
@given(acts=st.lists(st.sampled_from(ACTS), min_size=20, max_size=60), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_any_history_leaves_the_same_slots_as_the_reference_implementation(
    row_slots: int | None, acts: list[str], seed: int
) -> None:
    history = History(seed, row_slots)
    for act in ["allocate", "allocate", "require", "feed", "assign_rows", *acts]:
        getattr(history, act)()
        history.assert_same()


@pytest.mark.parametrize("row_slots", [None, EQUAL])
def test_rows_that_retire_together_leave_the_others_untouched_in_a_prefix(row_slots: int | None) -> None:
    cache = make_cache(slots=6 * EQUAL, rows=6, row_slots=row_slots)
    cache.require(CacheRequirements(queries=2, per_head=True))
    allocations = [take_row(cache, prompt) for prompt in (1, 2, 3, 4, 5, 6)]
    step(cache)
    held = [
        cache.kv_LPHTD[:, :, :, allocation.start : allocation.start + row + 1]
        for row, allocation in enumerate(allocations)
    ]
    held, asked = [kv.clone() for kv in held], cache.queries.clone()
    assert cache.free_rows([5, 0, 2]) == ([3, 4], [0, 2])
    assert cache.active == 3
    for row, old in {0: 3, 1: 1, 2: 4}.items():
        assert cache.allocations[row] is allocations[old]
        assert cache.host_lengths[row] == cache.prompt_lengths[row] == old + 1
        assert torch.equal(cache.kv_LPHTD[:, :, :, allocations[old].start :][:, :, :, : old + 1], held[old])
        assert torch.equal(cache.queries[row], asked[old])
    assert cache.allocator.used == 3 * EQUAL
    cache.check_integrity()


def test_retiring_nobody_changes_nothing() -> None:
    cache = make_cache()
    allocation = take_row(cache, 3)
    assert cache.free_rows([]) == ([], [])
    assert cache.allocations == [allocation]
    cache.check_integrity()


# -- what policies are shown ---------------------------------------------------------------------------------------


def test_slots_show_thought_only_and_count_ages_from_the_next_position() -> None:
    cache = make_cache()
    take_row(cache, 3)
    take_row(cache, 3)
    for _ in range(6):
        step(cache)
    cache.evict([0, 1], torch.tensor([[0, 2, 4], [1, 3, 4]]))
    slots = policy_view(cache, torch.tensor([0, 1]), 3, torch.tensor([7, 8]), make_policy("window"))
    assert slots.positions.tolist() == [[3, 5, 7], [4, 6, 7]]
    assert slots.ages.tolist() == [[4, 2, 0], [3, 1, 0]]
    assert slots.next_position.tolist() == [8, 8]
    assert slots.prompt_tokens.tolist() == [3, 3]
    assert slots.seeds.tolist() == [7, 8]
    assert slots.token_scores is None
    assert slots.keys is None


def test_a_policy_per_head_sees_each_heads_own_slots_of_its_layer() -> None:
    cache = make_cache()
    cache.require(CacheRequirements(queries=1, per_head=True))
    allocation = take_row(cache, 2)
    for _ in range(4):
        step(cache)
    cache.scaling = 0.3
    keys = cache.layer(1).keys_HTD[:, allocation.start + 2 : allocation.start + 5].clone()
    cache.evict([0], torch.tensor([[[0, 1], [1, 2], [0, 2], [1, 2]]]))
    slots = policy_view(cache, torch.tensor([0]), 2, torch.tensor([0]), SnapKV(observation=1), layers=range(1, 2))
    assert (slots.layer.tolist(), slots.scaling) == ([1], 0.3)
    assert slots.positions.tolist() == [[[2, 4], [3, 4]]]
    assert slots.ages.tolist() == [[[2, 0], [1, 0]]]
    assert slots.keys is not None
    assert torch.equal(slots.keys[0], torch.stack([keys[0, [0, 2]], keys[1, [1, 2]]]))


def test_the_ring_of_states_shows_the_right_tokens_after_moves_and_after_it_was_enlarged() -> None:
    cache = make_cache()
    cache.require(CacheRequirements(score_dims=1, hidden_states=2))
    names = [100, 200, 300]
    for prompt in (1, 3, 6):
        take_row(cache, prompt)

    def run(steps: int) -> None:
        for _ in range(steps):
            step(cache)
            last_N = cache.next_positions[: cache.active] - 1
            store_hidden_states(cache, (torch.tensor(names) + last_N)[:, None].expand(-1, STATE).float())

    def recalled(*offsets: int) -> list[list[float]]:
        return gather_hidden_states(cache, torch.arange(cache.active), offsets)[:, :, 0].tolist()

    run(4)
    assert recalled(0, 1) == [[102, 103], [204, 205], [307, 308]]
    cache.free_rows([0])
    names = [300, 200]
    assert recalled(0, 1) == [[307, 308], [204, 205]]
    cache.require(CacheRequirements(hidden_states=5))
    assert recalled(0, 1) == [[307, 308], [204, 205]]
    run(3)
    assert recalled(0, 1, 4) == [[307, 308, 311], [204, 205, 208]]
    assert gather_consecutive(cache, torch.tensor([1, 0]), 3)[..., 0].tolist() == [[206, 309], [207, 310], [208, 311]]


def test_the_ring_of_queries_shows_the_right_tokens_after_moves_and_after_it_was_enlarged() -> None:
    cache = make_cache()
    cache.require(CacheRequirements(queries=2, per_head=True))
    for prompt in (1, 3, 6):
        take_row(cache, prompt)
    seen = [step(cache) for _ in range(3)]
    cache.free_rows([0])
    moved = torch.stack(seen)[:, :, [2, 1]]  # [tokens, L, N, H, G, D]
    cache.require(CacheRequirements(queries=4))
    assert torch.equal(latest_queries(cache, 2), moved[-2:].movedim(0, -2))
    assert not latest_queries(cache, 4)[..., :2, :].any(), "what was not remembered is not made up"
    moved = torch.cat([moved, torch.stack([step(cache), step(cache)])])
    assert torch.equal(latest_queries(cache, 4), moved[-4:].movedim(0, -2))


def latest_queries(cache: SlotCache, count: int) -> Tensor:
    """Of all active rows and layers, oldest first, [L, N, H, G, count, D]."""
    rows, policy = torch.arange(cache.active), SnapKV(observation=count)
    queries = policy_view(cache, rows, 0, rows, policy, layers=range(SHAPE.layers)).queries
    assert queries is not None
    return queries.unflatten(0, (cache.active, SHAPE.layers)).transpose(0, 1)


def test_a_short_prompt_does_not_inherit_the_queries_of_the_rows_former_owner() -> None:
    cache = make_cache(rows=1)
    cache.require(CacheRequirements(queries=4, per_head=True))
    take_row(cache, 5)
    step(cache)
    cache.free_rows([0])
    take_row(cache, 2)
    assert not latest_queries(cache, 4).any()


@pytest.mark.parametrize(("late", "position"), [(0, 4), (1, 3), (2, 2), (3, 1), (4, 0), (5, None), (9, None)])
def test_a_late_score_lands_on_its_token_or_on_a_prompt_slot_of_its_own(late: int, position: int | None) -> None:
    cache = make_cache()
    cache.require(CacheRequirements(score_dims=2))
    allocations = [take_row(cache, 2), take_row(cache, 2)]
    for _ in range(4):
        step(cache)
    cache.store_token_scores(torch.tensor([1]), torch.tensor([[[7.0]]]), first=1, late=late)
    wanted = cache.slots if position is None else allocations[1].start + position  # the spare slot is nobody's
    assert cache.token_scores.nonzero().tolist() == [[wanted, 1]]


def test_a_late_score_finds_its_token_after_an_eviction_and_stays_with_it() -> None:
    cache = make_cache()
    cache.require(CacheRequirements(score_dims=4))
    take_row(cache, 2)
    for _ in range(5):
        step(cache)
    cache.evict([0], torch.tensor([[0, 2, 3]]))  # positions 2, 4 and 5 of 2 to 5
    cache.store_token_scores(torch.tensor([0]), torch.tensor([[[1.0, 2.0, 3.0]]]), first=1, late=1)
    step(cache)
    cache.evict([0], torch.tensor([[1, 3]]))
    slots = policy_view(cache, torch.tensor([0]), 2, torch.tensor([0]), make("horizon"), first=1)
    assert slots.positions.tolist() == [[4, 6]]
    assert slots.token_scores is not None
    assert slots.token_scores[0, 0].tolist() == [1.0, 2.0, 3.0]


# -- rows without a request ----------------------------------------------------------------------------------------


def half_full(row_slots: int | None) -> SlotCache:
    """Two of four rows in use, the other two left by former owners; one prompt is still fed; all is required."""
    torch.manual_seed(5)
    cache = make_cache(row_slots=row_slots)
    cache.require(CacheRequirements(score_dims=2, queries=3, hidden_states=2, per_head=True))
    for prompt in (2, 4, 3, 5):
        take_row(cache, prompt)
    for _ in range(3):
        step(cache)
        store_hidden_states(cache, torch.randn(4, STATE))
        cache.store_token_scores(torch.arange(4), torch.randn(4, 1, 2))
    cache.free_rows([1, 3])
    feed(cache, cache.allocator.allocate(5), [2])
    torch.manual_seed(6)
    return cache


def everything(cache: SlotCache) -> dict[str, Tensor]:
    """All that anybody holds: each tensor without its spare slot, place or column."""
    facts = {"positions": cache.positions[..., :-1], "token_scores": cache.token_scores[:-1]}
    rings = {"states": cache.hidden_states[:-1], "queries": cache.queries[:-1]}
    host = {"table": cache.table, "host_lengths": cache.host_lengths, "host_pinned": cache.host_pinned}
    tensors = {"kv": cache.kv_LPHTD[..., :-1, :], **facts, **rings, **host}
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("row_slots", [None, EQUAL])
@pytest.mark.parametrize("rows", [2, 3, 4])
def test_a_step_of_more_rows_than_are_active_is_a_step_of_the_active_ones(rows: int, row_slots: int | None) -> None:
    plain, padded = half_full(row_slots), half_full(row_slots)
    keys, values = torch.randn(2, SHAPE.layers, rows, SHAPE.kv_heads, 1, SHAPE.head_dim)
    queries = torch.randn(SHAPE.layers, rows, SHAPE.kv_heads * SHAPE.group, 1, SHAPE.head_dim)
    states, token_scores = torch.randn(rows, STATE), torch.randn(rows, 2, 1)
    for cache, n, asked in ((plain, 2, None), (padded, rows, rows)):
        assert cache.start_step(asked).shape == (n, 1)
        for layer in range(SHAPE.layers):
            cache.write(layer, queries[layer, :n], keys[layer, :n], values[layer, :n])
        cache.finish()
        store_hidden_states(cache, states[:n])
        cache.store_token_scores(torch.arange(n), token_scores[:n], first=1, late=1)
        cache.advance()
        cache.check_integrity()
    before, after = everything(plain), everything(padded)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_step_while_no_row_is_live_changes_only_the_spare_slot() -> None:
    cache = half_full(None)
    before, live = everything(cache), cache.live.clone()
    cache.live.zero_()  # as while a CUDA graph is captured
    cache.start_step(4)
    write_random(cache, 4, 1)
    store_hidden_states(cache, torch.randn(4, STATE))
    cache.store_token_scores(torch.arange(4), torch.randn(4, 3, 2), late=1)
    cache.live.copy_(live)
    after = everything(cache)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert cache.kv_LPHTD[..., -1, :].all(), "somewhere the rows must write"
    cache.check_integrity()


# -- a GPU ---------------------------------------------------------------------------------------------------------


def attention_after(device: torch.device) -> list[Tensor]:
    """The attention that was added up on this device, and each query's sum over what is pinned; always the same run."""
    generator, shape = torch.Generator().manual_seed(3), KVShape(layers=2, kv_heads=2, group=3, head_dim=16)
    cache = SlotCache(shape, slots=200, rows=3, dtype=torch.float32, device=device)
    cache.scaling = 0.25
    cache.require(CacheRequirements(queries=4, per_head=True, accumulated_attention=True, prompt_attention=True))

    def write(rows: int, tokens: int) -> None:
        for layer in range(shape.layers):
            q, k, v = (torch.randn(rows, heads, tokens, 16, generator=generator).to(device) for heads in (6, 2, 2))
            cache.write(layer, q, k, v)
        cache.finish()

    for prompt, pinned in ((5, True), (9, False), (1, True)):
        allocation = cache.allocator.allocate(60)
        assert allocation is not None
        if prompt > 1:
            cache.start_prefill([PromptChunk(allocation=allocation, done=0, tokens=prompt - 1)])
            write(1, prompt - 1)
        cache.assign_row(allocation, prompt, pinned=pinned)
    for count in range(30):
        cache.start_step()
        write(3, 1)
        cache.advance()
        if full := (cache.host_waiting[:3] == 4).nonzero()[:, 0].tolist():
            attention_sums.add(cache, full, 4)
        if count == 17:  # rows 0 and 2 hold 17 thought slots
            attention_sums.add(cache, [0, 2], 4)
            sets = torch.rand(2, shape.layers, shape.kv_heads, 17, generator=generator).argsort(-1)[..., :10]
            cache.evict([0, 2], sets.sort(-1).values.flatten(1, 2).to(device))
    attention_sums.add(cache, [2, 0, 1], 4)
    cache.check_integrity()
    held = [slice(r.start, r.start + int(cache.host_lengths[r.row or 0])) for r in cache.allocations]
    rows, policy = torch.arange(3, device=device), SnapKV(observation=4)
    pinned_log_sums = policy_view(cache, rows, 5, rows, policy, layers=range(shape.layers)).pinned_log_sums
    assert pinned_log_sums is not None
    return [*(cache.accumulated_attention_LHT[:, :, part].cpu() for part in held), pinned_log_sums.cpu()]


def test_all_attention_of_a_query_adds_up_to_one() -> None:
    attention = attention_after(CPU)[1]  # nothing was evicted of this row, and its prompt was watched
    torch.testing.assert_close(attention.sum(dim=-1), torch.full((2, 2), 3.0 * attention.shape[-1]))


@pytest.mark.gpu
def test_attention_is_added_up_on_a_gpu_as_on_the_cpu() -> None:
    for on_gpu, on_cpu in zip(attention_after(torch.device("cuda")), attention_after(CPU), strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-4, atol=1e-5)


# -- sizes and refusals --------------------------------------------------------------------------------------------


def test_the_slots_take_their_bytes_and_one_more_that_is_nobodys() -> None:
    cache = make_cache(slots=17)
    assert cache.bytes_per_slot == 2 * 2 * 2 * 4 * 4
    assert cache.kv_LPHTD.nbytes == 18 * cache.bytes_per_slot


@pytest.mark.parametrize(
    "requirements",
    [
        CacheRequirements(),
        CacheRequirements(score_dims=5),
        CacheRequirements(score_dims=56, score_dtype=torch.bfloat16, per_head=True),
        CacheRequirements(queries=2, per_head=True, accumulated_attention=True),
        CacheRequirements(token_ids=True),
    ],
)
def test_bytes_beside_keys_and_values_are_those_that_are_allocated(requirements: CacheRequirements) -> None:
    cache = make_cache(slots=60)
    cache.require(requirements)
    beside = (cache.positions, cache.token_scores, cache.token_ids, cache.accumulated_attention_LHT)
    assert sum(tensor.nbytes for tensor in beside) == 61 * requirements.bytes_per_slot(SHAPE)


def test_an_arena_that_does_not_fit_says_how_large_it_is_and_what_to_lower() -> None:
    with pytest.raises(UsageError, match=r"cpu has no room for 10{15} slots \(\d+\.\d GiB .* lower slots or max_rows"):
        make_cache(slots=10**15)


def test_a_prompt_cannot_outgrow_its_region() -> None:
    cache = make_cache()
    allocation = cache.allocator.allocate(3)
    with pytest.raises(AssertionError):
        cache.start_prefill([PromptChunk(allocation=allocation, done=2, tokens=2)])


def test_a_row_cannot_outgrow_its_region() -> None:
    cache = make_cache()
    take_row(cache, 3, size=4)
    step(cache)
    step(cache)
    with pytest.raises(AssertionError, match="outgrew its allocation"):
        cache.start_step()


def test_there_are_no_more_rows_than_were_asked_for() -> None:
    cache = make_cache(rows=1)
    take_row(cache, 2, size=4)
    with pytest.raises(AssertionError):
        cache.assign_row(cache.allocator.allocate(4), 1)


def test_only_an_announced_forward_writes_and_only_one_is_announced() -> None:
    cache = make_cache()
    take_row(cache, 2)
    with pytest.raises(AssertionError, match="announce the forward first"):
        write_random(cache, 1, 1)
    cache.start_step()
    with pytest.raises(AssertionError):
        cache.start_step()
    with pytest.raises(AssertionError):
        cache.start_prefill([])


def damage_cache(cache: SlotCache, damage: str) -> None:
    """Row 1 holds positions 0 to 4 of a prompt of 3, in a allocation of 6 slots behind row 0's 7."""
    second = cache.allocations[1]
    if damage == "order":
        cache.positions[0, 0, second.start + 3 : second.start + 5] = torch.tensor([4, 3])
    elif damage == "twice":
        cache.positions[0, 0, second.start + 4] = 3
    elif damage == "prompt":
        cache.positions[0, 0, second.start] = 1
    elif damage == "length":
        cache.lengths[1] = 4
    elif damage == "prompt length":
        cache.prompt_lengths[1] = 2
    elif damage == "unfed":
        cache.lengths[1] = cache.host_lengths[1] = 1
    elif damage == "outgrown":
        second.size = 4
    elif damage == "future":
        cache.next_positions[1] = 4
    elif damage == "start":
        cache.starts[1] = 6
    elif damage == "live":
        cache.live[1] = 0
    elif damage == "state":
        cache.states[1] = 0
    elif damage == "shared state":
        second.state_index = int(cache.states[1].fill_(0))
    elif damage == "ghost":
        cache.live[2] = 1
    elif damage == "row":
        cache.allocations[0].row = 1
    elif damage == "overlap":
        second.start = int(cache.starts[1].fill_(6))
    elif damage == "nobody's allocation":
        cache.allocator.allocate(5).row = 2
    else:
        cache.allocator.free(second)


@pytest.mark.parametrize(
    "damage",
    [
        *(
            "order",
            "twice",
            "prompt",
            "length",
            "prompt length",
            "unfed",
            "outgrown",
            "future",
            "start",
            "live",
            "state",
        ),
        *("ghost", "row", "overlap", "state", "shared state", "nobody's allocation", "a allocation given back"),
    ],
)
def test_check_integrity_finds(damage: str) -> None:
    cache = make_cache()
    take_row(cache, 3, size=7)
    take_row(cache, 3, size=6)
    for _ in range(3):
        step(cache)
    cache.check_integrity()
    damage_cache(cache, damage)
    with pytest.raises(AssertionError):
        cache.check_integrity()
