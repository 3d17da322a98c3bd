from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanthink.attention import forward, slot_attention
from leanthink.cache import KVShape, SlotCache
from leanthink.errors import UnsupportedModel, UsageError
from leanthink.load import kv_shape
from models import make_model

CPU = torch.device("cpu")


def make_cache(shape: KVShape, rows: int, capacity: int) -> SlotCache:
    return SlotCache(shape, rows=rows, capacity=capacity, dtype=torch.float32, device=CPU)


def attend_slowly(
    query_D: list[float], keys: list[list[float]], values: list[list[float]], scaling: float
) -> list[float]:
    """Softmax attention of one query in plain Python."""
    weights = [math.exp(scaling * sum(q * k for q, k in zip(query_D, key, strict=True))) for key in keys]
    columns = zip(*values, strict=True)
    return [sum(w * v for w, v in zip(weights, column, strict=True)) / sum(weights) for column in columns]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    scaling=st.sampled_from([None, 0.7]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_decode_equals_the_slow_twin_over_ragged_rows(
    lengths: list[int], kv_heads: int, group: int, scaling: float | None, seed: int
) -> None:
    torch.manual_seed(seed)
    shape = KVShape(layers=1, kv_heads=kv_heads, group=group, head_dim=4)
    cache, n = make_cache(shape, rows=5, capacity=12), len(lengths)
    layer: Any = SimpleNamespace(layer_idx=0)
    for length in lengths:
        cache.start_prefill(1, length)
        prompt = torch.randn(3, 1, kv_heads, length, 4)
        slot_attention(layer, prompt[0].repeat_interleave(group, 1), prompt[1], prompt[2], None, slot_cache=cache)
        cache.finish()
    for slabs in (cache.keys[0], cache.values[0]):
        for row, length in enumerate(lengths):
            slabs[row, :, length:] = 1e4  # what lies behind a row's length must not be seen
    cache.start_step()
    query, key, value = torch.randn(n, kv_heads * group, 1, 4), *torch.randn(2, n, kv_heads, 1, 4)
    out, weights = slot_attention(layer, query, key, value, None, scaling=scaling, slot_cache=cache)
    assert weights is None
    assert out.shape == (n, 1, kv_heads * group, 4)
    for row, length in enumerate(lengths):
        for head in range(kv_heads * group):
            keys = cache.keys[0][row, head // group, : length + 1].tolist()
            values = cache.values[0][row, head // group, : length + 1].tolist()
            slow = attend_slowly(query[row, head, 0].tolist(), keys, values, scaling or 0.5)
            torch.testing.assert_close(out[row, 0, head], torch.tensor(slow), rtol=1e-4, atol=1e-5)


def test_prefill_is_causal() -> None:
    shape = KVShape(layers=1, kv_heads=2, group=2, head_dim=4)
    query, key, value = torch.randn(2, 4, 6, 4), *torch.randn(2, 2, 2, 6, 4)
    cache = make_cache(shape, rows=2, capacity=6)
    cache.start_prefill(2, 6)
    out, _ = slot_attention(SimpleNamespace(layer_idx=0), query, key, value, None, slot_cache=cache)  # type: ignore[arg-type]
    for token in range(6):
        keys, values = key[1, 0, : token + 1].tolist(), value[1, 0, : token + 1].tolist()
        slow = attend_slowly(query[1, 1, token].tolist(), keys, values, 0.5)
        torch.testing.assert_close(out[1, token, 1], torch.tensor(slow), rtol=1e-4, atol=1e-5)


def test_forward_gives_the_hidden_state_that_feeds_the_head_and_the_models_own_logits() -> None:
    model = make_model("qwen3")
    ids = torch.randint(0, 256, (2, 7))
    cache = make_cache(kv_shape(model.config), rows=2, capacity=8)
    with torch.no_grad():
        stock = model(ids, output_hidden_states=True)
        states, logits = forward(model, cache, ids, cache.start_prefill(2, 7))
    torch.testing.assert_close(logits, stock.logits[:, -1], rtol=1e-4, atol=1e-4)
    hidden, middle = states.chunk(2, dim=-1)
    torch.testing.assert_close(hidden, stock.hidden_states[-1][:, -1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.model.norm(middle), hidden, rtol=1e-4, atol=1e-4)  # of two layers it is the last
    torch.testing.assert_close(model.lm_head(hidden), logits, rtol=1e-4, atol=1e-4)


def test_the_models_own_attention_is_back_after_a_forward_and_after_a_failure() -> None:
    model = make_model()
    before = model.config._attn_implementation
    cache = make_cache(kv_shape(model.config), rows=1, capacity=8)
    with torch.no_grad():
        forward(model, cache, torch.zeros(1, 3, dtype=torch.int64), cache.start_prefill(1, 3))
    assert model.config._attn_implementation == before == "sdpa"
    positions = cache.start_step()
    with pytest.raises(IndexError):
        forward(model, cache, torch.full((1, 1), 10**6), positions)
    assert model.config._attn_implementation == "sdpa"
    assert not model.lm_head._forward_pre_hooks
    with torch.no_grad():  # and the cache can go on
        forward(model, cache, torch.zeros(1, 1, dtype=torch.int64), cache.start_step())


def test_use_without_the_cache_is_refused() -> None:
    model = make_model()
    model.config._attn_implementation = "leanthink"
    with pytest.raises(UsageError, match="works only inside"):
        model(torch.zeros(1, 3, dtype=torch.int64))


def test_softcap_and_dropout_are_refused() -> None:
    cache = make_cache(KVShape(layers=1, kv_heads=1, group=1, head_dim=4), rows=1, capacity=4)
    cache.start_prefill(1, 2)
    x, layer = torch.randn(1, 1, 2, 4), SimpleNamespace(layer_idx=0)
    with pytest.raises(UnsupportedModel, match="softcap"):
        slot_attention(layer, x, x, x, None, softcap=30.0, slot_cache=cache)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"call model\.eval"):
        slot_attention(layer, x, x, x, None, dropout=0.1, slot_cache=cache)  # type: ignore[arg-type]
