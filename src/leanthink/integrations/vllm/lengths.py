"""How many slots a request holds: a function of lengths alone, so that scheduler and workers agree without a word.

Logical lengths count the tokens that were fed, physical ones the slots that are held.
"""

from __future__ import annotations

from dataclasses import dataclass

from leanthink.policies.budget import Budget

NEVER = 2**62  # a position that no request reaches
# On model runner V2 the host sees a token when the step that feeds it is under way, and knows of it in the one after.
LATE = 1


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Tokens of one request that are fed together, because no eviction comes between them.

    Attributes:
        tokens: how many, at least 1.
        first_slot: the slot of the first of them, counted from the request's own start; the others follow it.
        evicts: whether an eviction is due when they are fed.
    """

    tokens: int
    first_slot: int
    evicts: bool


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """The lengths of one request with a budget.

    Attributes:
        prompt: its tokens.
        budget: of its thought.
        answer_at: position of `</think>`, or of a token soon after it where that is noticed late, or `prompt` where
            the prompt has closed the thought; NEVER while it thinks.
    """

    prompt: int
    budget: Budget
    answer_at: int = NEVER

    @property
    def due(self) -> int:
        """Thought slots at which an eviction is due."""
        return self.budget.max_thought_slots

    def _thought(self, logical: int) -> int:
        """Thought tokens among the first `logical` ones; below 0 inside the prompt."""
        return min(logical, self.answer_at) - self.prompt

    def physical(self, logical: int) -> int:
        """Slots held when so many tokens are fed and the eviction that was due, if any, is over."""
        thought, slots = self._thought(logical), self.budget.slots
        held = thought if thought < self.due else slots + (thought - slots) % self.budget.eviction_interval
        return self.prompt + held + max(0, logical - self.answer_at)

    def peak(self, logical: int) -> int:
        """Most slots held at any time on the way to `logical` tokens: what must be allocated for them."""
        return max(self.prompt + min(self._thought(logical), self.due), self.physical(logical))

    def next_eviction(self, logical: int) -> int:
        """The logical length, above this one, at which the next eviction is due; NEVER if none comes any more."""
        first = self.prompt + self.due
        past = logical - first
        length = first if past < 0 else logical + self.budget.eviction_interval - past % self.budget.eviction_interval
        return length if length <= self.answer_at else NEVER

    def pieces(self, logical: int, tokens: int) -> list[Piece]:
        """How to feed the next `tokens` tokens after `logical` ones."""
        pieces = []
        while tokens:
            eviction = self.next_eviction(logical)
            fed = min(tokens, eviction - logical)
            evicts = logical + fed == eviction
            pieces.append(Piece(tokens=fed, first_slot=self.physical(logical), evicts=evicts))
            logical, tokens = logical + fed, tokens - fed
        return pieces
