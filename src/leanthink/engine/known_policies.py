"""The policies that an engine knows, and where the channels of each lie among the stamps."""

from __future__ import annotations

from collections.abc import Container, Iterable

from leanthink.engine.cache_requirements import Wishes
from leanthink.policies import Policy

MOST_IDLE = 16  # policies that nobody uses and that are remembered all the same, as they often come again


class KnownPolicies:
    """Remembers policies, so that one which comes again finds its channels, and gives those of old ones to new ones.

    Attributes:
        policies: those that are known; one that is used keeps its place.
        columns: of each, the first of its channels.
    """

    def __init__(self) -> None:
        self.policies: list[Policy] = []
        self.columns: list[int] = []
        self._asked: list[int] = []  # when each was last asked for
        self._clock = 0

    def find(self, policy: Policy) -> Policy | None:
        """The one that is known and the same, or equal."""
        for index, known in enumerate(self.policies):
            if known is policy or _are_equal(known, policy):
                self._asked[index] = self._tick()
                return known
        return None

    def add(self, policy: Policy, used: Container[int]) -> int:
        """Give a new policy the first channels that are free; returns the first of them.

        The one that nobody has asked for longest is forgotten, if more than MOST_IDLE would be idle. `used` are the
        `id()` of policies that are not idle.
        """
        idle = [index for index, known in enumerate(self.policies) if id(known) not in used]
        index = len(self.policies)
        if len(idle) >= MOST_IDLE:
            index = min(idle, key=self._asked.__getitem__)
        taken = [
            (column, column + Wishes.of(other).channels)
            for at, (other, column) in enumerate(zip(self.policies, self.columns, strict=True))
            if at != index
        ]
        column, place = first_gap(taken, Wishes.of(policy).channels), slice(index, index + 1)
        self.policies[place], self.columns[place], self._asked[place] = [policy], [column], [self._tick()]
        return column

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def first_gap(taken: Iterable[tuple[int, int]], size: int) -> int:
    """Where so many channels first fit between those that are taken, (first, end) each."""
    at = 0
    for first, end in sorted(taken):
        if first - at >= size:
            break
        at = max(at, end)
    return at


def _are_equal(known: Policy, policy: Policy) -> bool:
    """Whether they rank alike; of those that hold tensors nobody can say."""
    if type(known) is not type(policy):
        return False
    try:
        return bool(known == policy)
    except (RuntimeError, TypeError, ValueError):
        return False
