from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanthink.engine.slot_allocator import Arena, Region

TOTAL, EQUAL = 23, 4

# An act is (True, slots to reserve) or (False, which of the regions in use is released, modulo their number).
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


def assert_same(arena: Arena, owners: list[int | None], held: dict[int, Region]) -> None:
    """Every region lies where the list of owners says, and no other region is in use."""
    arena.check_integrity()
    assert set(arena.regions) == set(held.values())
    for name, region in held.items():
        assert [slot for slot, owner in enumerate(owners) if owner == name] == list(range(region.start, region.end))
    assert arena.used == sum(owner is not None for owner in owners)


@given(acts=ACTS)
@settings(max_examples=150, deadline=None)
def test_exact_regions_go_to_the_first_gap_that_is_large_enough_and_stay_there(acts: list[tuple[bool, int]]) -> None:
    arena, owners, held = Arena(TOTAL), [None] * TOTAL, {}
    assert arena.largest == TOTAL
    for name, (reserves, number) in enumerate(acts):
        if reserves:
            start, region = first_gap(owners, number), arena.reserve(number)
            assert (region is None) == (start is None)
            if region is not None:
                assert (region.start, region.size, region.row) == (start, number, None)
                assert all(owner is None for owner in owners[region.start : region.end])
                owners[region.start : region.end] = [name] * number
                held[name] = region
        elif held:
            gone = list(held)[number % len(held)]
            assert arena.release(held.pop(gone)) is None, "exact regions never move"
            owners = [None if owner == gone else owner for owner in owners]
        assert_same(arena, owners, held)


@given(acts=ACTS)
@settings(max_examples=150, deadline=None)
def test_equal_regions_stay_a_prefix_and_the_last_moves_into_a_gap(acts: list[tuple[bool, int]]) -> None:
    arena, owners, held = Arena(TOTAL, equal=EQUAL), [None] * TOTAL, {}
    assert arena.largest == EQUAL
    for name, (reserves, number) in enumerate(acts):
        if reserves:
            region = arena.reserve(1 + number % EQUAL)
            assert (region is None) == (len(held) == TOTAL // EQUAL), "all are taken, or there is room"
            if region is not None:
                assert (region.start, region.size) == (len(held) * EQUAL, EQUAL)
                owners[region.start : region.end] = [name] * EQUAL
                held[name] = region
        elif held:
            gone = list(held)[number % len(held)]
            last = owners[(len(held) - 1) * EQUAL]
            region, was = held.pop(gone), len(held) * EQUAL
            moved = arena.release(region)
            owners = [None if owner == gone else owner for owner in owners]
            if gone == last:
                assert moved is None
            else:
                assert moved == (held[last], was)
                owners[was : was + EQUAL] = [None] * EQUAL
                owners[region.start : region.end] = [last] * EQUAL
        assert_same(arena, owners, held)
        assert owners == sorted(owners, key=lambda owner: owner is None), "the regions in use come first"


def test_a_region_is_given_back_whole_and_fills_again() -> None:
    arena = Arena(10)
    first, second, third = (arena.reserve(size) for size in (3, 4, 3))
    assert arena.reserve(1) is None
    arena.release(second)
    assert arena.used == 6
    assert arena.reserve(5) is None
    assert [arena.reserve(2).start, arena.reserve(2).start] == [3, 5]
    assert [region.start for region in arena.regions] == [first.start, 3, 5, third.start]


@pytest.mark.parametrize("damage", ["overlap", "order", "outside", "gap"])
def test_check_integrity_finds(damage: str) -> None:
    arena = Arena(12, equal=None if damage == "outside" else 4)
    first, second = arena.reserve(4), arena.reserve(4)
    arena.check_integrity()
    if damage == "overlap":
        second.start -= 1
    elif damage == "order":
        first.start, second.start = second.start, first.start
    elif damage == "outside":
        second.start = 9
    else:
        second.start = 8
    with pytest.raises(AssertionError):
        arena.check_integrity()


def test_two_exact_regions_that_share_a_slot_are_found() -> None:
    arena = Arena(12)
    arena.reserve(4)
    arena.reserve(4).start = 3
    with pytest.raises(AssertionError, match="overlap"):
        arena.check_integrity()


@pytest.mark.parametrize(("equal", "size"), [(None, 13), (None, 0), (4, 5)])
def test_what_can_never_fit_is_not_asked_for(equal: int | None, size: int) -> None:
    with pytest.raises(AssertionError, match="never fit"):
        Arena(12, equal=equal).reserve(size)
