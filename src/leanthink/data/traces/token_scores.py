"""The scores that a policy gave each token, packed small enough to lie in a trace."""

from __future__ import annotations

import base64
import binascii
import struct
from dataclasses import dataclass
from itertools import pairwise

from leanthink.utils.errors import UsageError

BYTES = 2  # of one number


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of each generated token: higher is more important, NaN where there are none.

    Attributes:
        horizons: reading distances in tokens, ascending, one for each number of a token; empty for one number a token.
        float16: the numbers, token by token, as little-endian IEEE 754 half floats in base64.

    Raises:
        UsageError: horizons that do not ascend from at least 1, or numbers that cannot be unpacked.
    """

    horizons: tuple[int, ...]
    float16: str

    def __post_init__(self) -> None:
        whole = all(isinstance(horizon, int) and not isinstance(horizon, bool) for horizon in self.horizons)
        if not whole or any(a >= b for a, b in pairwise((0, *self.horizons))):
            raise UsageError(f"scores: horizons must be integers that ascend from at least 1, got {self.horizons}")
        try:
            size = len(base64.b64decode(self.float16, validate=True))
        except (binascii.Error, TypeError, ValueError):
            raise UsageError("scores: float16 must be base64, and is not") from None
        if size % (BYTES * self.channels):
            raise UsageError(f"scores: {size} bytes of float16 are no whole number of tokens of {self.channels} each")

    @property
    def channels(self) -> int:
        """Numbers of a token."""
        return max(1, len(self.horizons))

    @property
    def tokens(self) -> int:
        """How many tokens have numbers here."""
        return len(base64.b64decode(self.float16)) // (BYTES * self.channels)

    def numbers_TC(self) -> list[tuple[float, ...]]:
        """The numbers of each token."""
        return list(struct.iter_unpack(f"<{self.channels}e", base64.b64decode(self.float16)))


def pack(horizons: tuple[int, ...], halves_TC: bytes) -> Scores:
    """Scores of little-endian half floats, token by token; raises UsageError as `Scores` does."""
    return Scores(horizons=horizons, float16=base64.b64encode(halves_TC).decode())
