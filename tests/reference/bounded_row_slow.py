"""A request with a budget, one token at a time and in lists: the reference implementation of the plugin for vLLM.

It counts and ranks as the horizon policy is defined, with a predictor that adds up the states it is shown.
"""

from __future__ import annotations

from collections.abc import Sequence


class SlowRow:
    """What is held after each token; positions ascend."""

    def __init__(
        self, *, prompt: int, slots: int, window: int, interval: int, horizons: Sequence[int], offsets: Sequence[int]
    ) -> None:
        self.prompt, self.slots, self.window, self.interval = prompt, slots, window, interval
        self.horizons, self.offsets = horizons, offsets
        self.states: list[list[float]] = []
        self.thought: list[int] = []
        self.answer: list[int] = []
        self.most = 0

    @property
    def held(self) -> int:
        return min(len(self.states), self.prompt) + len(self.thought) + len(self.answer)

    def feed(self, state: list[float], *, answer: bool) -> bool:
        """Feed the next token; whether that brought an eviction."""
        position = len(self.states)
        self.states.append(state)
        if position >= self.prompt:
            (self.answer if answer else self.thought).append(position)
        self.most = max(self.most, self.held)
        if answer or len(self.thought) < self.slots + self.interval:
            return False
        old = self.thought[: len(self.thought) - self.window]
        ranked = sorted(old, key=lambda at: (self.score(at), at), reverse=True)
        self.thought = sorted(ranked[: self.slots - self.window] + self.thought[len(old) :])
        return True

    def score(self, at: int) -> float:
        age = len(self.states) - 1 - at
        if age < self.horizons[0]:
            return 1e6 - age
        channel = max(c for c, horizon in enumerate(self.horizons) if horizon <= age)
        return sum(self.states[at + offset][channel] for offset in self.offsets)
