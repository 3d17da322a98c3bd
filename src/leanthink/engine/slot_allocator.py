"""Who holds which slots of the arena: contiguous regions, first fit, nothing ever handed out twice."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass


@dataclass(eq=False)
class Region:
    """Slots [start, start + size) of the arena; `row` is the row that decodes on them, None while the prompt is fed."""

    start: int
    size: int
    row: int | None = None

    @property
    def end(self) -> int:
        """The first slot behind it."""
        return self.start + self.size


class Arena:
    """`total` slots, given out in contiguous regions.

    Args:
        total: slots in all.
        equal: None: a region has as many slots as are asked for, and lies where it first fits. A number: every region
            has so many slots, and the regions in use always come first, which lets one call attend to all of them.
    """

    def __init__(self, total: int, *, equal: int | None = None) -> None:
        assert equal is None or 0 < equal <= total
        self.total, self.equal = total, equal
        self.regions: list[Region] = []  # in use, by start
        self.widest = 0  # slots of the largest region ever given out

    @property
    def largest(self) -> int:
        """Most slots that one region can have in an empty arena."""
        return self.total if self.equal is None else self.equal

    @property
    def used(self) -> int:
        """Slots in use."""
        return sum(region.size for region in self.regions)

    def reserve(self, size: int) -> Region | None:
        """A region of `size` slots, or None while there is no room."""
        assert 0 < size <= self.largest, "the engine refuses what can never fit"
        size = self.equal or size
        start = 0
        for region in self.regions:
            if region.start - start >= size:
                break
            start = region.end
        if start + size > self.total:
            return None
        new = Region(start=start, size=size)
        self.widest = max(self.widest, size)
        insort(self.regions, new, key=lambda region: region.start)
        return new

    def release(self, region: Region) -> tuple[Region, int] | None:
        """Give a region back; with equal regions the last one moves into the gap: (that region, where it was)."""
        self.regions.remove(region)
        if self.equal is None or not self.regions or self.regions[-1].start < region.start:
            return None
        last = self.regions.pop()
        was, last.start = last.start, region.start
        insort(self.regions, last, key=lambda entry: entry.start)
        return last, was

    def check_integrity(self) -> None:
        """Raise AssertionError unless the regions lie apart, inside the arena and, if equal, in a prefix."""
        ends = [0, *(region.end for region in self.regions)]
        starts = [region.start for region in self.regions]
        assert all(end <= start for end, start in zip(ends, starts, strict=False)), "regions overlap"
        assert ends[-1] <= self.total
        if self.equal is not None:
            assert starts == [self.equal * i for i in range(len(starts))], starts
