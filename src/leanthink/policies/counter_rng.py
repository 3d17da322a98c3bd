"""The hash behind every random number here: SplitMix64 (Steele, Lea and Flood, 2014) on int64 tensors.

A hash of counters and not a generator with a state: the same on every device, in any batch, in any order of requests.
"""

from __future__ import annotations

from torch import Tensor

# The published constants as the signed int64 that torch has; products wrap around, which is what the hash wants.
STEP = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def mix(bits: Tensor) -> Tensor:
    """The finaliser: every bit of the input bears on every bit of the result."""
    bits = (bits ^ shift_right(bits, 30)) * _FIRST
    bits = (bits ^ shift_right(bits, 27)) * _SECOND
    return bits ^ shift_right(bits, 31)


def shift_right(bits: Tensor, by: int) -> Tensor:
    """Right shift that brings in zeros; torch's own repeats the sign bit."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
