"""Puts requests straight into the middle of their lives: what took thousands of steps in earnest is written down.

P prompt tokens   S thought slots held   G tokens generated
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leanthink.engine.engine import Engine
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


def seat(engine: Engine, places: Sequence[Place], seed: int = 0) -> None:
    """Give each request a row as if it had really come so far; its keys, values, states and stamps are random.

    Never zeros: a device is faster and cooler on them than on anything real.
    """
    cache, seats, first = engine.cache, engine.seats, engine.cache.active
    for place in places:
        engine.add_request(place.request)
    engine.waiting.clear()
    requests = [place.request for place in places]
    for place in places:
        region = cache.arena.reserve(place.request.bound)
        assert region is not None, "the arena has no room for all of them"
        prompt = len(place.request.prompt_ids)
        engine.fed.setdefault(place.request.prefix, []).append(region)
        row, thought = cache.seat(region, prompt), slice(region.start + prompt, region.start + place.held)
        next_position = prompt - 1 + place.generated
        cache.positions[:, :, thought] = _positions(prompt, place.held - prompt, next_position).to(engine.device)
        cache.host_lengths[row] = cache.lengths[row] = place.held
        cache.next_positions[row] = next_position
        cache.host_waiting[row] = place.generated
    torch.manual_seed(seed)
    for tensor in (*cache.kv_LPHTD, cache.stamps, cache.states, cache.queries):
        tensor.normal_()
    vocabulary = engine.model.config.vocab_size
    seats.seat(requests)
    engine.sampler.seat(first, [request.sampling for request in requests])
    engine.device_step.seat(first, torch.randint(vocabulary, (len(places),)).tolist())
    longest = max(place.generated for place in places)
    if longest >= seats.ids.shape[1]:  # the host's record of tokens, which otherwise grows with them
        seats.ids = torch.zeros(len(seats.ids), 2 * longest, dtype=torch.int64)
    for row, place in enumerate(places, first):
        seats.generated[row], seats.peak[row] = place.generated, place.held


def _positions(prompt: int, held: int, next_position: int) -> Tensor:
    """Positions of the thought slots, [S]: spread evenly over all that was written, the youngest among them."""
    written = next_position - prompt
    return prompt - 1 + torch.arange(1, held + 1) * written // max(held, 1)
