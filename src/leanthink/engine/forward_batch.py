"""What the next forward pass is: the cache is told before it runs, and attention layers read it while it does.

N rows   U regions in use, with regions of equal size   T slots of the arena
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from leanthink.engine.slot_allocator import Region


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Prompt tokens [done, done + tokens) of one request, which the next forward writes into its region."""

    region: Region
    done: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """The next forward feeds the tokens of these segments, one after the other, as one sequence."""

    segments: tuple[Segment, ...]


@dataclass(frozen=True, kw_only=True)
class Decode:
    """The next forward feeds one token to each of rows 0 to N - 1; computed once, shared by all layers."""

    starts_N: Tensor
    last_N: Tensor  # slots that the row holds already: the place of the new token in its region
    write_N: Tensor  # the slot of the arena that each row writes; T, which is nobody's, for a row without a request
    live_N: Tensor
    longest: int  # slots that attention has to read of the longest row, the new one included; 0 in a CUDA graph
    bias_U11T: Tensor | None = None  # with equal regions: 0 where a region holds a slot, -inf elsewhere
    region_N: Tensor | None = None  # and which of the U regions in use is each row's; None where row n has region n
