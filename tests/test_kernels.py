"""The kernels: on the CPU through Triton's interpreter, on a GPU at the sizes of real models (`pytest -m gpu`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama import modeling_llama

pytest.importorskip("triton", reason="Triton is for Linux")

from interpreted import assert_passes_interpreted
from leanthink.engine import sampling
from leanthink.engine.kernels.append import append
from leanthink.engine.kernels.compact import compact
from leanthink.engine.kernels.decode import decode_attention, splits_for
from leanthink.engine.kernels.elementwise import add_rms_norm, rms_norm, silu_mul
from leanthink.engine.kernels.mlp import down, fused_gate_up, tile_for
from leanthink.engine.kernels.place import place
from leanthink.engine.kernels.prefill import prefill_attention
from leanthink.engine.kernels.sample import argmax, draw
from leanthink.engine.quantized_kv import E4M3, OfLayer
from leanthink.policies.budget import top_k_oldest_first
from leanthink.policies.select_kernel import MAX_SLOTS
from reference.kernels_slow import (
    append_slow,
    batch_of,
    compact_slow,
    decode_attention_slow,
    place_slow,
    prefill_attention_slow,
    rows_at,
)
from reference.sampling_slow import bounds_of

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
HELD = [1, 2, 16, 17, 64, 65, 128, 500, 1000, 2049, 3000]


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the tests that this would start run here already")
def test_kernels_under_the_interpreter() -> None:
    assert_passes_interpreted(Path(__file__).with_name("test_kernels_interpreted.py"))


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def bound(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 1e-2


def made_cache(held: Tensor, heads: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Starts [N], and keys and values [2, H, T, D] that are nan wherever no row holds a slot."""
    starts = held.cumsum(0) - held + 7 * torch.arange(1, len(held) + 1, device="cuda")
    kv = torch.full((2, heads, int(starts[-1] + held[-1]) + 7, dim), torch.nan, dtype=dtype, device="cuda")
    for start, count in zip(starts.tolist(), held.tolist(), strict=True):
        kv[:, :, start : start + count] = torch.randn(2, heads, count, dim, dtype=dtype, device="cuda")
    return starts, kv


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("splits", [1, 2, 7, 64])
@pytest.mark.parametrize(("heads", "group", "dim"), [(2, 3, 64), (8, 4, 128), (4, 7, 96), (1, 1, 256), (1, 24, 128)])
def test_decode_attention_reads_exactly_the_held_slots(
    heads: int, group: int, dim: int, splits: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(dim)
    held = torch.tensor(HELD, device="cuda")
    starts, kv = made_cache(held, heads, dim, dtype)
    q = torch.randn(len(held), heads, group, dim, dtype=dtype, device="cuda")
    got = decode_attention(q, kv[0], kv[1], starts, held - 1, dim**-0.5, splits=splits)
    wanted = decode_attention_slow(q, kv[0], kv[1], starts, held - 1, dim**-0.5)
    for row in range(len(held)):
        assert error(got[row], wanted[row]) < bound(dtype), f"row of {HELD[row]} slots"


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("heads", "group", "dim", "dtype"),
    [
        (2, 6, 128, torch.bfloat16),
        (8, 4, 128, torch.float16),
        (2, 6, 128, torch.float32),
        (4, 7, 96, torch.bfloat16),
        (2, 3, 64, torch.bfloat16),
        (2, 3, 64, torch.float32),
        (1, 8, 256, torch.bfloat16),
        (1, 1, 256, torch.float32),
        (1, 2, 512, torch.bfloat16),
    ],
)
def test_prompts_attend_to_exactly_the_slots_up_to_themselves(
    heads: int, group: int, dim: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(dim)
    chunks = [(1, 0), (1, 700), (17, 5), (64, 0), (65, 63), (127, 1), (128, 128), (300, 0), (500, 1000)]
    tokens, done = (torch.tensor(numbers, device="cuda") for numbers in zip(*chunks, strict=True))
    starts, kv = made_cache(tokens + done, heads, dim, dtype)
    placed = [(tokens, start, done) for (tokens, done), start in zip(chunks, starts.tolist(), strict=True)]
    q = torch.randn(int(tokens.sum()), heads * group, dim, dtype=dtype, device="cuda")
    got = prefill_attention(q, kv[0], kv[1], batch_of(placed, kv, group), dim**-0.5).split(tokens.tolist())
    wanted = prefill_attention_slow(q, kv[0], kv[1], placed, dim**-0.5).split(tokens.tolist())
    for ours, theirs, chunk in zip(got, wanted, chunks, strict=True):
        assert error(ours, theirs) < bound(dtype), f"{chunk[0]} tokens behind {chunk[1]}"


@pytest.mark.gpu
@pytest.mark.parametrize("splits", [1, 6])
def test_a_captured_step_follows_starts_and_lengths(splits: int) -> None:
    torch.manual_seed(0)
    rows, heads, group, dim, slots = 20, 8, 4, 128, 50_000
    kv = torch.randn(2, heads, slots, dim, dtype=torch.bfloat16, device="cuda")
    q = torch.randn(rows, heads, group, dim, dtype=torch.bfloat16, device="cuda")
    key, value = torch.randn(2, rows, heads, dim, dtype=torch.bfloat16, device="cuda")
    starts, last = (torch.zeros(rows, dtype=torch.int64, device="cuda") for _ in range(2))

    def step() -> Tensor:
        append(kv[0], kv[1], starts + last, key, value)
        return decode_attention(q, kv[0], kv[1], starts, last, dim**-0.5, splits=splits)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiles, which a capture must not
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for longest in (1, 64, 65, 2000):
        starts.copy_(torch.randperm(rows, device="cuda") * 2500)
        last.copy_(torch.randint(longest, (rows,), device="cuda"))
        for tensor in (q, key, value):
            tensor.normal_()
        graph.replay()
        assert torch.equal(kv[0][:, starts + last], key.transpose(0, 1))
        assert torch.equal(kv[1][:, starts + last], value.transpose(0, 1))
        assert error(out, decode_attention_slow(q, kv[0], kv[1], starts, last, dim**-0.5)) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
def test_append_writes_one_slot_per_row_and_nothing_else(dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows, heads, slots = 64, 8, 3000
    kv = torch.randn(2, heads, slots, dim, dtype=dtype, device="cuda")
    wanted = kv.clone()
    packed = torch.randn(rows, 6 * heads, dim, dtype=dtype, device="cuda")
    key, value = packed[:, 4 * heads : 5 * heads], packed[:, 5 * heads :]
    write = torch.randperm(slots, device="cuda")[:rows]
    append(kv[0], kv[1], write, key, value)
    append_slow(wanted[0], wanted[1], write, key, value)
    assert torch.equal(kv, wanted)


def kept_of(held: int, count: int, sets: tuple[int, ...]) -> Tensor:
    """`count` of `held` slots: the first hundred, then a random choice."""
    choice = torch.rand(*sets, held - 100, device="cuda").argsort(-1)[..., : count - 100].sort(-1).values + 100
    return torch.cat([torch.arange(100, device="cuda").expand(*sets, 100), choice], dim=-1)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("dim", [128, 96])
def test_compact_moves_the_kept_slots_and_nothing_else(dim: int, per_head: bool, dtype: torch.dtype) -> None:
    rows, layers, heads, held, count = 20, 4, 8, 2128, 2000
    first = torch.randperm(rows, device="cuda") * (held + 9) + 5
    for seed in range(3):  # a race need not show at once
        torch.manual_seed(seed)
        kv = torch.randn(layers, 2, heads, rows * (held + 9) + 5, dim, dtype=dtype, device="cuda")
        wanted = kv.clone()
        kept = kept_of(held, count, (rows, layers, heads) if per_head else (rows,))
        compact([kv.flatten(1, 2)], kept, *rows_at(first))
        compact_slow(wanted, first, kept)
        assert torch.equal(kv, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64])
@pytest.mark.parametrize("numbers", [1, 7])
def test_compact_moves_what_lies_beside_the_slots(numbers: int, dtype: torch.dtype) -> None:
    rows, layers, heads, held, count = 5, 32, 8, 3128, 3000
    first = torch.randperm(rows, device="cuda") * (held + 9) + 5
    for seed in range(3):  # a race need not show at once
        torch.manual_seed(seed)
        table = torch.randint(-99, 99, (rows * (held + 9) + 5, layers * heads * numbers), device="cuda").to(dtype)
        facts = table.unflatten(1, (layers, 1, heads, numbers)).permute(1, 2, 3, 0, 4)
        wanted, kept = facts.clone(), kept_of(held, count, (rows, layers, heads))
        compact([facts[:, 0]], kept, *rows_at(first))
        to = (first[:, None] + torch.arange(count, device="cuda")).flatten()
        for layer in range(layers):
            for head in range(heads):
                own = wanted[layer, 0, head]
                own[to] = own[(first[:, None] + kept[:, layer, head]).flatten()]
        assert torch.equal(facts, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("slots", [1, 100, 3128, 4128, 8320, MAX_SLOTS, MAX_SLOTS + 1])
def test_select_on_a_gpu_keeps_what_the_cpu_keeps(slots: int) -> None:
    torch.manual_seed(0)
    for levels in (3, 10**6):
        scores = torch.randint(-levels, levels, (2, 256 if slots < 10_000 else 3, slots), device="cuda") / 8
        count, window = max(1, slots - 128), min(16, max(1, slots - 128))
        assert torch.equal(
            top_k_oldest_first(scores, count, window).cpu(), top_k_oldest_first(scores.cpu(), count, window)
        )


@pytest.mark.gpu
def test_a_cache_may_have_more_numbers_than_32_bits_count() -> None:
    heads, slots, dim, held = 4, 2**22 + 4096, 128, 500  # one head of the keys has 2^29 numbers, all keys 2^31
    kv = torch.zeros(1, 2, heads, slots, dim, dtype=torch.bfloat16, device="cuda")
    starts = torch.tensor([slots - 1100, slots - 550], device="cuda")
    kv[..., -1100:, :].normal_()
    q = torch.randn(2, heads, 4, dim, dtype=torch.bfloat16, device="cuda")
    last = torch.tensor([held - 1, held - 1], device="cuda")
    for splits in (1, 3):
        got = decode_attention(q, kv[0, 0], kv[0, 1], starts, last, 0.1, splits=splits)
        assert error(got, decode_attention_slow(q, kv[0, 0], kv[0, 1], starts, last, 0.1)) < 1e-2
    chunks = [(held, int(starts[0]), 0), (held - 100, int(starts[1]), 100)]
    q = torch.randn(2 * held - 100, heads * 4, dim, dtype=torch.bfloat16, device="cuda")
    got = prefill_attention(q, kv[0, 0], kv[0, 1], batch_of(chunks, kv[0], 4), dim**-0.5)
    assert error(got, prefill_attention_slow(q, kv[0, 0], kv[0, 1], chunks, dim**-0.5)) < 1e-2
    tail = kv[..., -1100:, :]
    wanted, inside = tail.clone(), starts - (slots - 1100)
    kept = kept_of(held, 300, (2,))
    key, value = torch.randn(2, 2, heads, dim, dtype=torch.bfloat16, device="cuda")
    compact([kv.flatten(1, 2)], kept, *rows_at(starts))
    compact_slow(wanted, inside, kept)
    append(kv[0, 0], kv[0, 1], starts + 300, key, value)
    append_slow(wanted[0, 0], wanted[0, 1], inside + 300, key, value)
    assert torch.equal(tail, wanted)
    assert not kv[..., :-1100, :].any()


@pytest.mark.gpu
def test_splits_of_a_real_step() -> None:
    sms = torch.cuda.get_device_properties("cuda").multi_processor_count
    assert splits_for(1 * 8, 4096, sms) == 32  # a single row: as many as stay long enough
    assert splits_for(256 * 8, 4096, sms) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(20, 1, 4096), (20, 1, 32, 128), (1, 700, 3584)])
def test_norms_equal_the_stock_module(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, added = torch.randn(2, *shape, dtype=dtype, device="cuda")
    stock = modeling_llama.LlamaRMSNorm(shape[-1], eps=1e-5).to("cuda", dtype)
    with torch.no_grad():
        stock.weight.normal_()
        got, wanted = rms_norm(x, stock.weight, 1e-5), stock(x)
        total, normed = add_rms_norm(x, added, stock.weight, 1e-5)
        assert torch.equal(total, x + added)
        assert error(normed, stock(total)) < bound(dtype)
    assert got.dtype == wanted.dtype
    assert error(got, wanted) < bound(dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(32, 8, 128), (28, 4, 128), (3, 1, 96), (5, 5, 80), (8, 2, 256)]
)
def test_place_norms_rotates_and_writes_what_the_stock_functions_say(
    heads: int, kv_heads: int, dim: int, rotated: bool, normed: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    rows, few, slots = 1000, 20, 3000
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * dim, dtype=dtype, device="cuda")
    angles = 100 * torch.randn(rows, dim, device="cuda")
    norms = tuple(torch.randn(2, dim, dtype=dtype, device="cuda")) if normed else None
    turns = (angles.cos().to(dtype), angles.sin().to(dtype)) if rotated else None
    how: dict[str, Any] = {"norms": norms, "angles": turns, "eps": 1e-5}
    kv = torch.randn(2, kv_heads, slots, dim, dtype=dtype, device="cuda")
    wanted_kv, write = kv.clone(), torch.randperm(slots, device="cuda")[:rows]
    got = place(qkv, kv[0], kv[1], write, **how)
    wanted = place_slow(qkv, wanted_kv[0], wanted_kv[1], write, **how)
    for ours, theirs in ((got, wanted), (kv, wanted_kv)):
        assert error(ours, theirs) < bound(dtype)
        assert normed or dtype == torch.float32 or torch.equal(ours, theirs), "the same roundings in the same places"
    how["angles"] = turns and (turns[0][:few], turns[1][:few])
    again = torch.zeros_like(kv)
    assert torch.equal(place(qkv[:few], again[0], again[1], write[:few], **how), got[:few]), "in any block"
    assert torch.equal(again[:, :, write[:few]], kv[:, :, write[:few]])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(20, 1, 12288), (1, 700, 18944)])
def test_silu_mul_equals_the_stock_operations(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate, up = (5 * torch.randn(*shape[:-1], 2 * shape[-1], device="cuda")).to(dtype).chunk(2, dim=-1)
    assert error(silu_mul(gate, up), F.silu(gate) * up) < bound(dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, 16, 33, 64, 100, 128, 200, 256])
@pytest.mark.parametrize(("width", "features"), [(4096, 14336), (1536, 8960), (200, 1000)])
def test_the_mlp_of_few_rows_equals_separate_operations(
    width: int, features: int, rows: int, dtype: torch.dtype
) -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("its tiles are for Hopper")
    torch.manual_seed(0)
    x = torch.randn(rows, width, dtype=dtype, device="cuda")
    weight, back = (
        torch.randn(*shape, dtype=dtype, device="cuda") / 50 for shape in ((2 * features, width), (width, features))
    )
    gate, up = F.linear(x, weight).chunk(2, dim=-1)
    opened = F.silu(gate) * up
    tile = tile_for(rows, features, torch.cuda.get_device_properties(0).multi_processor_count)
    if tile is not None:
        assert error(fused_gate_up(x, weight, tile), opened) < bound(dtype)
    parts = down(opened, back, None)
    assert parts.dim() == (3 if features % 16 == 0 else 2)
    added = parts.sum(0).to(dtype) if parts.dim() == 3 else parts
    assert error(added, F.linear(opened, back)) < bound(dtype)
    ones, x = torch.ones(width, dtype=dtype, device="cuda"), torch.randn_like(x)
    for got, wanted in zip(add_rms_norm(x, parts, ones, 1e-5), add_rms_norm(x, added, ones, 1e-5), strict=True):
        assert error(got, wanted) < bound(dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 151936), (512, 151936), (64, 128256), (3, 50)])
def test_draws_fall_where_the_uniform_numbers_lie(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(*shape, device="cuda")).to(dtype)
    temperature_N = torch.linspace(0.1, 2, shape[0], device="cuda")
    uniforms_N = torch.rand(shape[0], dtype=torch.float64, device="cuda")
    largest_N1 = logits.amax(dim=1, keepdim=True)
    first = (logits == largest_N1).int().cpu().argmax(dim=1)  # of equal numbers a GPU's argmax may take any
    assert argmax(logits).tolist() == first.tolist()
    broken = logits.clone()
    broken[0, 7] = float("nan")
    assert argmax(broken).tolist() == [7, *first[1:].tolist()]
    ids_N = draw(logits, largest_N1, temperature_N, uniforms_N)
    first_N, end_N = bounds_of(logits, temperature_N, ids_N)
    assert bool(((first_N - 1e-6 <= uniforms_N) & (uniforms_N <= end_N + 1e-6)).all())
    plain_N = sampling.draw((logits.float() - largest_N1.float()) / temperature_N[:, None], uniforms_N)
    assert int((ids_N != plain_N).sum()) <= shape[0] // 64, "but for a draw at the edge of two tokens"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS)
def test_fp8_is_written_as_torch_casts_and_read_as_it_stands(dtype: torch.dtype) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no FP8 before Ada and Hopper")
    H, G, D, held = 4, 7, 128, torch.tensor(HELD, device="cuda")
    starts = held.cumsum(0) - held
    fp8 = OfLayer(100 * torch.randn(2, H, D, device="cuda"), 2.0 ** torch.randint(-4, 1, (2, H), device="cuda"))
    kv = (100 * torch.randn(2, int(held.sum()), H, D, device="cuda")).to(dtype)
    stored = torch.zeros(2, H, kv.shape[1], D, dtype=torch.uint8, device="cuda")
    keys, values = stored.view(E4M3)
    write = torch.arange(kv.shape[1], device="cuda")
    wanted = fp8.stored(kv).transpose(1, 2)
    append(keys, values, write, *kv, fp8)
    assert torch.equal(stored, wanted)
    stored.zero_()
    qkv = torch.cat([kv[0], kv[0], kv[1]], dim=1).flatten(1)
    place(qkv, keys, values, write, norms=None, angles=None, eps=1e-5, fp8=fp8)
    assert torch.equal(stored, wanted)
    stored[0, ..., 3] %= 8
    numbers, last = fp8.shifted(stored, torch.float64), held - 1
    q = torch.randn(len(held), H, G, D, device="cuda").to(dtype)
    q[..., 3] = 3e3 if dtype == torch.float16 else 2.0**18  # a channel that float16 would not hold
    for splits in (1, 8):
        got = decode_attention(q, keys, values, starts, last, 1e-3, splits=splits, fp8=fp8)
        assert error(got, decode_attention_slow(q, *numbers, starts, last, 1e-3)) < bound(dtype)
    placed = [(min(n, 300), start, max(n - 300, 0)) for n, start in zip(HELD, starts.tolist(), strict=True)]
    q = torch.randn(sum(tokens for tokens, _, _ in placed), H * G, D, device="cuda").to(dtype)
    q[..., 3] = 3e3
    got = prefill_attention(q, keys, values, batch_of(placed, q[None], G), 1e-3, fp8)
    assert error(got, prefill_attention_slow(q, *numbers, placed, 1e-3)) < bound(dtype)
