"""What a cache has to remember beside keys and values, because a policy wants to be shown it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import torch

from leanthink.models.kv_shape import KVShape
from leanthink.policies import Policy


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What policies want to be shown, beyond ages and positions.

    Attributes:
        channels: numbers stamped on a slot, those of all policies side by side.
        stamp_dtype: in which they are held.
        queries: of how many of the latest tokens each layer's queries are remembered.
        states: of how many of the latest tokens the states are remembered.
        per_head: whether any policy keeps different slots in different layers and heads.
        token_ids: whether the token of each slot is remembered.
        attention: whether the attention that each slot gets is added up, layer by layer and head by head.
        prompt_attention: whether that begins with the prompt's own queries.
    """

    channels: int = 0
    stamp_dtype: torch.dtype = torch.float32
    queries: int = 0
    states: int = 0
    per_head: bool = False
    token_ids: bool = False
    attention: bool = False
    prompt_attention: bool = False

    @classmethod
    def of(cls, policy: Policy) -> Wishes:
        """What this policy alone wants to be shown."""
        return cls(
            channels=policy.num_sets * policy.channels,
            stamp_dtype=policy.stamp_dtype,
            queries=policy.num_queries,
            states=policy.offsets[-1] + policy.stride if policy.channels else 0,
            per_head=not policy.is_shared,
            token_ids=bool(policy.texts),
            attention=policy.accumulates,
            prompt_attention=policy.accumulates and not policy.pins_prompt,
        )

    def behind(self, others: Wishes) -> Wishes:
        """The same with its channels behind those of others."""
        return replace(self, channels=others.channels + self.channels, stamp_dtype=self._stamp_dtype(others))

    def joined(self, other: Wishes) -> Wishes:
        """What serves both: the larger number of each, and whatever either wants."""
        names = [field.name for field in fields(self) if field.name != "stamp_dtype"]
        most = {name: max(getattr(self, name), getattr(other, name)) for name in names}
        return Wishes(**most, stamp_dtype=self._stamp_dtype(other))

    def _stamp_dtype(self, other: Wishes) -> torch.dtype:
        """One that holds the stamps of both."""
        if not (self.channels and other.channels):
            return self.stamp_dtype if self.channels else other.stamp_dtype
        return torch.promote_types(self.stamp_dtype, other.stamp_dtype)

    def bytes_per_slot(self, shape: KVShape) -> int:
        """Bytes of what is remembered of each slot beside its keys and values."""
        heads = shape.layers * shape.kv_heads
        positions = torch.int64.itemsize * (heads if self.per_head else 1)
        attention = torch.float32.itemsize * heads * self.attention
        return positions + self.channels * self.stamp_dtype.itemsize + torch.int64.itemsize * self.token_ids + attention


def bytes_per_slot(shape: KVShape, dtype: torch.dtype, policies: Iterable[Policy]) -> int:
    """Bytes of one slot in all: its keys and values, and what these policies want remembered beside them."""
    wishes = Wishes()
    for policy in policies:
        wishes = wishes.joined(Wishes.of(policy).behind(wishes))
    return shape.bytes_per_slot(dtype) + wishes.bytes_per_slot(shape)
