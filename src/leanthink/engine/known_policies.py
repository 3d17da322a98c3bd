"""The policies that an engine knows, and where the scores of each lie among the token scores of a slot."""

from __future__ import annotations

from collections.abc import Container, Iterable

from leanthink.engine.cache_requirements import CacheRequirements
from leanthink.policies import Policy

MAX_IDLE = 16  # policies that nobody uses and that are remembered all the same, as they often come again


class KnownPolicies:
    """Keeps policies, so that one which comes again finds its columns, and gives those of old ones to new ones.

    Attributes:
        policies: those that are known; one that is used keeps its place.
        columns: of each, the first of its columns of token scores.
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
                self._asked[index] = self._advance_clock()
                return known
        return None

    def add(self, policy: Policy, used: Container[int]) -> int:
        """Give a new policy the first columns that are free; returns the first of them.

        The one that nobody has asked for longest is forgotten, if more than MAX_IDLE would be idle. `used` are the
        `id()` of policies that are not idle.
        """
        idle = [index for index, known in enumerate(self.policies) if id(known) not in used]
        index = len(self.policies)
        if len(idle) >= MAX_IDLE:
            index = min(idle, key=self._asked.__getitem__)
        taken = [
            (column, column + CacheRequirements.of(other).score_dims)
            for at, (other, column) in enumerate(zip(self.policies, self.columns, strict=True))
            if at != index
        ]
        column, place = first_gap(taken, CacheRequirements.of(policy).score_dims), slice(index, index + 1)
        self.policies[place], self.columns[place], self._asked[place] = [policy], [column], [self._advance_clock()]
        return column

    def _advance_clock(self) -> int:
        self._clock += 1
        return self._clock


def first_gap(taken: Iterable[tuple[int, int]], size: int) -> int:
    """Where so many columns first fit between those that are taken, (first, end) each."""
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
