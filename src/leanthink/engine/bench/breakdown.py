"""Part `breakdown`: what a decoding step spends where. Each kind of work is run by itself, for all layers in turn.

N rows   M model width   X widths of products   D head dim
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from leanthink.engine import decoder
from leanthink.engine.attention import decode_attention
from leanthink.engine.bench.decode import full_cell, full_engine
from leanthink.engine.bench.fixture import Fixture, attempt
from leanthink.engine.bench.measure import seconds, spread
from leanthink.engine.engine import Engine
from leanthink.engine.forward_batch import DecodeBatch
from leanthink.engine.sampling import Sampling
from leanthink.utils.errors import UsageError

METHOD = "each kind of work alone, in one CUDA graph on a GPU; rest = the median step less all of them"
WARM_UP, TIMES = 3, 20
SAMPLED = Sampling(temperature=0.6, top_k=20, top_p=0.95)  # as reasoning models are served


def breakdown(fixture: Fixture) -> dict[str, Any]:
    """Every cell of the grid."""
    return {"method": METHOD, "cells": [_cell(fixture, *cell) for cell in fixture.options.cells]}


def _cell(fixture: Fixture, batch: int, slots: int) -> dict[str, Any]:
    whole = full_cell(fixture, batch, slots)

    def measure() -> dict[str, Any]:
        if "step_ms" not in whole:
            raise UsageError(f"there is no step to explain: {whole['error']}")
        step_ms: dict[str, float] = whole["step_ms"]
        parts, sampling_ms = _measure(fixture, batch, slots)
        rest_ms = step_ms["median"] - sum(part["median"] for part in parts.values())
        return {"step_ms": step_ms, **parts, "rest_ms": rest_ms, "sampling_instead_ms": sampling_ms}

    return {"batch": batch, "slots": slots} | attempt(measure)


@torch.inference_mode()
def _measure(fixture: Fixture, batch: int, slots: int) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """The kinds of work of the measured step, which is greedy, and beside them a sampler that samples."""
    if not decoder.is_llama_like(fixture.model):
        raise UsageError(
            f"{fixture.model.config.model_type} decodes through transformers' own forward, which is not taken apart"
        )
    engine = full_engine(fixture, batch, slots, warm_up=0, steps=0)
    lean = decoder.LeanDecoder(fixture.model)
    positions_N1 = engine.cache.start_step(batch if fixture.device.type == "cuda" else None)
    forward = engine.cache.forward_batch
    assert isinstance(forward, DecodeBatch)
    kinds = {
        "products": partial(_products, lean, batch),
        "attention": partial(_attention, engine, forward, batch),
        "between": partial(_between, lean, engine, forward, batch, positions_N1),
        "sampler": partial(_sampler, engine, batch),
    }
    parts = {f"{name}_ms": _timed(kind(), fixture.device) for name, kind in kinds.items()}
    engine.sampler.assign_rows(0, [SAMPLED] * batch)
    return parts, _timed(_sampler(engine, batch), fixture.device)


def _products(lean: decoder.LeanDecoder, batch: int) -> Callable[[], object]:
    """All matrix products, the head's too, with the activation between two of them."""
    first = lean.layers[0]
    x_NM, out_NX = (lean.norm.new_ones(batch, weight.shape[1]) for weight, _ in (first.qkv, first.o))

    def work() -> None:
        for layer in lean.layers:
            F.linear(x_NM, *layer.qkv)
            F.linear(out_NX, *layer.o)
            lean.ops.mlp(layer, x_NM)
        lean.head(x_NM)

    return work


def _attention(engine: Engine, forward: DecodeBatch, batch: int) -> Callable[[], object]:
    """Attention over all held slots of all layers."""
    cache, shape = engine.cache, engine.cache.shape
    q_NHGD = cache.queries.new_ones(batch, shape.kv_heads, shape.group, shape.head_dim)
    return lambda: [decode_attention(q_NHGD, cache.layer(layer), forward, 0.1) for layer in range(shape.layers)]


def _between(
    lean: decoder.LeanDecoder, engine: Engine, forward: DecodeBatch, batch: int, positions_N1: torch.Tensor
) -> Callable[[], object]:
    """Norms, rotations, writing of keys and values: all small work between products and attention."""
    first = lean.layers[0]
    x_NM = lean.norm.new_ones(batch, len(lean.norm))
    qkv_NX, added_NM = x_NM.new_ones(batch, len(first.qkv[0])), lean.ops.mlp(first, x_NM)

    def work() -> None:
        angles_ND = tuple(angle_N1D[:, 0] for angle_N1D in lean.rotary(x_NM[:, None], positions_N1))
        for layer in lean.layers:
            lean.ops.add_norm(x_NM, added_NM, layer.before, lean.eps)
            lean.ops.place(layer, engine.cache, forward, qkv_NX, angles_ND if layer.rotates else None, lean.eps)
            lean.ops.add_norm(x_NM, x_NM, layer.after, lean.eps)
        lean.ops.add_norm(x_NM, added_NM, lean.norm, lean.eps)

    return work


def _sampler(engine: Engine, batch: int) -> Callable[[], object]:
    """The choice of a token for each row, with the knobs of the measured step."""
    logits_NV = engine.cache.queries.new_empty(batch, engine.model.config.vocab_size).normal_()
    counts_N, uses = torch.ones(batch, dtype=torch.int64, device=engine.device), engine.sampler.uses(batch)
    return lambda: engine.sampler.pick(logits_NV, counts_N, uses)


def _timed(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Milliseconds of the work, as of `spread`; on a GPU of a graph of it, so that no launch from the host counts."""
    for _ in range(WARM_UP):
        work()
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        work = graph.replay
        work()
    return spread([1e3 * seconds(work, device) for _ in range(TIMES)])
