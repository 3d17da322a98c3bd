"""What a cache has to remember beside keys and values, because a policy wants to be shown it."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What policies want to be shown, beyond ages and positions.

    Attributes:
        channels: numbers stamped on a slot, those of all policies side by side.
        queries: of how many of the latest tokens each layer's queries are remembered.
        states: of how many of the latest tokens the states are remembered.
        per_head: whether any policy keeps different slots in different layers and heads.
        token_ids: whether the token of each slot is remembered.
        attention: whether the attention that each slot gets is added up, layer by layer and head by head.
        prompt_attention: whether that begins with the prompt's own queries.
    """

    channels: int = 0
    queries: int = 0
    states: int = 0
    per_head: bool = False
    token_ids: bool = False
    attention: bool = False
    prompt_attention: bool = False

    def joined(self, other: Wishes) -> Wishes:
        """What serves both: the larger number of each, and whatever either wants."""
        names = [field.name for field in fields(self)]
        return Wishes(**{name: max(getattr(self, name), getattr(other, name)) for name in names})
