from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanthink.engine.slot_allocator import Allocation, SlotAllocator

TOTAL, EQUAL = 23, 4

# An act is (True, slots to reserve) or (False, which of the allocations in use is released, modulo their number).
ACTS = st.lists(
    st.one_of(
        st.tuples(st.just(True), st.integers(1, TOTAL)),
        st.tuples(st.just(True), st.integers(1, 6)),
        st.tuples(st.just(False), st.integers(0, 100)),
    ),
    max_size=40,
)


def first_gap(owners: list[int | None], size: int) -> int | None:
    """The lowest start of `size` free slots in a row, looking at one slot after the other."""
    for start in range(len(owners) - size + 1):
        if all(owner is None for owner in owners[start : start + size]):
            return start
    return None


def assert_same(
    allocator: SlotAllocator, owners: list[int | None], held: dict[int, Allocation], states: dict[int, int]
) -> None:
    """Every allocation lies where the list of owners says, keeps its state, and no other allocation is in use."""
    allocator.check_integrity()
    assert set(allocator.allocations) == set(held.values())
    for name, allocation in held.items():
        assert [slot for slot, owner in enumerate(owners) if owner == name] == list(
            range(allocation.start, allocation.end)
        )
        assert allocation.state_index == states[name]
    assert allocator.used == sum(owner is not None for owner in owners)


@given(acts=ACTS)
@settings(max_examples=150, deadline=None)
def test_exact_regions_go_to_the_first_gap_that_is_large_enough_and_stay_there(acts: list[tuple[bool, int]]) -> None:
    allocator, owners, held = SlotAllocator(TOTAL), [None] * TOTAL, {}
    states = dict[int, int]()  # by name, also of what is given back
    assert allocator.max_allocation == TOTAL
    for name, (allocates, number) in enumerate(acts):
        if allocates:
            start, allocation = first_gap(owners, number), allocator.allocate(number)
            assert (allocation is None) == (start is None)
            if allocation is not None:
                assert (allocation.start, allocation.size, allocation.row) == (start, number, None)
                assert all(owner is None for owner in owners[allocation.start : allocation.end])
                owners[allocation.start : allocation.end] = [name] * number
                states[name] = min(set(range(TOTAL)) - {states[other] for other in held})
                held[name] = allocation
        elif held:
            gone = list(held)[number % len(held)]
            assert allocator.free(held.pop(gone)) is None, "exact allocations never move"
            owners = [None if owner == gone else owner for owner in owners]
        assert_same(allocator, owners, held, states)


@given(acts=ACTS)
@settings(max_examples=150, deadline=None)
def test_equal_regions_stay_a_prefix_and_the_last_moves_into_a_gap(acts: list[tuple[bool, int]]) -> None:
    allocator, owners, held = SlotAllocator(TOTAL, fixed_size=EQUAL), [None] * TOTAL, {}
    states = dict[int, int]()  # by name, also of what is given back
    assert allocator.max_allocation == EQUAL
    for name, (allocates, number) in enumerate(acts):
        if allocates:
            allocation = allocator.allocate(1 + number % EQUAL)
            assert (allocation is None) == (len(held) == TOTAL // EQUAL), "all are taken, or there is room"
            if allocation is not None:
                assert (allocation.start, allocation.size) == (len(held) * EQUAL, EQUAL)
                owners[allocation.start : allocation.end] = [name] * EQUAL
                states[name] = min(set(range(TOTAL)) - {states[other] for other in held})
                held[name] = allocation
        elif held:
            gone = list(held)[number % len(held)]
            last = owners[(len(held) - 1) * EQUAL]
            allocation, was = held.pop(gone), len(held) * EQUAL
            moved = allocator.free(allocation)
            owners = [None if owner == gone else owner for owner in owners]
            if gone == last:
                assert moved is None
            else:
                assert moved == (held[last], was)
                owners[was : was + EQUAL] = [None] * EQUAL
                owners[allocation.start : allocation.end] = [last] * EQUAL
        assert_same(allocator, owners, held, states)
        assert owners == sorted(owners, key=lambda owner: owner is None), "the allocations in use come first"


def test_a_region_is_given_back_whole_and_fills_again() -> None:
    allocator = SlotAllocator(10)
    first, second, third = (allocator.allocate(size) for size in (3, 4, 3))
    assert allocator.allocate(1) is None
    allocator.free(second)
    assert allocator.used == 6
    assert allocator.allocate(5) is None
    assert [allocator.allocate(2).start, allocator.allocate(2).start] == [3, 5]
    assert [allocation.start for allocation in allocator.allocations] == [first.start, 3, 5, third.start]


@pytest.mark.parametrize("damage", ["overlap", "order", "outside", "gap"])
def test_check_integrity_finds(damage: str) -> None:
    allocator = SlotAllocator(12, fixed_size=None if damage == "outside" else 4)
    first, second = allocator.allocate(4), allocator.allocate(4)
    allocator.check_integrity()
    if damage == "overlap":
        second.start -= 1
    elif damage == "order":
        first.start, second.start = second.start, first.start
    elif damage == "outside":
        second.start = 9
    else:
        second.start = 8
    with pytest.raises(AssertionError):
        allocator.check_integrity()


def test_two_exact_regions_that_share_a_slot_are_found() -> None:
    allocator = SlotAllocator(12)
    allocator.allocate(4)
    allocator.allocate(4).start = 3
    with pytest.raises(AssertionError, match="overlap"):
        allocator.check_integrity()


@pytest.mark.parametrize(("equal", "size"), [(None, 13), (None, 0), (4, 5)])
def test_what_can_never_fit_is_not_asked_for(equal: int | None, size: int) -> None:
    with pytest.raises(AssertionError, match="never fit"):
        SlotAllocator(12, fixed_size=equal).allocate(size)
