from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leanthink.engine.attention import decode, prefill, slot_attention
from leanthink.engine.cache import SlotCache
from leanthink.engine.forward_batch import PromptChunk, in_blocks, prefill_batch
from leanthink.engine.kernels.prefill_blocks import block_shape
from leanthink.engine.slot_allocator import Allocation
from leanthink.models.kv_shape import KVShape
from leanthink.models.loading import kv_shape
from leanthink.utils.errors import UnsupportedModel, UsageError
from models import ARCHITECTURES, make_model

CPU = torch.device("cpu")
LAYER: Any = SimpleNamespace(layer_idx=0)
EQUAL = 12
POISON = 1e4  # lies in every slot that nobody has written: it must not be seen


def make_cache(shape: KVShape, rows: int, slots: int, row_slots: int | None = None) -> SlotCache:
    cache = SlotCache(shape, slots=slots, rows=rows, dtype=torch.float32, device=CPU, row_slots=row_slots)
    cache.kv_LPHTD.fill_(POISON)
    return cache


def reserve(cache: SlotCache, size: int = EQUAL) -> Allocation:
    allocation = cache.allocator.allocate(size)
    assert allocation is not None
    return allocation


def attend_slowly(
    query_D: list[float], keys: list[list[float]], values: list[list[float]], scaling: float
) -> list[float]:
    """Softmax attention of one query in plain Python."""
    weights = [math.exp(scaling * sum(q * k for q, k in zip(query_D, key, strict=True))) for key in keys]
    columns = zip(*values, strict=True)
    return [sum(w * v for w, v in zip(weights, column, strict=True)) / sum(weights) for column in columns]


def attend_all_slowly(query_GSD: Tensor, keys_HSD: Tensor, values_HSD: Tensor, scaling: float) -> Tensor:
    """The last tokens of a prompt, each over itself and what came before it, [S, query heads, D]."""
    group, before = len(query_GSD) // len(keys_HSD), keys_HSD.shape[1] - query_GSD.shape[1]
    rows = [
        [
            attend_slowly(q_D.tolist(), keys_SD[: seen + 1].tolist(), values_SD[: seen + 1].tolist(), scaling)
            for q_D, keys_SD, values_SD in zip(
                query_GSD[:, seen - before],
                keys_HSD.repeat_interleave(group, 0),
                values_HSD.repeat_interleave(group, 0),
                strict=True,
            )
        ]
        for seen in range(before, keys_HSD.shape[1])
    ]
    return torch.tensor(rows)


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    scaling=st.sampled_from([None, 0.7]),
    row_slots=st.sampled_from([None, EQUAL]),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=80, deadline=None)
def test_decode_equals_the_reference_implementation_over_ragged_rows(
    lengths: list[int], kv_heads: int, group: int, scaling: float | None, row_slots: int | None, order: Any, seed: int
) -> None:
    torch.manual_seed(seed)
    shape = KVShape(layers=1, kv_heads=kv_heads, group=group, head_dim=4)
    cache, n = make_cache(shape, rows=5, slots=63, row_slots=row_slots), len(lengths)
    allocations = [reserve(cache) for _ in range(n + 1)]  # one of them, at any place, is still fed
    order.shuffle(allocations)
    for allocation, length in zip(allocations, lengths, strict=False):
        allocation_T = slice(allocation.start, allocation.start + length)
        cache.kv_LPHTD[:, :, :, allocation_T] = torch.randn(1, 2, kv_heads, length, 4)
        cache.assign_row(allocation, length + 1)
    cache.start_step()
    query, key, value = torch.randn(n, kv_heads * group, 1, 4), *torch.randn(2, n, kv_heads, 1, 4)
    out, weights = slot_attention(LAYER, query, key, value, None, scaling=scaling, slot_cache=cache)
    assert weights is None
    assert out.shape == (n, 1, kv_heads * group, 4)
    for row, length in enumerate(lengths):
        held = slice(allocations[row].start, allocations[row].start + length + 1)
        assert torch.equal(cache.layer(0).keys_HTD[:, held][:, -1], key[row, :, 0])
        slow = attend_all_slowly(
            query[row], cache.layer(0).keys_HTD[:, held], cache.layer(0).values_HTD[:, held], scaling or 0.5
        )
        torch.testing.assert_close(out[row], slow, rtol=1e-4, atol=1e-5)


@given(
    chunks=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 50)), min_size=1, max_size=5),
    rows=st.sampled_from([1, 4, 16, 64]),
    group=st.integers(1, 7),
)
def test_blocks_take_every_row_of_a_prompt_once_those_that_see_most_first(
    chunks: list[tuple[int, int]], rows: int, group: int
) -> None:
    tokens_C, done_C = (torch.tensor(numbers) for numbers in zip(*chunks, strict=True))
    blocks = in_blocks(tokens_C, done_C, rows, group).tolist()
    wanted = [(chunk, row) for chunk, (tokens, _) in enumerate(chunks) for row in range(0, tokens * group, rows)]
    assert sorted(map(tuple, blocks)) == wanted
    seen = [chunks[chunk][1] + row // group for chunk, row in blocks]
    assert seen == sorted(seen, reverse=True)


def test_what_a_forward_over_prompts_is_told_of_them() -> None:
    chunks = [
        PromptChunk(allocation=Allocation(start=start, size=9), done=done, tokens=tokens)
        for start, done, tokens in ((30, 2, 3), (7, 0, 2))
    ]
    kv_LPHTD, rows = torch.zeros(1, 2, 2, 40, 4), block_shape(4, torch.float32).rows
    plain, packed = (prefill_batch(chunks, kv_LPHTD, group) for group in (None, rows))
    for batch in (plain, packed):
        assert batch.positions_S.tolist() == [2, 3, 4, 0, 1]
        assert batch.write_N.tolist() == [32, 33, 34, 7, 8]
        assert list(batch.spans) == [(slice(32, 35), slice(0, 3)), (slice(7, 9), slice(3, 5))]
    assert plain.chunks_C4 is None
    assert plain.blocks_B2 is None
    assert packed.chunks_C4 is not None
    assert packed.blocks_B2 is not None
    assert packed.chunks_C4.tolist() == [[0, 3, 30, 2], [3, 2, 7, 0]]
    assert packed.blocks_B2.tolist() == [[0, 2 * rows], [0, rows], [0, 0], [1, rows], [1, 0]]


@given(
    prompts=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=3),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    row_slots=st.sampled_from([None, 20]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_prompts_in_pieces_of_any_cut_equal_one_piece_and_the_reference_implementation(
    prompts: list[list[int]], kv_heads: int, group: int, row_slots: int | None, seed: int
) -> None:
    torch.manual_seed(seed)
    shape = KVShape(layers=1, kv_heads=kv_heads, group=group, head_dim=4)
    cache, n = make_cache(shape, rows=1, slots=123, row_slots=row_slots), len(prompts)
    allocations, outs = [reserve(cache, 20) for _ in prompts], [torch.empty(0, kv_heads * group, 4)] * n
    queries = [torch.randn(kv_heads * group, sum(cuts), 4) for cuts in prompts]
    keys, values = ([torch.randn(kv_heads, sum(cuts), 4) for cuts in prompts] for _ in range(2))
    for turn in range(4):  # every forward feeds a piece of each prompt that has one left
        fed = [(i, sum(cuts[:turn]), cuts[turn]) for i, cuts in enumerate(prompts) if turn < len(cuts)]
        if not fed:
            break
        cache.start_prefill(
            [PromptChunk(allocation=allocations[i], done=done, tokens=tokens) for i, done, tokens in fed]
        )
        whole = (torch.cat([x[i][:, at : at + m] for i, at, m in fed], dim=1)[None] for x in (queries, keys, values))
        out, weights = slot_attention(LAYER, *whole, None, slot_cache=cache)
        cache.finish()
        assert weights is None
        assert out.shape == (1, sum(tokens for *_, tokens in fed), kv_heads * group, 4)
        for (i, *_), piece in zip(fed, out[0].split([tokens for *_, tokens in fed]), strict=True):
            outs[i] = torch.cat([outs[i], piece])
    for i in range(n):
        slow = attend_all_slowly(queries[i], keys[i], values[i], 0.5)
        torch.testing.assert_close(outs[i], slow, rtol=1e-4, atol=1e-5)
        alone, tokens = make_cache(shape, rows=1, slots=20), len(slow)
        alone.start_prefill([PromptChunk(allocation=reserve(alone, tokens), done=0, tokens=tokens)])
        one, _ = slot_attention(LAYER, queries[i][None], keys[i][None], values[i][None], None, slot_cache=alone)
        torch.testing.assert_close(outs[i], one[0], rtol=1e-4, atol=1e-5)


def test_the_scale_of_the_models_layers_is_noted_for_policies() -> None:
    cache = make_cache(KVShape(layers=1, kv_heads=1, group=1, head_dim=4), rows=1, slots=4)
    x = torch.randn(1, 1, 2, 4)
    for given_scaling, noted in ((None, 0.5), (0.7, 0.7)):
        cache.start_prefill([PromptChunk(allocation=reserve(cache, 2), done=0, tokens=2)])
        slot_attention(LAYER, x, x, x, None, scaling=given_scaling, slot_cache=cache)
        cache.finish()
        assert cache.scaling == noted


# -- the model -----------------------------------------------------------------------------------------------------


def fed_cache(model: Any, prompts: list[Tensor], row_slots: int | None) -> SlotCache:
    """Rows that hold all but the last token of these prompts, which are fed in two forwards, cut anywhere."""
    cache = make_cache(kv_shape(model.config), rows=len(prompts), slots=60, row_slots=row_slots)
    allocations = [reserve(cache) for _ in prompts]
    for first in (True, False):
        pieces, ids = [], []
        for allocation, prompt in zip(allocations, prompts, strict=True):
            cut, fed = len(prompt) // 3, len(prompt) - 1
            done, tokens = (0, cut) if first else (cut, fed - cut)
            pieces.append(PromptChunk(allocation=allocation, done=done, tokens=tokens))
            ids.append(prompt[done : done + tokens])
        prefill(model, cache, torch.cat(ids)[None], cache.start_prefill([piece for piece in pieces if piece.tokens]))
    for allocation, prompt in zip(allocations, prompts, strict=True):
        cache.assign_row(allocation, len(prompt))
    return cache


@pytest.mark.parametrize("row_slots", [None, EQUAL])
@pytest.mark.parametrize("architecture", ["qwen3", "phi3", "gemma3_text", "gpt_oss"])
def test_decode_gives_the_models_own_logits_and_the_states_that_feed_the_head(
    architecture: str, row_slots: int | None
) -> None:
    model = make_model(architecture, **({"sliding_window": 3} if "layer_types" in ARCHITECTURES[architecture] else {}))
    texts = [torch.randint(0, 256, (length,)) for length in (9, 4, 6)]
    with torch.no_grad():
        cache = fed_cache(model, [text[:-1] for text in texts], row_slots)
        for token in (-2, -1):
            ids_N = torch.stack([text[token] for text in texts])
            states, logits = decode(model, cache, ids_N, cache.start_step())
            cache.advance()
            cache.check_integrity()
            for row, text in enumerate(texts):
                stock = model(text[None, : len(text) + 1 + token], output_hidden_states=True)
                torch.testing.assert_close(logits[row], stock.logits[0, -1], rtol=1e-4, atol=1e-4)
                hidden, middle = states[row].chunk(2)
                torch.testing.assert_close(hidden, stock.hidden_states[-1][0, -1], rtol=1e-4, atol=1e-4)
                # Of two layers the middle one is the last.
                torch.testing.assert_close(model.model.norm(middle), hidden, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(model.lm_head(hidden), logits[row], rtol=1e-4, atol=1e-4)


def test_the_models_own_attention_is_back_after_a_forward_and_after_a_failure() -> None:
    model, wrong = make_model(), 10**6
    before = model.config._attn_implementation
    text = torch.tensor([5, 6, 7, 8])
    cache = make_cache(kv_shape(model.config), rows=1, slots=8)
    allocation = reserve(cache, 8)

    def feed(ids: list[int], done: int) -> None:
        chunk = PromptChunk(allocation=allocation, done=done, tokens=len(ids))
        prefill(model, cache, torch.tensor([ids]), cache.start_prefill([chunk]))
        assert model.config._attn_implementation == before == "sdpa"

    with torch.no_grad():
        feed([5], done=0)
        with pytest.raises(IndexError):
            feed([6, wrong], done=1)
        assert model.config._attn_implementation == "sdpa"
        assert cache.forward_batch is None
        feed([6, 7], done=1)  # and the cache can go on
        cache.assign_row(allocation, 4)
        with pytest.raises(IndexError):
            decode(model, cache, torch.tensor([wrong]), cache.start_step())
        assert model.config._attn_implementation == "sdpa"
        assert not model.lm_head._forward_pre_hooks
        assert not any(layer._forward_hooks for layer in model.model.layers)
        cache.check_integrity()
        _, logits = decode(model, cache, text[-1:], cache.start_step())
        torch.testing.assert_close(logits[0], model(text[None]).logits[0, -1], rtol=1e-4, atol=1e-4)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("model", [make_model(), make_model("gpt_oss", sliding_window=2)], ids=["llama", "gpt_oss"])
def test_a_step_that_fails_between_two_layers_can_be_repeated(model: Any) -> None:
    text = torch.tensor([5, 6, 7, 8])
    with torch.no_grad():
        cache = fed_cache(model, [text], None)

        def fail(*_: object) -> None:
            raise RuntimeError("out of memory")

        hook = model.model.layers[1].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            decode(model, cache, text[-1:], cache.start_step())
        hook.remove()
        cache.check_integrity()
        _, logits = decode(model, cache, text[-1:], cache.start_step())
        torch.testing.assert_close(logits[0], model(text[None]).logits[0, -1], rtol=1e-4, atol=1e-4)


# -- refusals ------------------------------------------------------------------------------------------------------


def test_use_without_the_cache_is_refused() -> None:
    model = make_model()
    model.config._attn_implementation = "leanthink"
    with pytest.raises(UsageError, match="works only inside"):
        model(torch.zeros(1, 3, dtype=torch.int64))


def test_use_without_an_announcement_is_refused() -> None:
    cache = make_cache(KVShape(layers=1, kv_heads=1, group=1, head_dim=4), rows=1, slots=4)
    x = torch.randn(1, 1, 2, 4)
    with pytest.raises(UsageError, match="works only inside"):
        slot_attention(LAYER, x, x, x, None, slot_cache=cache)


def test_softcap_and_dropout_are_refused() -> None:
    cache = make_cache(KVShape(layers=1, kv_heads=1, group=1, head_dim=4), rows=1, slots=4)
    cache.start_prefill([PromptChunk(allocation=reserve(cache, 4), done=0, tokens=2)])
    x = torch.randn(1, 1, 2, 4)
    with pytest.raises(UnsupportedModel, match="softcap"):
        slot_attention(LAYER, x, x, x, None, softcap=30.0, slot_cache=cache)
    with pytest.raises(UsageError, match=r"call model\.eval"):
        slot_attention(LAYER, x, x, x, None, dropout=0.1, slot_cache=cache)
    assert bool((cache.kv_LPHTD == POISON).all()), "nothing was written"
