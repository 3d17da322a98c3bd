"""The kernels compile for Hopper, on a machine without a GPU: the interpreter takes what the compiler refuses."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is for Linux")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from leanthink.engine.kernels.append import append
from leanthink.engine.kernels.compact import compact
from leanthink.engine.kernels.decode import decode_attention
from leanthink.engine.kernels.elementwise import add_rms_norm, rms_norm, silu_mul
from leanthink.engine.kernels.finite import note_finite
from leanthink.engine.kernels.mlp import fused_gate_up, tile_for
from leanthink.engine.kernels.place import place
from leanthink.engine.kernels.prefill import prefill_attention
from leanthink.engine.kernels.sample import argmax, draw
from leanthink.engine.kernels.view import view
from leanthink.engine.quantized_kv import E4M3, OfLayer
from leanthink.policies.horizon_kernel import horizon_scores
from leanthink.policies.select_kernel import select_in_order, select_ragged
from reference.kernels_slow import batch_of

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    E4M3: "*fp8e4nv",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.bool: "*i1",
}
N, A, H, D, T = 3, 6, 2, 32, 100


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that were compiled instead of launched."""
    names: list[str] = []

    def compile_it(kernel: Any, *args: Any, grid: Any, warmup: bool, **more: Any) -> None:
        given = dict(zip(kernel.arg_names, args, strict=False)) | more
        fixed = {one.name: given[one.name] for one in kernel.params if one.is_constexpr}
        types = {one: "constexpr" if one in fixed else type_of(given[one]) for one in kernel.arg_names}
        options = {name: value for name, value in more.items() if name not in types}
        assert triton.compile(ASTSource(kernel, types, fixed), target=HOPPER, options=options).asm["cubin"]
        names.append(kernel.__name__)

    monkeypatch.setattr(JITFunction, "run", compile_it)
    return names


def type_of(value: Any) -> str:
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{TYPES[value.base.dtype][1:]}{value.block_shape}>"
    return TYPES[value.dtype] if isinstance(value, Tensor) else "fp32" if isinstance(value, float) else "i32"


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_writes_and_reads_keys_and_values(compiled: list[str], dtype: torch.dtype, fp8: bool) -> None:
    cache = torch.zeros(2, H, T, D).to(E4M3 if fp8 else dtype)
    held_by = OfLayer(torch.zeros(2, H, D), torch.ones(2, H)) if fp8 else None
    at, new = torch.zeros(N, dtype=torch.int64), torch.zeros(N, H, D, dtype=dtype)
    pair = (torch.zeros(N, D, dtype=dtype),) * 2
    for few_heads, norms, angles in ((100, None, pair), (100, pair, None), (0, pair, pair)):
        with mock.patch("leanthink.engine.kernels.place.FEW_HEADS", few_heads):
            place(new.new_zeros(N, (A + 2 * H) * D), *cache, at, norms=norms, angles=angles, eps=1e-6, fp8=held_by)
    append(*cache, at, new, new, held_by)
    for splits in (1, 2):
        sinks = new.new_zeros(H, A // H) if splits == 1 and not fp8 else None
        q = new.new_zeros(N, H, A // H, D)
        decode_attention(q, *cache, at, at, 0.125, splits=splits, fp8=held_by, sinks_HG=sinks)
    batch = batch_of([(4, 0, 0), (3, 50, 20)], cache.to(dtype), A // H)
    prefill_attention(new.new_zeros(7, A, D), *cache, batch, 0.125, held_by)
    assert compiled == ["_place", "_place", "_place", "_append", "_attend", "_attend", "_merge", "_attend"]


def test_the_others(compiled: list[str]) -> None:
    x, at = torch.zeros(N, D, dtype=torch.bfloat16), torch.zeros(N, dtype=torch.int64)
    rms_norm(x, x[0], 1e-6)
    add_rms_norm(x, x, x[0], 1e-6)
    silu_mul(x, x)
    add_rms_norm(x, torch.zeros(2, N, D), x[0], 1e-6)
    for rows in (1, 64, 128, 256):
        tile = tile_for(rows, 14336, 132)
        assert tile is not None
        fused_gate_up(x.new_zeros(rows, 64), x.new_zeros(256, 64), tile)
    argmax(torch.zeros(N, 5000))
    draw(torch.zeros(N, 5000), torch.zeros(N, 1), torch.ones(N), torch.zeros(N))
    select_in_order(torch.zeros(N, 50), 20, 8)
    select_ragged(torch.zeros(N, H, 50), at + 20, at + 8, at + 4, 20)
    facts = [torch.zeros(1, 2 * H, T, D, dtype=torch.bfloat16), torch.zeros(1, 1, T, 1, dtype=torch.int64)]
    for count in (1, 2):
        compact(facts[:count], torch.zeros(1, 20, dtype=torch.int64), at[:1], at, at, at)
    for dims in (0, 7):
        view(at, 20, at, at, (at, at, at), at[None], x, 0, dims)
    note_finite(torch.zeros(N, 50), at, at > 0)
    horizon_scores(at, torch.zeros(N, 7), at, 8, 2.0**23, right=True)
    assert {*compiled} == {
        "_rms_norm", "_silu_mul", "_gate_up", "_argmax", "_block_sums", "_select", "_select_ragged", "_compact",
        "_view", "_note_finite", "_horizon",
    }  # fmt: skip
