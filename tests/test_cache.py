from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanthink.budget import Budget, select
from leanthink.cache import KVShape, SlotCache
from leanthink.errors import UsageError
from leanthink.policies import make_policy
from reference.cache_slow import SlowCache

SHAPE = KVShape(layers=2, kv_heads=2, group=3, head_dim=4)
CPU = torch.device("cpu")


def make_cache(rows: int = 4, capacity: int = 40, **options: object) -> SlotCache:
    return SlotCache(SHAPE, rows=rows, capacity=capacity, dtype=torch.float32, device=CPU, **options)  # type: ignore[arg-type]


def write_random(cache: SlotCache, count: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a forward would write: keys, values [L, rows, H, tokens, D] and queries [L, rows, H*G, tokens, D]."""
    keys, values = torch.randn(2, SHAPE.layers, count, SHAPE.kv_heads, tokens, SHAPE.head_dim)
    queries = torch.randn(SHAPE.layers, count, SHAPE.kv_heads * SHAPE.group, tokens, SHAPE.head_dim)
    for layer in range(SHAPE.layers):
        cache.write(layer, queries[layer], keys[layer], values[layer])
    cache.finish()
    return keys, values, queries


def prefill(cache: SlotCache, count: int, tokens: int, slow: SlowCache | None = None) -> None:
    cache.start_prefill(count, tokens)
    keys, values, _ = write_random(cache, count, tokens)
    for row in range(count if slow else 0):
        slow.admit(keys[:, row], values[:, row])


def step(cache: SlotCache, slow: SlowCache | None = None) -> None:
    n = cache.active
    cache.start_step()
    keys, values, _ = write_random(cache, n, 1)
    stamps = torch.randn(n, cache.stamps.shape[-1])
    cache.stamp(torch.arange(n), stamps)
    for row in range(n if slow else 0):
        slow.append(row, keys[:, row, :, 0], values[:, row, :, 0], stamps[row].tolist())


def evict(cache: SlotCache, slow: SlowCache, rows: list[int], budget: Budget, *, per_head: bool) -> None:
    """Rows of equal thought length keep what random scores choose, in both caches."""
    thought = int(cache.host_lengths[rows[0]] - cache.host_prompts[rows[0]])
    shape = (len(rows), SHAPE.layers, SHAPE.kv_heads, thought) if per_head else (len(rows), thought)
    ages = torch.arange(thought - 1, -1, -1).expand(shape)
    kept = select(torch.rand(shape), ages, torch.zeros(shape, dtype=torch.bool), budget)
    cache.evict(rows, kept)
    for i, row in enumerate(rows):
        for layer in range(SHAPE.layers):
            for head in range(SHAPE.kv_heads):
                slow.evict(row, layer, head, (kept[i, layer, head] if per_head else kept[i]).tolist())


def assert_same(cache: SlotCache, slow: SlowCache, *, with_stamps: bool) -> None:
    cache.check_integrity()
    assert cache.active == len(slow.rows)
    for row in range(cache.active):
        assert int(cache.next_positions[row]) == slow.fed[row]
        for layer in range(SHAPE.layers):
            for head in range(SHAPE.kv_heads):
                slots, length = slow.rows[row][layer][head], int(cache.host_lengths[row])
                assert cache.keys[layer][row, head, :length].tolist() == [slot["key"] for slot in slots]
                assert cache.values[layer][row, head, :length].tolist() == [slot["value"] for slot in slots]
                sets = cache.positions[row, layer % cache.positions.shape[1], head % cache.positions.shape[2]]
                assert sets[:length].tolist() == [slot["position"] for slot in slots]
                if with_stamps:
                    thought = slots[slow.prompts[row] :]
                    held = cache.stamps[row, slow.prompts[row] : length].tolist()
                    assert held == [slot["stamp"] for slot in thought]


@given(seed=st.integers(0, 10**6), per_head=st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_history_leaves_the_same_slots_as_the_slow_twin(seed: int, per_head: bool) -> None:
    torch.manual_seed(seed)
    chance = random.Random(seed)
    cache, slow = make_cache(channels=2, per_head=per_head), SlowCache(SHAPE.layers, SHAPE.kv_heads)
    for _ in range(chance.randrange(5, 40)):
        act = chance.choice(["admit", "step", "step", "step", "evict", "retire"])
        if act == "admit" and cache.active < cache.rows:
            prefill(cache, chance.randint(1, cache.rows - cache.active), chance.randint(1, 6), slow)
        elif act == "step" and cache.active and int(cache.host_lengths[: cache.active].max()) < cache.capacity:
            step(cache, slow)
        elif act == "evict" and cache.active:
            thought = (cache.host_lengths - cache.host_prompts)[: cache.active].tolist()
            wanted = chance.choice(thought)
            rows = [row for row in range(cache.active) if thought[row] == wanted]
            slots = max(1, wanted + chance.choice([-3, -1, 0, 1, 5]))  # above, at and below what is held
            window = chance.randint(0, slots)
            if wanted:
                evict(cache, slow, rows, Budget(slots=slots, window=window), per_head=per_head)
        elif act == "retire" and cache.active:
            row = chance.randrange(cache.active)
            cache.retire([row])
            slow.retire(row)
        assert_same(cache, slow, with_stamps=not per_head)


def test_rows_that_retire_together_leave_the_others_untouched_in_a_prefix() -> None:
    cache = make_cache(rows=6, num_queries=2)
    for tokens in (1, 2, 3, 4, 5, 6):
        prefill(cache, 1, tokens)
    held = [cache.keys[1][row].clone() for row in range(6)]
    asked = [cache.queries[1][row].clone() for row in range(6)]
    sources, targets = cache.retire([0, 2, 5])
    assert (sorted(sources), targets) == ([3, 4], [0, 2])
    assert cache.active == 3
    was = {0: sources[0], 1: 1, 2: sources[1]}
    for row, old in was.items():
        assert int(cache.host_lengths[row]) == old + 1
        assert torch.equal(cache.keys[1][row, :, : old + 1], held[old][:, : old + 1])
        assert torch.equal(cache.queries[1][row], asked[old])
    cache.check_integrity()


def test_the_ring_shows_the_latest_queries_oldest_first() -> None:
    cache = make_cache(num_queries=5, per_head=True)
    cache.start_prefill(2, 3)
    _, _, prompt_queries = write_random(cache, 2, 3)
    seen = [prompt_queries]
    for _ in range(4):
        cache.start_step()
        seen.append(write_random(cache, 2, 1)[2])
    every = torch.cat(seen, dim=3)  # [L, rows, H*G, tokens, D]
    policy = make_policy("snapkv")
    object.__setattr__(policy, "observation", 4)
    rows = torch.arange(2)
    for layer in range(SHAPE.layers):
        shown = cache.show(rows, 4, torch.zeros(2, dtype=torch.int64), policy, layer).queries
        assert shown is not None
        assert torch.equal(shown.flatten(1, 2), every[layer, :, :, -4:])


def test_a_short_prompt_does_not_inherit_the_queries_of_the_rows_former_owner() -> None:
    cache = make_cache(rows=1, num_queries=4, per_head=True)
    prefill(cache, 1, 4)
    cache.retire([0])
    prefill(cache, 1, 2)
    assert int((cache.queries[0][0] == 0).all(dim=-1).sum()) == 2 * SHAPE.kv_heads * SHAPE.group


def test_slots_show_thought_only_and_count_ages_from_the_next_position() -> None:
    cache = make_cache(channels=1)
    prefill(cache, 2, 3)
    for _ in range(5):
        step(cache)
    cache.evict([0, 1], torch.tensor([[0, 2, 4], [1, 3, 4]]))
    seeds = torch.tensor([7, 8])
    slots = cache.show(torch.tensor([0, 1]), 3, seeds, make_policy("window"))
    assert slots.positions.tolist() == [[3, 5, 7], [4, 6, 7]]
    assert slots.ages.tolist() == [[4, 2, 0], [3, 1, 0]]
    assert slots.next_position.tolist() == [8, 8]
    assert slots.prompt_tokens.tolist() == [3, 3]
    assert slots.seeds.tolist() == [7, 8]
    assert slots.stamps is None


def test_reserved_bytes_are_rows_times_capacity_times_bytes_per_slot() -> None:
    cache = make_cache(rows=3, capacity=17)
    assert cache.bytes_per_slot == 2 * 2 * 2 * 4 * 4
    assert cache.reserved_bytes == 3 * 17 * cache.bytes_per_slot


def test_slabs_that_do_not_fit_say_how_large_they_are_and_what_to_lower() -> None:
    with pytest.raises(UsageError, match=r"1000000 rows of 1000000000 slots \(\d+\.\d GiB .* lower max_rows"):
        make_cache(rows=10**6, capacity=10**9)


def test_a_row_cannot_outgrow_its_capacity() -> None:
    cache = make_cache(capacity=3)
    prefill(cache, 1, 3)
    with pytest.raises(AssertionError, match="outgrew the 3 slots"):
        cache.start_step()


@pytest.mark.parametrize("damage", ["order", "prompt", "length", "future"])
def test_check_integrity_finds(damage: str) -> None:
    cache = make_cache()
    prefill(cache, 2, 3)
    step(cache)
    step(cache)
    cache.check_integrity()
    if damage == "order":
        cache.positions[1, 0, 0, 3] = 4
    elif damage == "prompt":
        cache.positions[1, 0, 0, 0] = 1
    elif damage == "length":
        cache.lengths[1] = 4
    else:
        cache.next_positions[1] = 4
    with pytest.raises(AssertionError):
        cache.check_integrity()
