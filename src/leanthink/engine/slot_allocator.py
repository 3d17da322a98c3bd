"""Who holds which slots of the cache: contiguous allocations, first fit, nothing ever handed out twice."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from itertools import count


@dataclass(eq=False)
class Allocation:
    """Slots [start, start + size) of the cache; `row` is the row that decodes on them, None while the prompt is fed.

    `state_index` says where the layers that hold no slots keep what they know of the request: it stays the same until
    the allocation is given back. `cached_tokens` of the prompt are copied from another. `intact`: what was written into
    the slots still lies there.
    """

    start: int
    size: int
    state_index: int = 0
    row: int | None = None
    cached_tokens: int = 0
    intact: bool = True

    @property
    def end(self) -> int:
        """The first slot behind it."""
        return self.start + self.size


class SlotAllocator:
    """`total` slots, given out in contiguous allocations.

    Args:
        total: slots in all.
        fixed_size: None: an allocation has as many slots as are asked for, and lies where it first fits. A number:
            every allocation has so many slots, and those in use always come first, which lets one call attend to all.
    """

    def __init__(self, total: int, *, fixed_size: int | None = None) -> None:
        assert fixed_size is None or 0 < fixed_size <= total
        self.total, self.fixed_size = total, fixed_size
        self.allocations: list[Allocation] = []  # in use, by start
        self.largest_so_far = 0  # slots of the largest allocation ever given out

    @property
    def max_allocation(self) -> int:
        """Most slots that one allocation can have where none is in use."""
        return self.total if self.fixed_size is None else self.fixed_size

    @property
    def used(self) -> int:
        """Slots in use."""
        return sum(allocation.size for allocation in self.allocations)

    def allocate(self, size: int) -> Allocation | None:
        """An allocation of `size` slots, or None while there is no room."""
        assert 0 < size <= self.max_allocation, "the engine refuses what can never fit"
        size = self.fixed_size or size
        start = 0
        for allocation in self.allocations:
            if allocation.start - start >= size:
                break
            start = allocation.end
        if start + size > self.total:
            return None
        taken = {allocation.state_index for allocation in self.allocations}
        free = next(index for index in count() if index not in taken)  # below the number of rows: each holds one
        new = Allocation(start=start, size=size, state_index=free)
        self.largest_so_far = max(self.largest_so_far, size)
        insort(self.allocations, new, key=lambda allocation: allocation.start)
        return new

    def free(self, allocation: Allocation) -> tuple[Allocation, int] | None:
        """Give one back; of those of fixed size the last moves into the gap: (that allocation, where it was)."""
        self.allocations.remove(allocation)
        if self.fixed_size is None or not self.allocations or self.allocations[-1].start < allocation.start:
            return None
        last = self.allocations.pop()
        was, last.start, allocation.intact = last.start, allocation.start, False
        insort(self.allocations, last, key=lambda other: other.start)
        return last, was

    def check_integrity(self) -> None:
        """Raise AssertionError unless the allocations lie apart, inside the cache and, of fixed size, in a prefix.

        Nor may two of them have one state index.
        """
        ends = [0, *(allocation.end for allocation in self.allocations)]
        starts = [allocation.start for allocation in self.allocations]
        assert all(end <= start for end, start in zip(ends, starts, strict=False)), "allocations overlap"
        assert ends[-1] <= self.total
        assert len({allocation.state_index for allocation in self.allocations}) == len(starts), "a state is shared"
        if self.fixed_size is not None:
            assert starts == [self.fixed_size * i for i in range(len(starts))], starts
