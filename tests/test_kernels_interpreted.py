"""Every kernel on the CPU, through Triton's interpreter, over random shapes.

Triton chooses between compiler and interpreter when it is first imported, which torch may do at any time. So these
tests run in a process of their own, which `tests/test_kernels.py` starts with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.llama import modeling_llama

pytest.importorskip("triton", minversion="3.7", reason="the interpreter of Triton 3.6 fails with NumPy 2.4")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by tests/test_kernels.py, with TRITON_INTERPRET=1", allow_module_level=True)

from triton.runtime import interpreter

from leanthink.engine.cache import SlotCache
from leanthink.engine.cache_requirements import CacheRequirements
from leanthink.engine.decoder import _Fused
from leanthink.engine.engine import Engine
from leanthink.engine.kernels.append import append
from leanthink.engine.kernels.compact import compact
from leanthink.engine.kernels.decode import (
    FP8_PROGRAMS_PER_SM,
    MAX_SPLITS,
    MIN_SPLIT,
    PROGRAMS_PER_SM,
    decode_attention,
    splits_for,
)
from leanthink.engine.kernels.elementwise import add_rms_norm, rms_norm, silu_mul
from leanthink.engine.kernels.finite import note_finite
from leanthink.engine.kernels.mlp import Tile, down, fused_gate_up, gate_up, tile_for
from leanthink.engine.kernels.place import place
from leanthink.engine.kernels.prefill import prefill_attention
from leanthink.engine.kernels.sample import ARGMAX_BLOCK, BLOCK, argmax, draw
from leanthink.engine.outputs import Completion
from leanthink.engine.policy_view import policy_view, view_in_one_launch
from leanthink.engine.quantized_kv import E4M3, OfLayer
from leanthink.engine.sampling import Sampling
from leanthink.models.kv_shape import KVShape
from leanthink.policies import Policy, Slots
from leanthink.policies.horizon import Horizon, Rule, index_bounds
from leanthink.policies.horizon_kernel import horizon_scores
from leanthink.policies.policy import OUTRANKS
from leanthink.policies.select_kernel import select_in_order
from models import make_model, make_tokenizer
from policy_slots import FakePredictor, make
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
from reference.select_slow import select_slow

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
BOUNDS = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}
ROUNDED = {"bf16": (torch.bfloat16, torch.uint16), "fp8e4nv": (E4M3, torch.uint8)}
DIMS = [64, 96, 128, 256]
SEEDS = st.integers(0, 2**32 - 1)
EDGES = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129]  # slots a row holds: around each block's edge
POINTS = [1, 128, 1024]  # of a program of `place`: one head; blocks that end within a row, and within the last
few = settings(max_examples=30, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def _new_tensors_are_nan() -> Iterator[None]:
    """What a kernel was to write and did not, or reads without having written it, spoils the result."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="module")
def _casts_round_to_nearest() -> Iterator[None]:
    """As on a GPU: the interpreter cuts off bits or loses the carry of what rounds up, and rounds no small numbers."""
    convert = interpreter._convert_float

    def exact(numbers: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source.name != "fp32" or target.name not in ROUNDED:
            return convert(numbers, source, target, rounding)
        dtype, bits = ROUNDED[target.name]
        rounded = torch.from_numpy(numbers.view("float32").copy()).to(dtype).view(bits)
        return rounded.numpy().reshape(numbers.shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", exact)
        yield


def in_fp8(shape: tuple[int, ...]) -> tuple[Tensor, OfLayer]:
    """Keys and values [2, H, T, D] of all finite bytes and of nan, by other offsets and scales for each head."""
    fp8 = OfLayer(100 * torch.randn(2, shape[1], shape[3]), 2.0 ** torch.randint(-9, -4, (2, shape[1])))
    return torch.randint(256, shape, dtype=torch.uint8), fp8


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def allocations(sizes: list[int]) -> tuple[Tensor, int]:
    """Where allocations of these sizes start that lie in reverse order with gaps between, and the cache's slots."""
    starts, end = [], 3
    for size in reversed(sizes):
        starts.append(end)
        end += size + 5
    return torch.tensor(starts[::-1]), end


@few
@given(
    held=st.lists(st.sampled_from(EDGES) | st.integers(1, 200), min_size=1, max_size=3),
    heads=st.integers(1, 2),
    group=st.sampled_from([1, 3, 7]),
    dim=st.sampled_from(DIMS),
    splits=st.sampled_from([1, 2, 3, 8, 13]),
    dtype=st.sampled_from(FLOATS[:2]),  # the interpreter multiplies the bits of bfloat16 matrices
    sink=st.sampled_from([None, 0.0, 9.0]),  # about how large
    seed=SEEDS,
)
def test_decode_attention_reads_exactly_the_held_slots(
    held: list[int], heads: int, group: int, dim: int, splits: int, dtype: torch.dtype, sink: float | None, seed: int
) -> None:
    torch.manual_seed(seed)
    (starts, slots), last = allocations(held), torch.tensor(held) - 1
    kv = torch.full((2, heads, slots, dim), torch.nan, dtype=dtype)
    for start, count in zip(starts.tolist(), held, strict=True):
        kv[:, :, start : start + count] = torch.randn(2, heads, count, dim)
    q = torch.randn(len(held), group, heads, dim).to(dtype).transpose(1, 2)
    sinks = None if sink is None else (sink + torch.randn(heads, group)).to(dtype)
    got = decode_attention(q, kv[0], kv[1], starts, last, dim**-0.5, splits=splits, sinks_HG=sinks)
    assert got.dtype == dtype
    assert error(got, decode_attention_slow(q, kv[0], kv[1], starts, last, dim**-0.5, sinks)) < BOUNDS[dtype]


@pytest.mark.parametrize("splits", [1, 4])
def test_a_row_of_one_slot_gets_its_value(splits: int) -> None:
    keys, values, q = torch.randn(2, 4, 64), torch.randn(2, 4, 64), torch.randn(1, 2, 3, 64)
    got = decode_attention(q, keys, values, torch.tensor([2]), torch.tensor([0]), 1.0, splits=splits)
    assert torch.equal(got[0], values[:, 2, None].expand(2, 3, 64))


@pytest.mark.parametrize("splits", [1, 3])
def test_a_row_does_not_depend_on_its_neighbours(splits: int) -> None:
    torch.manual_seed(0)
    held = [5, 190, 64]
    (starts, slots), last = allocations(held), torch.tensor(held) - 1
    keys, values, q = torch.randn(2, slots, 64), torch.randn(2, slots, 64), torch.randn(3, 2, 3, 64)
    together = decode_attention(q, keys, values, starts, last, 0.1, splits=splits)
    for row in range(3):
        one = slice(row, row + 1)
        alone = decode_attention(q[one], keys, values, starts[one], last[one], 0.1, splits=splits)
        assert torch.equal(alone[0], together[row])


@settings(max_examples=12, deadline=None)
@given(
    chunks=st.lists(
        st.tuples(st.sampled_from(EDGES) | st.integers(1, 200), st.sampled_from([0, *EDGES])), min_size=1, max_size=3
    ),
    heads=st.integers(1, 2),
    group=st.sampled_from([1, 3, 4, 7]),
    dim=st.sampled_from([*DIMS, 512]),
    dtype=st.sampled_from(FLOATS[:2]),  # the interpreter multiplies the bits of bfloat16 matrices
    seed=SEEDS,
)
def test_prompts_attend_to_exactly_the_slots_up_to_themselves(
    chunks: list[tuple[int, int]], heads: int, group: int, dim: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    starts, slots = allocations([tokens + done for tokens, done in chunks])
    placed = [(tokens, start, done) for (tokens, done), start in zip(chunks, starts.tolist(), strict=True)]
    kv = torch.full((2, heads, slots, dim), torch.nan, dtype=dtype)
    for tokens, start, done in placed:
        kv[:, :, start : start + done + tokens] = torch.randn(2, heads, done + tokens, dim)
    total = sum(tokens for tokens, _ in chunks)
    q = torch.randn(group * heads, total, dim).to(dtype).transpose(0, 1)
    got = prefill_attention(q, kv[0], kv[1], batch_of(placed, kv, group), dim**-0.5)
    assert got.dtype == dtype
    assert error(got, prefill_attention_slow(q, kv[0], kv[1], placed, dim**-0.5)) < BOUNDS[dtype]


@few
@given(
    held=st.lists(st.sampled_from(EDGES), min_size=1, max_size=3),
    group=st.sampled_from([1, 3]),
    dim=st.sampled_from(DIMS),
    splits=st.sampled_from([1, 3]),
    queries=st.sampled_from([*((dtype, 3e3) for dtype in FLOATS), (torch.bfloat16, 2.0**18)]),
    seed=SEEDS,
)
def test_attention_reads_fp8(
    held: list[int], group: int, dim: int, splits: int, queries: tuple[torch.dtype, float], seed: int
) -> None:
    """Of queries in each dtype, one channel of which is large; float16 ends at 2^16."""
    torch.manual_seed(seed)
    dtype, large = queries
    (starts, slots), last = allocations(held), torch.tensor(held) - 1
    stored, fp8 = in_fp8((2, 2, slots, dim))
    nobodys = torch.ones(slots, dtype=torch.bool)
    for start, count in zip(starts.tolist(), held, strict=True):
        nobodys[start : start + count] = False
    stored[stored % 128 == 127] = 0
    stored[0, ..., 3] %= 8  # no larger than 7 / 512, so that other channels of queries count too
    stored[:, :, nobodys] = 127  # nan
    keys, values = stored.view(E4M3)
    numbers = fp8.shifted(stored, torch.float64)
    q = torch.randn(len(held), 2, group, dim).to(dtype)
    q[..., 3] = large
    got = decode_attention(q, keys, values, starts, last, dim**-0.5, splits=splits, fp8=fp8)
    assert error(got, decode_attention_slow(q, *numbers, starts, last, dim**-0.5)) < BOUNDS[dtype]
    placed = [(min(count, 20), start, max(count - 20, 0)) for start, count in zip(starts.tolist(), held, strict=True)]
    q = torch.randn(sum(tokens for tokens, _, _ in placed), 2 * group, dim).to(dtype)
    q[..., 3] = large
    got = prefill_attention(q, keys, values, batch_of(placed, q[None], group), dim**-0.5, fp8)
    assert error(got, prefill_attention_slow(q, *numbers, placed, dim**-0.5)) < BOUNDS[dtype]


def place_in_blocks(points: int, *args: Any, **more: Any) -> Tensor:
    """As for many rows, with programs of so many points."""
    with mock.patch.multiple("leanthink.engine.kernels.place", FEW_HEADS=0, POINTS=points):
        return place(*args, **more)


@few
@given(
    rows=st.integers(1, 5),
    dim=st.sampled_from([8, 24, 64, 80, 96]),
    normed=st.booleans(),
    points=st.sampled_from(POINTS),
    dtype=st.sampled_from(FLOATS),
    seed=SEEDS,
)
def test_append_and_place_write_fp8(
    rows: int, dim: int, normed: bool, points: int, dtype: torch.dtype, seed: int
) -> None:
    """The bytes of what they write otherwise; with numbers too large, and one that is none."""
    torch.manual_seed(seed)
    held, fp8 = in_fp8((2, 2, 12, dim))
    qkv, write = (40 * torch.randn(rows, 7 * dim)).to(dtype), torch.randperm(12)[:rows]
    cos, sin = torch.randn(2, rows, dim).to(dtype)
    norms = tuple(10 * torch.randn(2, dim).to(dtype)) if normed else None
    how: dict[str, Any] = {"norms": norms, "angles": (cos, sin), "eps": 1e-5}
    key, value = qkv.view(rows, 7, dim)[:, 3:5], qkv.view(rows, 7, dim)[:, 5:]
    value[0, 1, 3] = torch.nan
    plain = torch.zeros(2, 2, 12, dim, dtype=dtype)
    for launch in (
        partial(append, write_N=write, key_NHD=key, value_NHD=value),
        partial(place_in_blocks, points, qkv, write_N=write, **how),
    ):
        got, wanted = held.clone(), held.clone()
        launch(keys_HTD=plain[0], values_HTD=plain[1])
        launch(keys_HTD=got[0].view(E4M3), values_HTD=got[1].view(E4M3), fp8=fp8)
        written = fp8.stored(plain[:, :, write].transpose(1, 2))
        append_slow(*wanted, write, *written)
        assert torch.equal(got, wanted)
        assert bool((written % 128 == 126).any()), "some are cut off"
        assert int(written[1, 0, 1, 3]) % 128 == 127


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("architecture", ["qwen3", "phi3"])  # by our forward, and by transformers'
def test_an_engine_that_feeds_prompts_by_kernels_writes_the_same(architecture: str, fp8: bool) -> None:
    model, made = make_model(architecture), []
    for packed in (True, False):
        engine = Engine(model, make_tokenizer(), slots=300, rows=4, prefill_tokens=16, ends=(),
                        kv_cache_dtype="fp8" if fp8 else "auto")  # fmt: skip
        engine.model_runner.packs_prompts = packed
        if packed and engine.model_runner.lean is not None:
            assert engine.model_runner.mixes_prompts
            engine.model_runner.lean.ops = _Fused()
        for i, length in enumerate((1, 2, 25, 17)):
            engine.add(list(range(i, i + length)), policy="full", sampling=Sampling(max_new_tokens=3))
        finished: dict[int, Completion] = {}
        while engine.unfinished:
            finished |= engine.step().finished
        held = engine.cache.kv_LPHTD[..., :-1, :]
        made.append(([finished[i].token_ids for i in range(4)], held.view(E4M3).float() if fp8 else held))
    assert made[0][0] == made[1][0]
    if fp8:  # a number at the border of two may take either
        assert float((made[0][1] != made[1][1]).float().mean()) < 1e-3
        return
    torch.testing.assert_close(made[0][1], made[1][1], rtol=1e-4, atol=1e-4)


@given(pairs=st.integers(1, 10_000), slots=st.integers(1, 200_000), sms=st.integers(1, 200), fp8=st.booleans())
def test_splits_fill_the_sms_but_stay_long_and_few(pairs: int, slots: int, sms: int, fp8: bool) -> None:
    splits, programs = splits_for(pairs, slots, sms, fp8=fp8), (FP8_PROGRAMS_PER_SM if fp8 else PROGRAMS_PER_SM) * sms
    assert 1 <= splits <= MAX_SPLITS
    assert splits == 1 or slots / splits >= MIN_SPLIT
    assert splits == 1 or splits * pairs <= programs
    if splits < MAX_SPLITS and slots / (splits + 1) >= MIN_SPLIT:
        assert (splits + 1) * pairs > programs


@few
@given(
    rows=st.integers(1, 5),
    heads=st.integers(1, 3),
    dim=st.sampled_from(DIMS),
    dtype=st.sampled_from(FLOATS),
    seed=SEEDS,
)
def test_append_writes_one_slot_per_row_and_nothing_else(
    rows: int, heads: int, dim: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    kv = torch.randn(2, heads, 12, dim).to(dtype)
    wanted = kv.clone()
    packed = torch.randn(rows, 3 * heads, dim).to(dtype)  # as a model that projects q, k and v at once has them
    key, value = packed[:, heads : 2 * heads], packed[:, 2 * heads :]
    write = torch.randperm(12)[:rows]
    append(kv[0], kv[1], write, key, value)
    append_slow(wanted[0], wanted[1], write, key, value)
    assert torch.equal(kv, wanted)


@few
@given(
    data=st.data(),
    rows=st.integers(1, 3),
    layers=st.integers(1, 2),
    heads=st.integers(1, 2),
    dim=st.sampled_from(DIMS),
    dtype=st.sampled_from(FLOATS),
    per_head=st.booleans(),
    seed=SEEDS,
)
def test_compact_moves_the_kept_slots_and_nothing_else(
    data: st.DataObject,
    rows: int,
    layers: int,
    heads: int,
    dim: int,
    dtype: torch.dtype,
    per_head: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    held = data.draw(st.sampled_from(EDGES) | st.integers(1, 200))
    count = data.draw(st.integers(1, held))
    still = data.draw(st.integers(0, count))  # so many of the first slots stay where they are
    first, slots = allocations([held] * rows)
    sets = (rows, layers, heads) if per_head else (rows,)
    chosen = torch.rand(*sets, held - still).argsort(-1)[..., : count - still].sort(-1).values + still
    kept = torch.cat([torch.arange(still).expand(*sets, still), chosen], dim=-1)
    kv = torch.full((layers, 2, heads, slots, dim), torch.nan, dtype=dtype)
    for row in range(rows):
        for layer in range(layers):
            for head in range(heads):
                own = first[row] + (kept[row, layer, head] if per_head else kept[row])
                kv[layer, :, head, own] = torch.randn(2, count, dim).to(dtype)
    sets = (layers, heads) if per_head else data.draw(st.sampled_from([(1, 1), (layers, heads)]))
    beside = [torch.randint(99, (sets[0], 1, sets[1], slots, numbers)) for numbers in (1, 5)][
        : data.draw(st.integers(0, 2))
    ]
    facts, wanted, at = [kv, *beside], [kv.clone(), *(each.clone() for each in beside)], rows_at(first)
    compact([each.flatten(1, 2) for each in facts], kept, *at)
    for moved, each in zip(facts, wanted, strict=True):
        compact_slow(each, first, kept)
        torch.testing.assert_close(moved, each, rtol=0, atol=0, equal_nan=True)
    assert at[-1].tolist() == [2 + count] * rows


@few
@given(
    held=st.sampled_from(EDGES) | st.integers(1, 200),
    rows=st.integers(1, 3),
    heads=st.integers(1, 2),
    numbers=st.sampled_from([1, 2, 5, 7]),
    dtype=st.sampled_from([*FLOATS, torch.int64]),
    seed=SEEDS,
)
def test_compact_moves_what_lies_beside_the_slots(
    held: int, rows: int, heads: int, numbers: int, dtype: torch.dtype, seed: int
) -> None:
    """As the cache lays it out: a table of slots, and in each of its rows the numbers of each layer and head."""
    torch.manual_seed(seed)
    layers, (first, slots) = 2, allocations([held] * rows)
    table = torch.randint(-99, 99, (slots, 3 + layers * heads * numbers)).to(dtype)  # the first three are of others
    wanted = table.clone()
    kept = torch.rand(rows, layers, heads, held).argsort(-1)[..., : held - held // 3].sort(-1).values
    facts, slow = (
        each[:, 3:].unflatten(1, (layers, 1, heads, numbers)).permute(1, 2, 3, 0, 4) for each in (table, wanted)
    )
    compact([facts[:, 0]], kept, *rows_at(first))
    compact_slow(slow, first, kept)
    assert torch.equal(table, wanted)


@few
@given(
    data=st.data(),
    sets=st.integers(1, 4),
    slots=st.sampled_from([*EDGES, 511, 512, 513]) | st.integers(1, 700),
    levels=st.sampled_from([0, 1, 5, 1000]),
    dtype=st.sampled_from(FLOATS),
    seed=SEEDS,
)
def test_select_keeps_the_slots_of_its_reference_implementation(
    data: st.DataObject, sets: int, slots: int, levels: int, dtype: torch.dtype, seed: int
) -> None:
    """Many ties, zeros of both signs, and young slots that outrank all others."""
    torch.manual_seed(seed)
    count = data.draw(st.integers(1, slots))
    window = data.draw(st.integers(0, count))
    scores = (torch.randint(-levels, levels + 1, (sets, slots)) * torch.tensor([0.25, -0.25])[seed % 2]).to(dtype)
    if data.draw(st.booleans()):
        scores[:, slots // 2 :] = (2.0**23 - torch.arange(slots, 0, -1))[slots // 2 :].to(dtype)
    ages = list(range(slots))[::-1]
    wanted = [select_slow(row, ages, [False] * slots, slots=count, window=window) for row in scores.tolist()]
    assert select_in_order(scores, count, window).tolist() == wanted


def test_select_keeps_as_many_whatever_the_scores_are() -> None:
    """A score that is no number is told with the next step: until then nothing may be written out of place."""
    scores = torch.tensor([[torch.nan, 1.0, -torch.inf, torch.inf, -1.0, -torch.nan]]).repeat(3, 50)
    scores[1] = -scores[1]
    scores[2] = torch.full((300,), -1, dtype=torch.int32).view(torch.float32)  # the lowest of all by its bits
    for count in (1, 7, 299, 300):
        kept = select_in_order(scores, count, 1)
        assert bool((kept.diff(dim=1) > 0).all())
        assert int(kept.min()) >= 0
        assert int(kept.max()) == 299


@pytest.mark.parametrize("horizons", [(), (4,), (1, 2, 4, 8, 16, 32, 64)])
@pytest.mark.parametrize("sets", [1, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_policy_is_shown_the_same_in_one_launch(sets: int, horizons: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    cache = SlotCache(
        KVShape(layers=3, kv_heads=2, group=2, head_dim=4), slots=2000, rows=5, dtype=dtype, device=torch.device("cpu")
    )
    policy: Policy = Horizon(predictor=FakePredictor("horizon", horizons, (0,), sets)) if horizons else make("window")
    cache.require(CacheRequirements(score_dims=2 + sets * len(horizons), score_dtype=dtype, per_head=sets > 1))
    cache.table.random_(99)
    cache.starts.random_(1000)
    cache.positions.random_(2**40)
    cache.token_scores.normal_()
    seeds_N, rows_R = torch.randint(2**62, (5,)), torch.tensor([4, 0, 3])
    for count in (1, 255, 256, 600):
        got = view_in_one_launch(cache, rows_R, count, seeds_N, policy, 2)
        wanted = vars(policy_view(cache, rows_R, count, seeds_N, policy, first=2))
        torch.testing.assert_close(vars(got), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
def test_a_row_with_a_score_that_is_not_finite_is_noted(dtype: torch.dtype) -> None:
    for number in (0.0, torch.nan, torch.inf, -torch.inf):
        scores, finite_N = torch.randn(3, 2600).to(dtype), torch.tensor([False, True, True, True, True])
        scores[1, [0, 2599]] = number
        note_finite(scores, torch.tensor([2, 3, 1]), finite_N)
        assert finite_N.tolist() == [False, True, True, number == 0, True]


@pytest.mark.parametrize("rule", ["floor", "ceil"])
@pytest.mark.parametrize("horizons", [(4,), (1, 2, 4, 8, 16, 32, 64)])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3, 171)])
def test_horizon_scores_are_those_of_the_policy(shape: tuple[int, ...], horizons: tuple[int, ...], rule: Rule) -> None:
    policy = Horizon(predictor=FakePredictor("horizon", horizons), rule=rule)
    ages, of_rows = torch.randint(2**18, shape) >> torch.randint(18, shape), torch.zeros(shape[0], dtype=torch.int64)
    token_scores = torch.randn(*shape, len(horizons))
    token_scores[0, ..., 0, :] = torch.nan
    facts = {"next_position": of_rows, "prompt_tokens": of_rows, "seeds": of_rows, "token_scores": token_scores}
    wanted = policy.score(Slots(ages=ages, positions=ages, **facts))
    bounds = index_bounds(horizons, rule, ages.device)
    got = horizon_scores(ages, token_scores, bounds, horizons[0], OUTRANKS, right=rule == "floor")
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


def test_compact_of_a_set_that_stays_moves_nothing() -> None:
    kv = torch.randn(1, 2, 2, 90, 64)
    before = kv.clone()
    compact([kv.flatten(1, 2)], torch.arange(80)[None], *rows_at(torch.tensor([4])))
    assert torch.equal(kv, before)


@few
@given(
    shape=st.sampled_from([(1, 1), (3, 1), (2, 5), (2, 3, 4)]),
    features=st.sampled_from([8, 24, 64, 96, 128, 1030]),
    dtype=st.sampled_from(FLOATS),
    seed=SEEDS,
)
def test_norms_equal_the_stock_module(shape: tuple[int, ...], features: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(*shape, 2 * features).to(dtype)[..., :features], torch.randn(features).to(dtype)
    stock = modeling_llama.LlamaRMSNorm(features, eps=1e-5)
    stock.weight.data = weight
    with torch.no_grad():
        assert error(rms_norm(x, weight, 1e-5), stock(x)) < BOUNDS[dtype]
        added = torch.randn(*shape, features).to(dtype)
        total, normed = add_rms_norm(x, added, weight, 1e-5)
        assert error(total, x + added) < BOUNDS[dtype]
        assert dtype == torch.bfloat16 or torch.equal(total, x + added)
        assert error(normed, stock(total)) < BOUNDS[dtype]
        parts = torch.randn(3, *shape, features)
        of_parts = add_rms_norm(x, parts, weight, 1e-5)
        for got, wanted in zip(of_parts, add_rms_norm(x, parts.sum(0).to(dtype), weight, 1e-5), strict=True):
            assert error(got, wanted) < BOUNDS[dtype]


@few
@given(
    rows=st.integers(1, 4),
    heads=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    dim=st.sampled_from([8, 24, 64, 80, 96]),
    normed=st.booleans(),
    rotated=st.booleans(),
    points=st.sampled_from(POINTS),
    dtype=st.sampled_from(FLOATS),
    seed=SEEDS,
)
def test_place_norms_rotates_and_writes_what_the_stock_functions_say(
    rows: int, heads: tuple[int, int], dim: int, normed: bool, rotated: bool, points: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    qkv = torch.randn(rows, (heads[0] + 2 * heads[1]) * dim + 8).to(dtype)[:, 8:]
    cos, sin = torch.randn(2, rows, dim).to(dtype)
    norms = tuple(torch.randn(2, dim).to(dtype)) if normed else None
    how: dict[str, Any] = {"norms": norms, "angles": (cos, sin) if rotated else None, "eps": 1e-5}
    kv = torch.randn(2, heads[1], 12, dim).to(dtype)
    wanted_kv, write = kv.clone(), torch.randperm(12)[:rows]
    got = place_in_blocks(points, qkv, kv[0], kv[1], write, **how)
    wanted = place_slow(qkv, wanted_kv[0], wanted_kv[1], write, **how)
    for ours, theirs in ((got, wanted), (kv, wanted_kv)):
        assert ours.dtype == dtype
        assert error(ours, theirs) < BOUNDS[dtype]
        assert normed or dtype == torch.bfloat16 or torch.equal(ours, theirs), "the same roundings in the same places"


@few
@given(
    shape=st.sampled_from([(1, 1), (3, 2), (2, 3, 4)]),
    features=st.sampled_from([8, 96, 1024, 1030]),
    dtype=st.sampled_from(FLOATS),
    seed=SEEDS,
)
def test_silu_mul_takes_halves_of_one_tensor(
    shape: tuple[int, ...], features: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    gate, up = (10 * torch.randn(*shape, 2 * features)).to(dtype).chunk(2, dim=-1)
    assert error(silu_mul(gate, up), F.silu(gate) * up) < BOUNDS[dtype]


@few
@given(
    rows=st.integers(1, 40),
    width=st.sampled_from([8, 64, 136]),
    features=st.sampled_from([8, 64, 72, 136]),
    tile=st.builds(
        Tile, rows=st.sampled_from([16, 32]), step=st.sampled_from([64, 128]), warps=st.just(4), stages=st.just(3)
    ),
    dtype=st.sampled_from([torch.float32, torch.float16]),  # the interpreter multiplies no bfloat16
    seed=SEEDS,
)
def test_gate_and_up_in_one_kernel_equal_two_products_and_what_follows(
    rows: int, width: int, features: int, tile: Tile, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(rows, width).to(dtype), torch.randn(2 * features, width).to(dtype)
    gate, up = F.linear(x, weight).chunk(2, dim=-1)
    assert error(fused_gate_up(x, weight, tile), F.silu(gate) * up) < BOUNDS[dtype]


def test_the_mlp_of_a_cpu_or_with_a_bias_is_that_of_separate_operations() -> None:
    x, weight, bias = torch.randn(3, 16), torch.randn(32, 16), torch.randn(32)
    gate, up = F.linear(x, weight, bias).chunk(2, dim=-1)
    torch.testing.assert_close(gate_up(x, weight, bias), F.silu(gate) * up)
    assert torch.equal(down(x, weight, bias), F.linear(x, weight, bias))
    assert down(x.bfloat16(), weight.bfloat16(), None).shape == (3, 32)


def test_gate_and_up_are_one_kernel_where_that_was_measured_to_be_faster() -> None:
    llama_8b, qwen_1b5, qwen_14b = 14336, 8960, 17408  # features
    rows = {
        features: [n for n in range(1, 600) if tile_for(n, features, 132)]
        for features in (llama_8b, qwen_1b5, qwen_14b)
    }
    assert rows[llama_8b] == [*range(1, 129), *range(225, 257)]
    assert rows[qwen_1b5] == [*range(1, 129)], "140 blocks leave half of the second wave of 132 SMs idle"
    assert rows[qwen_14b] == [*range(1, 65)], "272 blocks are more than two an SM"
    for n in (1, 16, 17, 64, 65, 128, 256):
        tile = tile_for(n, llama_8b, 132)
        assert tile is not None
        assert tile.rows >= n


@few
@given(
    vocabulary=st.sampled_from([1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK - 5]),
    temperatures=st.lists(st.sampled_from([0.05, 0.7, 1.0, 4.0]), min_size=1, max_size=4),
    ruled_out=st.sampled_from([0.0, 0.5, 0.99]),
    uniform=st.sampled_from([0.0, 0.5, 1 - 2.0**-53]) | st.floats(0, 1 - 2.0**-53),
    dtype=st.sampled_from(FLOATS),
    seed=SEEDS,
)
def test_a_draw_falls_on_the_token_in_whose_share_the_uniform_number_lies(
    vocabulary: int, temperatures: list[float], ruled_out: float, uniform: float, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    logits = (4 * torch.randn(len(temperatures), vocabulary)).to(dtype)
    logits[:, 1:].masked_fill_(torch.rand(logits[:, 1:].shape) < ruled_out, -torch.inf)
    temperature_N = torch.tensor(temperatures)
    uniforms_N = torch.full(temperature_N.shape, uniform, dtype=torch.float64)
    ids_N = draw(logits, logits.amax(dim=1, keepdim=True), temperature_N, uniforms_N)
    first_N, end_N = bounds_of(logits, temperature_N, ids_N)
    assert bool(((first_N - 1e-6 <= uniforms_N) & (uniforms_N <= end_N + 1e-6)).all())
    assert bool(logits.gather(1, ids_N[:, None]).isfinite().all()), "not one that is ruled out"


@few
@given(
    rows=st.integers(1, 4),
    vocabulary=st.sampled_from([1, 2, 50, ARGMAX_BLOCK, ARGMAX_BLOCK + 1, 2 * ARGMAX_BLOCK + 77]),
    values=st.sampled_from([3, 1000]),  # few values: many ties
    dtype=st.sampled_from(FLOATS),
    odd=st.sampled_from([None, float("inf"), -float("inf"), float("nan")]),
    seed=SEEDS,
)
def test_argmax_is_the_first_of_the_largest(
    rows: int, vocabulary: int, values: int, dtype: torch.dtype, odd: float | None, seed: int
) -> None:
    torch.manual_seed(seed)
    logits = torch.randint(-values, 0, (rows, vocabulary + 5)).to(dtype)[:, :vocabulary]
    if odd is not None:
        logits[-1, torch.randint(vocabulary, (3,))] = odd
    wanted = logits.nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=-float("inf")).argmax(dim=1)
    assert argmax(logits).tolist() == wanted.tolist()


def test_argmax_of_a_row_without_a_finite_logit_is_a_token() -> None:
    assert argmax(torch.full((2, 50), -float("inf"))).tolist() == [0, 0]


def test_a_draw_among_nan_is_a_token() -> None:
    logits = torch.full((1, BLOCK + 7), torch.nan)
    ids_N = draw(logits, logits.amax(dim=1, keepdim=True), torch.ones(1), torch.full((1,), 0.5, dtype=torch.float64))
    assert 0 <= int(ids_N) < BLOCK + 7
