"""What must agree in the cache between host, device and allocator: for tests, stress runs and a server at rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from leanthink.engine.cache import SlotCache


def check_cache(cache: SlotCache) -> None:
    """Raise AssertionError unless every row has its allocation, its prompt, its order and its length on both sides."""
    cache.allocator.check_integrity()
    n = cache.active
    assert cache.starts[:n].tolist() == [allocation.start for allocation in cache.allocations]
    states = [allocation.state_index for allocation in cache.allocations]
    assert cache.states.tolist() == states + [cache.max_rows] * (cache.max_rows + 1 - n)
    assert torch.equal(cache.lengths[:n].cpu() - cache.steps_ahead, cache.host_lengths[:n])
    assert torch.equal(cache.pinned[:n].cpu(), cache.host_pinned[:n])
    assert bool(((cache.pinned == 0) | (cache.pinned == cache.prompt_lengths)).all())
    waiting_N = (cache.next_positions - cache.added)[:n].cpu()
    assert torch.equal(waiting_N - cache.steps_ahead, cache.host_waiting[:n])
    assert cache.live.tolist() == [1] * n + [0] * (cache.max_rows + 1 - n)
    assigned = {allocation for allocation in cache.allocator.allocations if allocation.row is not None}
    assert assigned == set(cache.allocations)
    for row, allocation in enumerate(cache.allocations):
        length, pinned = int(cache.host_lengths[row]), int(cache.host_pinned[row])
        assert allocation.row == row
        assert pinned - 1 <= length <= allocation.size, f"row {row} holds {length} slots of {allocation.size}"
        held = cache.positions[:, :, allocation.start : allocation.start + length].cpu()
        known = min(pinned, length)
        assert bool((held[..., :known] == torch.arange(known)).all()), f"row {row} lost a prompt slot"
        assert bool((held.diff(dim=-1) > 0).all()), f"row {row} holds its slots out of order"
        assert bool((held[..., -1:] < int(cache.next_positions[row])).all()), f"row {row} holds a slot of the future"
