"""Moves the kept slots of some requests together, in place, in a cache of blocks.

g requests   L layers   H kv heads   P slots of a block   E numbers of a slot and head   K kept slots
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["first", "num_kept", "table_row", "kept_row", "kept_layer", "kept_head"])  # type: ignore[untyped-decorator]
def move_slots(  # type: ignore[no-untyped-def]
    cache, apart, table, first, kept, num_kept, of_block, of_head, of_slot, table_row, kept_row, kept_layer, kept_head,
    E: tl.constexpr, EP: tl.constexpr, P: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per request, layer and head; `cache` is the first layer's, `apart` how far the others lie from it.

    A source never lies below its target, so with ascending steps no source is overwritten before its step reads it;
    within a step the barrier sees to that.
    """
    row, layer, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    shift = tl.load(apart + layer)
    if ALIGNED:  # nobody else can tell of a loaded number; without it each load is of one number
        shift = tl.multiple_of(shift, 16)
    cache += shift + head * of_head
    kept += row * kept_row + layer * kept_layer + head * kept_head
    table += row * table_row
    begin, K = tl.load(first + row), tl.load(num_kept + row)
    e = tl.arange(0, EP)
    for start in range(0, K, BLOCK):
        target = start + tl.arange(0, BLOCK).to(tl.int64)
        source = tl.load(kept + target, mask=target < K, other=0)
        moves = source > target
        if tl.max(moves.to(tl.int32), 0) > 0:  # the first slots often stay where they are
            inside = moves[:, None] & (e[None, :] < E)
            here, there = begin + source, begin + target
            from_block = tl.load(table + here // P, mask=moves, other=0).to(tl.int64)
            to_block = tl.load(table + there // P, mask=moves, other=0).to(tl.int64)
            from_slot = from_block * of_block + here % P * of_slot
            to_slot = to_block * of_block + there % P * of_slot
            slots = tl.load(cache + from_slot[:, None] + e[None, :], mask=inside)
            tl.debug_barrier()
            tl.store(cache + to_slot[:, None] + e[None, :], slots, mask=inside)
