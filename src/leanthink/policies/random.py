"""The policy that keeps a random set, shared by all layers and heads: what any ranking must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from leanthink.policies.policy import Policy, Slots

# The constants of the splitmix64 finaliser (Steele, Lea, Flood 2014), as the signed int64 that torch has.
_STEP = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


@dataclass(frozen=True, kw_only=True)
class Random(Policy):
    """Keep a uniformly random set, drawn anew at every eviction from the request's seed."""

    name: ClassVar[str] = "random"

    def score(self, slots: Slots) -> Tensor:
        """A uniform number in [0, 1) for each (seed, next position, position), [R, S]."""
        return uniform(slots.seeds[:, None], slots.next_position[:, None], slots.positions)


def uniform(first: Tensor, *others: Tensor | int) -> Tensor:
    """A float32 in [0, 1) that is a pure function of the counters: int64 tensors, which broadcast, or integers.

    A hash and not a generator: the same on every device, in any batch, and in any order of requests. int64
    products wrap around, which is what the hash wants.
    """
    mixed = _mix(first + _STEP)
    for counter in others:
        mixed = _mix(mixed * _STEP + counter + _STEP)
    return _shift(mixed, 40).float() * 2.0**-24


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift(bits, 30)) * _FIRST
    bits = (bits ^ _shift(bits, 27)) * _SECOND
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, by: int) -> Tensor:
    """Right shift that brings in zeros; torch's own repeats the sign bit."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
