"""How many requests fit into a GPU's memory, told from a model's config alone, before any weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from leanthink.engine.bench.shapes import SHAPES
from leanthink.engine.bench.weights import all_bytes, build, config_of
from leanthink.engine.cache_requirements import bytes_per_slot
from leanthink.engine.generation import GPU_SHARE
from leanthink.models.context import context_of
from leanthink.models.kv_shape import KVShape
from leanthink.models.loading import check_supported, kv_shape, load_config
from leanthink.models.predictor import Predictor, offsets_below
from leanthink.policies import make_policy
from leanthink.policies.budget import Budget
from leanthink.utils.errors import UsageError

GIB = 2**30
STEP = 64  # a suggested budget is a multiple of it


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The requests that a plan is made for.

    Attributes:
        prompt_tokens: of each request.
        max_tokens: prompt and output of each request together, at most.
        concurrent: requests that shall run at the same time.

    Raises:
        UsageError: a number is below 1, or the prompt leaves no room for an output.
    """

    prompt_tokens: int
    max_tokens: int
    concurrent: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UsageError(f"{name} must be 1 or more, got {value}")
        if self.prompt_tokens >= self.max_tokens:
            raise UsageError(
                f"a prompt of {self.prompt_tokens} tokens leaves no room for an output within {self.max_tokens} "
                "tokens: give a shorter prompt or more tokens in all"
            )

    def bound(self, budget: Budget | None) -> int:
        """Slots that a request reserves; None: with a full cache."""
        most_new = self.max_tokens - self.prompt_tokens
        return self.max_tokens if budget is None else budget.bound(self.prompt_tokens, most_new)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What fits with one budget, in thought slots; None: with a full cache."""

    budget: int | None
    slots_per_request: int
    bytes_per_request: int
    requests: int


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What `plan` found out.

    Attributes:
        dtype: of weights, keys and values.
        context: of the model, in tokens.
        shape: what a token writes.
        bytes_per_token: of its keys and values.
        bytes_per_slot: the same with what policy `horizon` remembers beside it, the most of all policies.
        bytes_per_state: what a request takes beside its slots: sliding windows, states of linear or state-space layers.
        weight_bytes: of the model and of a predictor with an index set for each kv head.
        kv_bytes: for slots: of what the weights leave the share that an engine takes; steps and CUDA graphs need the
            rest.
        rows: the full cache, then each budget.
        suggested: the largest budget with which all concurrent requests fit, at most the full thought; None: none.
        full_fits: whether they fit with a full cache.
    """

    dtype: torch.dtype
    context: int
    shape: KVShape
    bytes_per_token: int
    bytes_per_slot: int
    bytes_per_state: int
    weight_bytes: int
    kv_bytes: int
    rows: tuple[Row, ...]
    suggested: int | None
    full_fits: bool


def config_for(name: str) -> Any:
    """The config of a known shape, of "tiny", a folder, a GGUF file or a hub id; no weight is read.

    Raises:
        UsageError: there is no such model, or its config cannot be had.
        DamagedFile: the config or the GGUF file's header cannot be read.
        UnsupportedModel: the bounded cache cannot serve its architecture.
    """
    if name in SHAPES and not Path(name).exists():
        return config_of(name)
    return load_config(name, also=tuple(SHAPES))


def plan(
    config: Any,
    *,
    dtype: torch.dtype,
    gpu_bytes: float,
    workload: Workload,
    budgets: Sequence[Budget],
    horizons: tuple[int, ...],
) -> MemoryPlan:
    """How many requests fit with a full cache and with each budget, and which budget lets all of them fit.

    Args:
        config: of the model, as `config_for` gives it.
        dtype: of weights, keys and values.
        gpu_bytes: memory of the GPU in all.
        workload: the requests.
        budgets: to try; the suggestion has the interval and answer of the first.
        horizons: of the predictor, in tokens.

    Raises:
        UsageError: no budget, more tokens than the context, or weights that do not fit.
        UnsupportedModel: the bounded cache cannot serve this architecture.
    """
    check_supported(config)
    if not budgets:
        raise UsageError("no budget to plan with: give at least one")
    context = context_of(config)
    if workload.max_tokens > context:
        raise UsageError(f"{workload.max_tokens} tokens are more than the model's context of {context}: give fewer")
    shape = kv_shape(config)
    predictor = _unfitted(config, dtype, horizons)
    weights = all_bytes(build(config, "meta", dtype)) + all_bytes(predictor)
    kv_bytes = int(GPU_SHARE * (gpu_bytes - weights))
    if kv_bytes <= 0:
        raise UsageError(
            f"the weights take {weights / GIB:.1f} GiB in {str(dtype).removeprefix('torch.')}, and the GPU has "
            f"{gpu_bytes / GIB:g}: give a larger GPU or a smaller model"
        )
    full_slot = bytes_per_slot(shape, dtype, [make_policy("full")])
    slot = bytes_per_slot(shape, dtype, [make_policy("horizon", predictor)])
    state = shape.bytes_per_state(dtype)  # each row has one, and one is nobody's

    def row(budget: Budget | None) -> Row:
        bound = workload.bound(budget)
        size = bound * (full_slot if budget is None else slot) + state
        slots = None if budget is None else budget.slots
        return Row(
            budget=slots, slots_per_request=bound, bytes_per_request=size, requests=max(0, kv_bytes - state) // size
        )

    full = row(None)
    return MemoryPlan(
        dtype=dtype,
        context=context,
        shape=shape,
        bytes_per_token=shape.bytes_per_slot(dtype),
        bytes_per_slot=slot,
        bytes_per_state=state,
        weight_bytes=weights,
        kv_bytes=kv_bytes,
        rows=(full, *map(row, budgets)),
        suggested=_suggested(
            (kv_bytes - (workload.concurrent + 1) * state) // slot // workload.concurrent, workload, budgets[0]
        ),
        full_fits=full.requests >= workload.concurrent,
    )


def _suggested(slots_per_request: int, workload: Workload, usual: Budget) -> int | None:
    """The largest budget, a multiple of STEP, whose bound is at most so many slots; None where there is none."""
    smallest = replace(usual, slots=STEP, recent_window=0)
    spare = slots_per_request - workload.bound(smallest)
    if spare < 0:
        return None
    thought = workload.max_tokens - workload.prompt_tokens
    return min(STEP + spare // STEP * STEP, max(STEP, thought // STEP * STEP))


def _unfitted(config: Any, dtype: torch.dtype, horizons: tuple[int, ...]) -> Predictor:
    """A predictor of the usual size with an index set for each kv head; it has no weights."""
    with torch.device("meta"):
        predictor = Predictor(
            target="horizon",
            hidden_size=config.hidden_size,
            horizons=horizons,
            offsets=offsets_below(horizons[0]),
            granularity="head",
            num_sets=kv_shape(config).num_sets("head"),
        )
    return predictor.to(dtype)
