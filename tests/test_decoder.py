from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from leanthink.engine import attention, decoder
from leanthink.engine.cache import SlotCache
from leanthink.engine.cache_requirements import CacheRequirements
from leanthink.engine.forward_batch import PromptChunk
from leanthink.engine.generation import generate
from leanthink.engine.hidden_states import hidden_state_size
from leanthink.engine.sampling import Sampling
from leanthink.models.fingerprint import fingerprint
from leanthink.models.loading import kv_shape
from models import make_model, make_tokenizer


def cache_with_prompts(model: Any, lengths: list[int]) -> SlotCache:
    """Rows whose prompts, all but the last token, have been fed."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"slots": 100, "rows": 4, "dtype": torch.float32, "device": torch.device("cpu")}
    cache = SlotCache(kv_shape(model.config), hidden_state_size=hidden_state_size(model), **shape)
    for length in lengths:
        allocation = cache.allocator.allocate(20)
        assert allocation is not None
        positions = cache.start_prefill([PromptChunk(allocation=allocation, done=0, tokens=length - 1)])
        attention.prefill(model, cache, torch.randint(0, 250, (1, length - 1)), positions)
        cache.assign_row(allocation, length)
    return cache


@pytest.mark.parametrize("architecture", decoder.FAMILIES)
@pytest.mark.parametrize("layers", [1, 3])
@torch.no_grad()
def test_the_lean_forward_says_what_the_models_own_says(architecture: str, layers: int) -> None:
    model = make_model(architecture, num_hidden_layers=layers)
    assert decoder.is_llama_like(model)
    stock, lean = cache_with_prompts(model, [5, 2, 9]), cache_with_prompts(model, [5, 2, 9])
    for _ in range(4):
        ids = torch.randint(0, 250, (3,))
        wanted = attention.decode(model, stock, ids, stock.start_step())
        got = decoder.LeanDecoder(model)(lean, ids, lean.start_step())
        for cache in (stock, lean):
            cache.advance()
            cache.check_integrity()
        for ours, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(lean.kv_LPHTD, stock.kv_LPHTD, rtol=1e-4, atol=1e-4)
    assert lean.scaling == stock.scaling


@pytest.mark.parametrize("architecture", decoder.FAMILIES)
@pytest.mark.parametrize("layers", [1, 3])
@torch.no_grad()
def test_prompts_fed_by_the_lean_forward_leave_what_the_models_own_leaves(architecture: str, layers: int) -> None:
    model = make_model(architecture, num_hidden_layers=layers)
    stock, lean = cache_with_prompts(model, []), cache_with_prompts(model, [])
    forwards = (partial(attention.prefill, model), decoder.LeanDecoder(model).prefill)
    ids = torch.randint(0, 250, (1, 23))
    for cache, forward in zip((stock, lean), forwards, strict=True):
        cache.require(CacheRequirements(prompt_attention=True, accumulated_attention=True))
        first, second = (cache.allocator.allocate(20) for _ in range(2))
        assert first is not None
        assert second is not None
        for fed in ([(first, 0, 9), (second, 0, 1)], [(second, 1, 6), (first, 9, 7)]):
            chunks = [PromptChunk(allocation=to, done=done, tokens=tokens) for to, done, tokens in fed]
            tokens = sum(chunk.tokens for chunk in chunks)
            forward(cache, ids[:, :tokens], cache.start_prefill(chunks))
            ids = ids.roll(-tokens, 1)
        assert cache.forward_batch is None
    assert lean.kv_LPHTD.any()
    assert lean.accumulated_attention_LHT.any()
    torch.testing.assert_close(lean.kv_LPHTD, stock.kv_LPHTD, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lean.accumulated_attention_LHT, stock.accumulated_attention_LHT, rtol=1e-4, atol=1e-4)
    assert lean.scaling == stock.scaling


@pytest.mark.parametrize("architecture", decoder.FAMILIES)
@pytest.mark.parametrize("layers", [1, 3])
@torch.no_grad()
def test_rows_fed_together_with_prompts_leave_what_two_forwards_leave(architecture: str, layers: int) -> None:
    """One prompt goes on, one ends and has a row already."""
    model = make_model(architecture, num_hidden_layers=layers)
    lean, left = decoder.LeanDecoder(model), []
    fed_S, ids_N = torch.randint(0, 250, (13,)), torch.randint(0, 250, (4,))
    for together in (False, True):
        cache = cache_with_prompts(model, [5, 2, 9])
        cache.require(CacheRequirements(prompt_attention=True, accumulated_attention=True, queries=3, token_ids=True))
        going_on, ending = (cache.allocator.allocate(20) for _ in range(2))
        assert going_on is not None
        assert ending is not None
        cache.assign_row(ending, 10)
        chunks = [PromptChunk(allocation=going_on, done=0, tokens=4), PromptChunk(allocation=ending, done=0, tokens=9)]
        positions = cache.start_prefill(chunks)
        if not together:
            lean.prefill(cache, fed_S[None], positions)
        positions = cache.start_step()
        cache.note_token_ids(ids_N)
        outputs = lean(cache, torch.cat([fed_S, ids_N]) if together else ids_N, positions)
        cache.advance()
        cache.check_integrity()
        facts = (cache.kv_LPHTD, cache.accumulated_attention_LHT, cache.queries, cache.token_ids, cache.positions)
        left.append((*outputs, *facts, cache.table))
        assert all(bool(fact.any()) for fact in left[-1])
    for one, two in zip(*left, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_half_precision_is_rounded_where_the_modules_round() -> None:
    model = make_model("qwen3").bfloat16()
    x = torch.randn(4, 64).bfloat16()
    norm = model.model.layers[0].input_layernorm
    assert torch.equal(decoder._Plain.norm(x, norm.weight, norm.variance_epsilon), norm(x))


class Int8Weight(torch.Tensor):
    """A weight of whole numbers and a scale for each row that has no memory of its own, as torchao's are."""

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> Int8Weight:
        return cls._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)  # type: ignore[attr-defined, no-any-return]

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.codes, self.scale = codes, scale

    def dequantize(self) -> Tensor:
        return self.codes * self.scale

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        if func is torch.ops.aten.view.default:
            raise NotImplementedError
        plain = [one.codes * one.scale if isinstance(one, cls) else one for one in args]
        return func(*plain, **(kwargs or {}))


class OnlyMultiplied(Int8Weight):
    """One that tells its numbers in products alone."""

    dequantize = Tensor.dequantize


@pytest.mark.parametrize("kind", [Int8Weight, OnlyMultiplied])
@torch.no_grad()
def test_weights_of_another_type_in_plain_modules_go_through_the_module(kind: type[Int8Weight]) -> None:
    model, rounded = make_model("qwen3"), make_model("qwen3")
    for layer, own in zip(model.model.layers, rounded.model.layers, strict=True):
        for part, same in zip(layer.modules(), own.modules(), strict=True):
            if isinstance(part, torch.nn.Linear):
                scale = part.weight.abs().amax(dim=1, keepdim=True) / 127
                codes = (part.weight / scale).round().to(torch.int8)
                same.weight.copy_(codes * scale)
                part.weight = torch.nn.Parameter(kind(codes, scale), requires_grad=False)
    assert not decoder.is_llama_like(model)
    assert decoder.is_llama_like(rounded)
    how: dict[str, Any] = {"policy": "full", "sampling": Sampling(max_new_tokens=40)}
    prompts = [[5, 6, 7], [9] * 20]
    tokens = [[one.token_ids for one in generate(m, make_tokenizer(), prompts, **how)] for m in (model, rounded)]
    assert tokens[0] == tokens[1]
    assert fingerprint(model) == fingerprint(rounded)


def linears(model: Any) -> list[torch.nn.Linear]:
    return [part for part in model.model.layers.modules() if isinstance(part, torch.nn.Linear)]


def test_weights_that_the_first_forward_unpacks_are_unpacked_before_anybody_looks() -> None:
    model, whole = make_model("qwen3"), make_model("qwen3")
    for part in linears(model):
        part.weight.requires_grad_(False).div_(2)
        part.forward = partial(torch.nn.Linear.forward, part)

    def unpack(root: Any, _: Any) -> None:
        for part in linears(root):
            part.weight.mul_(2)
        root.ct_decompress_hook.remove()
        del root.ct_decompress_hook

    model.ct_decompress_hook = model.register_forward_pre_hook(unpack)
    assert fingerprint(model) != fingerprint(whole)
    assert not decoder.is_llama_like(model), "whoever replaced the forward of a module wants it to be called"
    how: dict[str, Any] = {"policy": "full", "sampling": Sampling(max_new_tokens=40)}
    tokens = [generate(one, make_tokenizer(), [[5, 6, 7]], **how)[0].token_ids for one in (model, whole)]
    assert tokens[0] == tokens[1]
    assert fingerprint(model) == fingerprint(whole)


def test_other_families_changed_classes_and_hooked_layers_keep_their_own_forward() -> None:
    assert not decoder.is_llama_like(make_model("phi3"))
    assert not decoder.is_llama_like(make_model("gemma3_text"))
    model = make_model("llama")
    hook = model.model.layers[1].register_forward_hook(lambda *_: None)
    assert not decoder.is_llama_like(model)
    hook.remove()
    assert decoder.is_llama_like(model)

    model.lm_head = torch.nn.Linear(64, 300)
    model.model.layers[0].mlp.up_proj = type("Quantised", (torch.nn.Linear,), {})(64, 96)
    assert not decoder.is_llama_like(model)
    model = make_model("llama")

    class Changed(type(model)):  # type: ignore[misc]
        pass

    model.__class__ = Changed
    assert not decoder.is_llama_like(model)


def test_a_failed_forward_is_called_off() -> None:
    model = make_model("llama")
    cache = cache_with_prompts(model, [3])
    with pytest.raises(IndexError), torch.no_grad():
        decoder.LeanDecoder(model)(cache, torch.tensor([10**6]), cache.start_step())
    allocation = cache.allocator.allocate(5)
    assert allocation is not None
    chunk = PromptChunk(allocation=allocation, done=0, tokens=1)
    with pytest.raises(IndexError), torch.no_grad():
        decoder.LeanDecoder(model).prefill(cache, torch.tensor([[10**6]]), cache.start_prefill([chunk]))
    with torch.no_grad():
        decoder.LeanDecoder(model)(cache, torch.tensor([1]), cache.start_step())
    cache.advance()
    cache.check_integrity()
