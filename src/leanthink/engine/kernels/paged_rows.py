"""What is done with the rows of a batch beside its forward, where requests hold other slots than positions.

Each kernel does at once what `integrations.vllm.v2.device_rows` does in many operations; letters are the same there.
A request's numbers lie in `asked`, five rows of R: prompt, slots, interval, seed, window.

What is not specialised for differs from step to step: a number or an alignment that was not seen before would be
compiled for in the middle of a step.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _thought(logical, prompt, slots, interval, answer_at):  # type: ignore[no-untyped-def]
    """Thought slots held when so many tokens are fed; below 0 inside the prompt."""
    thought = tl.minimum(logical, answer_at) - prompt
    return tl.where(thought < slots + interval, thought, slots + (thought - slots) % interval)


@triton.jit(do_not_specialize=["before", "held", "n", "table_row"])  # type: ignore[untyped-decorator]
def place_rows(  # type: ignore[no-untyped-def]
    indices, computed, starts, asked, answers, table, seq_lens, before, held, lengths, slots_N, n, R, table_row,
    P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row, those that pad the batch included."""
    row = tl.program_id(0)
    if row < n:
        index = tl.load(indices + row).to(tl.int64)
        start, end = tl.load(starts + row).to(tl.int64), tl.load(starts + row + 1).to(tl.int64)
        logical, answer_at = tl.load(computed + index).to(tl.int64), tl.load(answers + index)
        prompt, slots, interval = tl.load(asked + index), tl.load(asked + R + index), tl.load(asked + 2 * R + index)
        thought = _thought(logical, prompt, slots, interval, answer_at)
        first = prompt + thought + tl.maximum(logical - answer_at, 0)
        tl.store(before + row, logical)
        tl.store(held + row, first)
        tl.store(lengths + row, (first + end - start).to(tl.int32))
        for done in range(0, end - start, BLOCK):
            token = done + tl.arange(0, BLOCK)
            inside = token < end - start
            own = first + token
            block = tl.load(table + row.to(tl.int64) * table_row + own // P, mask=inside, other=0).to(tl.int64)
            tl.store(slots_N + start + token, block * P + own % P, mask=inside)
    else:
        tl.store(lengths + row, tl.load(seq_lens + row))


@triton.jit(do_not_specialize=["before", "held", "close_id"])  # type: ignore[untyped-decorator]
def note_rows(  # type: ignore[no-untyped-def]
    indices, starts, asked, answers, before, held, positions, states, ring, tokens, counts,
    R, positions_row, positions_set, F, W, close_id, X: tl.constexpr, XP: tl.constexpr,
    ENDLESS: tl.constexpr, STATES: tl.constexpr, SAMPLED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row and part of its states."""
    row, part = tl.program_id(0), tl.program_id(1)
    index = tl.load(indices + row).to(tl.int64)
    start, end = tl.load(starts + row).to(tl.int64), tl.load(starts + row + 1).to(tl.int64)
    logical, answer_at = tl.load(before + row), tl.load(answers + index)
    prompt, slots = tl.load(asked + index), tl.load(asked + R + index)
    inside = (logical >= prompt) & (logical < answer_at) & (slots < ENDLESS) & (end - start == 1)
    if part == 0:
        x = tl.arange(0, XP).to(tl.int64)
        place = tl.load(held + row) - prompt
        own = positions + index * positions_row + x * positions_set + place
        tl.store(own, (logical + 0 * x).to(tl.int32), mask=inside & (x < X))
        if SAMPLED:
            # What the other parts see of `answers` does not matter: this token's place lies before it.
            closes = (tl.load(tokens + index) == close_id) & (tl.load(counts + row) > 0)
            tl.store(answers + index, tl.minimum(answer_at, logical + end - start), mask=closes)
    if STATES:
        f = part * BLOCK + tl.arange(0, BLOCK)
        seen = inside & (f < F)
        state = tl.load(states + (end - 1) * F + f, mask=seen)
        tl.store(ring + (index * W + logical % W) * F + f, state, mask=seen)


@triton.jit(do_not_specialize=["g"])  # type: ignore[untyped-decorator]
def recall_states(  # type: ignore[no-untyped-def]
    chosen, offsets, ring, seen, g, F, W, late, T: tl.constexpr, SEEN: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One program per request, token and offset, and part of the states."""
    place, part = tl.program_id(0), tl.program_id(1)
    row, token, offset = place // (T * SEEN), place // SEEN % T, place % SEEN
    index, after = tl.load(chosen + row), tl.load(chosen + g + row)
    position = tl.maximum(after - late - T + token, 0) + tl.load(offsets + offset)
    f = part * BLOCK + tl.arange(0, BLOCK)
    state = tl.load(ring + (index * W + position % W) * F + f, mask=f < F)
    tl.store(seen + place.to(tl.int64) * F + f, state, mask=f < F)


@triton.jit(do_not_specialize=["g"])  # type: ignore[untyped-decorator]
def store_scores(  # type: ignore[no-untyped-def]
    chosen, asked, answers, positions, held, scores, g, R, positions_row, positions_set, held_row, held_set, held_slot,
    late, T: tl.constexpr, OF: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, NEAR: tl.constexpr,
):  # fmt: skip
    """One program per request and index set of `held`; the scores of a policy with one set go to all.

    Positions ascend along slots, so that the tokens lie among the youngest `late` + T slots, of which NEAR are read.
    """
    row, x = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    index, after = tl.load(chosen + row), tl.load(chosen + g + row)
    answer_at, prompt = tl.load(answers + index), tl.load(asked + index)
    slots, interval = tl.load(asked + R + index), tl.load(asked + 2 * R + index)
    thought = _thought(after - 1, prompt, slots, interval, answer_at) + 1
    s = thought - NEAR + tl.arange(0, NEAR)
    inside = (s >= 0) & (after <= answer_at)
    position = tl.load(positions + index * positions_row + x * positions_set + s, mask=inside, other=0).to(tl.int64)
    token = position - (after - late - T)
    ready = inside & (token >= 0) & (token < T)
    c = tl.arange(0, CP)
    both = ready[:, None] & (c[None, :] < C)
    of_set = 0 if OF == 1 else x
    new = tl.load(scores + ((row * T + token[:, None]) * OF + of_set) * C + c[None, :], mask=both)
    own = held + index * held_row + x * held_set + s[:, None] * held_slot + c[None, :]
    tl.store(own, new.to(held.dtype.element_ty), mask=both)


@triton.jit(do_not_specialize=["shown", "ages", "num_kept", "g", "S"])  # type: ignore[untyped-decorator]
def show_rows(  # type: ignore[no-untyped-def]
    chosen, asked, answers, positions, held, shown, ages, scores, asked_g, num_kept, g, S, R, positions_row,
    positions_set, held_row, held_set, held_slot, C: tl.constexpr, CP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per request, index set, and part of the slots."""
    row, x, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    index, after = tl.load(chosen + row), tl.load(chosen + g + row)
    slots, interval = tl.load(asked + R + index), tl.load(asked + 2 * R + index)
    if (x == 0) & (part == 0):
        for field in range(5):
            tl.store(asked_g + field * g + row, tl.load(asked + field * R + index))
        tl.store(num_kept + row, tl.where(after <= tl.load(answers + index), slots, 0))
    s = part * BLOCK + tl.arange(0, BLOCK)
    is_held = s < slots + interval
    own = positions + index * positions_row + x * positions_set + s
    position = tl.where(is_held, tl.load(own, mask=is_held, other=0).to(tl.int64), after - 1)
    to = (row * tl.num_programs(1) + x) * S + s
    tl.store(shown + to, position, mask=s < S)
    tl.store(ages + to, after - 1 - position, mask=s < S)
    if C > 0:
        c = tl.arange(0, CP)
        both = (s < S)[:, None] & (c[None, :] < C)
        score = held + index * held_row + x * held_set + s[:, None] * held_slot + c[None, :]
        tl.store(scores + to[:, None] * C + c[None, :], tl.load(score, mask=both, other=0).to(tl.float32), mask=both)


@triton.jit(do_not_specialize=["num_kept", "K"])  # type: ignore[untyped-decorator]
def keep_rows(  # type: ignore[no-untyped-def]
    chosen, num_kept, kept, positions, held, K, positions_row, positions_set, held_row, held_set, held_slot,
    OF: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per request and index set: its positions and token scores, in place.

    A source never lies below its target, so with ascending steps no source is overwritten before its step reads it;
    within a step the barrier sees to that.
    """
    row, x = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    index, count = tl.load(chosen + row), tl.load(num_kept + row)
    positions += index * positions_row + x * positions_set
    held += index * held_row + x * held_set
    kept += (row * OF + (0 if OF == 1 else x)) * K
    c = tl.arange(0, CP)
    for start in range(0, count, BLOCK):
        target = start + tl.arange(0, BLOCK).to(tl.int64)
        source = tl.load(kept + target, mask=target < count, other=0)
        moves = source > target
        both = moves[:, None] & (c[None, :] < C)
        position = tl.load(positions + source, mask=moves)
        score = tl.load(held + source[:, None] * held_slot + c[None, :], mask=both)
        tl.debug_barrier()
        tl.store(positions + target, position, mask=moves)
        tl.store(held + target[:, None] * held_slot + c[None, :], score, mask=both)
