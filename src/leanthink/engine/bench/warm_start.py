"""Puts requests straight into the middle of their lives: what took thousands of steps in earnest is written down.

P prompt tokens   S thought slots held   G tokens generated
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leanthink.engine.engine import Engine
from leanthink.engine.quantized_kv import E4M3
from leanthink.engine.request import Request


@dataclass(frozen=True, kw_only=True)
class Place:
    """A request that has generated `generated` tokens, the last of which is still to be fed, and holds `held` slots."""

    request: Request
    held: int
    generated: int

    def __post_init__(self) -> None:
        prompt = len(self.request.prompt_ids)
        assert prompt <= self.held < prompt + self.generated < prompt + self.request.max_new_tokens, self
        assert self.held <= self.request.bound, self


def warm_start(engine: Engine, places: Sequence[Place], seed: int = 0) -> None:
    """Give each request a row as if it had really come so far; all that belongs to its slots is random.

    Never zeros: a device is faster and cooler on them than on anything real.
    """
    cache, batch, first = engine.cache, engine.running_batch, engine.cache.active
    for place in places:
        engine.add_request(place.request)
    engine.scheduler.waiting.clear()
    ready = []
    for place in places:
        allocation = cache.allocator.allocate(place.request.bound)
        assert allocation is not None, "there are not slots enough for all of them"
        ready.append((place.request, allocation))
    engine.rows.assign(ready)
    for row, (place, (_, allocation)) in enumerate(zip(places, ready, strict=True), first):
        prompt = len(place.request.prompt_ids)
        thought = slice(allocation.start + prompt, allocation.start + place.held)
        next_position = prompt - 1 + place.generated
        cache.positions[:, :, thought] = _positions(prompt, place.held - prompt, next_position).to(engine.device)
        cache.host_lengths[row] = cache.lengths[row] = place.held
        cache.next_positions[row] = next_position
        cache.host_waiting[row] = place.generated
    torch.manual_seed(seed)
    windows = () if cache.windows is None else cache.windows.kv_LPHTD
    states = () if cache.recurrent is None else cache.recurrent.tensors
    for tensor in (*windows, *states, cache.token_scores, cache.hidden_states, cache.queries):
        tensor.normal_()
    for kv_PHTD in cache.kv_LPHTD if cache.quantization is None else cache.kv_LPHTD.view(E4M3):
        kv_PHTD.copy_(torch.randn(kv_PHTD.shape, dtype=cache.queries.dtype, device=engine.device))
    vocabulary = engine.model.config.vocab_size
    engine.model_runner.feed(first, torch.randint(vocabulary, (len(places),)).tolist())
    longest = max(place.generated for place in places)
    if longest >= batch.ids.shape[1]:  # the host's record of tokens, which otherwise grows with them
        batch.ids = torch.zeros(len(batch.ids), 2 * longest, dtype=torch.int64)
    for row, place in enumerate(places, first):
        batch.generated[row], batch.peak[row] = place.generated, place.held


def _positions(prompt: int, held: int, next_position: int) -> Tensor:
    """Positions of the thought slots, [S]: spread evenly over all that was written, the youngest among them."""
    written = next_position - prompt
    return prompt - 1 + torch.arange(1, held + 1) * written // max(held, 1)
