"""Part `memory`: the bytes an engine needs, told from shapes alone, against what was allocated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from leanthink.engine.bench.fixture import HORIZONS, Fixture, attempt
from leanthink.engine.bench.weights import all_bytes, build
from leanthink.engine.cache_requirements import CacheRequirements
from leanthink.engine.quantized_kv import kv_dtype
from leanthink.models.loading import kv_shape
from leanthink.models.predictor import Predictor, offsets_below
from leanthink.policies import make_policy
from leanthink.utils.errors import UsageError


def memory(fixture: Fixture) -> dict[str, Any]:
    """The first cell's rows and slots under `horizon`, and what a request that can never fit is told."""
    batch, slots = fixture.options.cells[0]
    return {"batch": batch, "budget": slots} | attempt(lambda: _measure(fixture, batch, slots))


def predicted_bytes(
    config: Any, dtype: torch.dtype, *, slots: int, rows: int, kv_cache_dtype: str = "auto"
) -> dict[str, int]:
    """Bytes of the weights, of a cache of `slots` slots for `rows` rows, and of the tables beside it.

    The tables are those that policy `horizon` requires: of each slot its position and scores, of each row its latest
    states and counts. Nothing is allocated to find out. What a step needs while it runs is not among them.
    """
    offsets, size, shape = offsets_below(HORIZONS[0]), config.hidden_size, kv_shape(config)
    with torch.device("meta"):
        predictor = Predictor(target="horizon", hidden_size=size, horizons=HORIZONS, offsets=offsets).to(dtype)
    requirements = CacheRequirements.of(make_policy("horizon", predictor))
    states = requirements.hidden_states * 2 * size * dtype.itemsize
    counts = 15 * torch.int64.itemsize  # eight in the cache's table; its number, latest token and knobs elsewhere
    return {
        "weights": all_bytes(build(config, "meta", dtype)),
        "predictor": all_bytes(predictor),
        "keys_and_values": (slots + 1) * shape.bytes_per_slot(kv_dtype(kv_cache_dtype, dtype))
        + (rows + 1) * shape.bytes_per_state(dtype),
        "tables": (slots + 1) * requirements.bytes_per_slot(shape) + (rows + 1) * (states + counts),
    }


def allocated_bytes(*owners: object) -> int:
    """Bytes of all tensors that these objects hold, each storage once."""
    found = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in _tensors(owners)}
    return sum(found.values())


def _tensors(owners: tuple[object, ...]) -> Iterator[Tensor]:
    for owner in owners:
        if isinstance(owner, nn.Module):
            yield from (*owner.parameters(), *owner.buffers())
            continue
        yield from (value for value in vars(owner).values() if isinstance(value, Tensor))


def _measure(fixture: Fixture, batch: int, slots: int) -> dict[str, Any]:
    request = fixture.request(0, prompt=fixture.options.prompt, output=2 * slots, slots=slots)
    room = batch * request.bound
    told: dict[str, Any] = {"slots": room, "rows": batch, "kv_cache_dtype": fixture.options.kv_cache_dtype}
    predicted = predicted_bytes(fixture.model.config, fixture.dtype, **told)
    on_gpu = fixture.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(fixture.device)
    engine = fixture.engine([request.bound] * batch)
    engine.add_request(request)
    for _ in range(3):
        engine.step()
    if on_gpu:
        measured = torch.cuda.max_memory_allocated(fixture.device)
    else:
        predictor: Any = fixture.horizon
        measured = allocated_bytes(
            fixture.model,
            predictor.predictor,
            engine.cache,
            *(kept for kept in (engine.cache.windows, engine.cache.recurrent) if kept is not None),
            engine.sampler,
            engine.model_runner,
        )
    whole = sum(predicted.values())
    return {
        "slots": room,
        "predicted_bytes": predicted | {"all": whole},
        "measured_bytes": measured,
        "measured_is": "max_memory_allocated, steps included" if on_gpu else "the sum of all tensors, no activations",
        "predicted_to_measured": whole / measured,
        "refusal": _refusal(fixture),
    }


def _refusal(fixture: Fixture) -> str:
    """What a request is told whose bound is larger than the whole cache, here of 16 slots."""
    request = fixture.request(0, prompt=16, output=16, slots=None)
    try:
        fixture.engine([16]).add_request(request)
    except UsageError as error:
        return str(error)
    raise AssertionError("a request that can never fit was let in")
