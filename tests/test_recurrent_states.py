"""States of linear and state-space layers: their sizes, prompts in pieces, indices used again, steps taken back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from leanthink.engine import attention
from leanthink.engine.cache import SlotCache
from leanthink.engine.engine import Engine
from leanthink.engine.recurrent_states import RecurrentStates
from leanthink.engine.sampling import Sampling
from leanthink.models.loading import kv_shape
from leanthink.models.predictor import read_metadata
from leanthink.models.transformers_versions import CACHE_NAMES
from models import HYBRIDS, endless, make_model, make_tokenizer, stock_tokens, with_experts
from test_engine import run

PROMPTS = [[5], list(range(10, 33)), [7, 8], list(range(40, 49))]


@pytest.mark.parametrize("architecture", HYBRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_states_have_the_sizes_of_transformers_and_the_bytes_that_are_told(
    architecture: str, dtype: torch.dtype
) -> None:
    model = make_model(architecture).to(dtype)
    out = model(torch.arange(5)[None], use_cache=True)
    stock = next(out[name] for name in CACHE_NAMES if name in out)
    shape = kv_shape(model.config)
    assert shape.states is not None
    states = RecurrentStates(shape.states, 3, dtype, model.device)
    kept = [index for index, layer in enumerate(stock.layers) if getattr(layer, "conv_states", {}).get(0) is not None]
    assert tuple(kept) == shape.states.layers
    for index in kept:
        theirs = [stock.layers[index].conv_states[0], stock.layers[index].recurrent_states[0]]
        found = [(state.shape[1:], state.dtype) for state in theirs if state is not None]
        assert [(state_LS.shape[2:], state_LS.dtype) for state_LS in states.tensors] == found
    assert sum(state_LS.nbytes for state_LS in states.tensors) == (3 + 1) * shape.bytes_per_state(dtype)


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_prompts_in_pieces_and_on_states_used_before_give_the_tokens_of_stock_generate(architecture: str) -> None:
    model = endless(architecture)
    engine = Engine(model, make_tokenizer(), slots=300, rows=3, prefill_tokens=4, ends=())
    gone = [engine.add(list(range(100, 120)), policy="full", sampling=Sampling(max_new_tokens=9)) for _ in range(2)]
    for steps in (8, 3):  # one of them writes already when it is cancelled, the other is still fed
        for _ in range(steps):
            engine.step()
        assert engine.cancel(gone.pop(0))
    lengths = [30, 12, 20, 25]  # they end one after the other, so that rows move
    ids = [
        engine.add(prompt, policy="full", sampling=Sampling(max_new_tokens=tokens))
        for prompt, tokens in zip(PROMPTS, lengths, strict=True)
    ]
    finished = run(engine)
    for request_id, prompt, tokens in zip(ids, PROMPTS, lengths, strict=True):
        assert finished[request_id].token_ids == stock_tokens(model, prompt, tokens), prompt


@pytest.mark.parametrize("prefill_tokens", [1, 3, 8])
def test_what_is_fed_of_a_prompt_at_a_time_does_not_depend_on_the_others(prefill_tokens: int) -> None:
    """Nemotron-H reads a token that is fed alone otherwise than among others."""
    model = endless("nemotron_h", time_step_min=2.0)
    prompts = [list(range(10 + n, 10 + 2 * n)) for n in (8, 9, 3, 12, 17, 2, 1)]

    def fed(*chosen: list[int]) -> list[tuple[int, ...]]:
        engine = Engine(model, make_tokenizer(), slots=300, rows=7, prefill_tokens=prefill_tokens, ends=())
        ids = [engine.add(prompt, policy="full", sampling=Sampling(max_new_tokens=20)) for prompt in chosen]
        finished = run(engine)
        return [finished[request_id].token_ids for request_id in ids]

    assert fed(*prompts) == [fed(prompt)[0] for prompt in prompts]


@pytest.mark.parametrize("architecture", HYBRIDS)
@torch.inference_mode()
def test_a_step_that_is_taken_back_leaves_every_state_as_it_was(architecture: str) -> None:
    model = make_model(architecture)
    engine = Engine(model, make_tokenizer(), slots=90, rows=3, ends=())
    for prompt in PROMPTS[1:]:
        engine.add(prompt, policy="full", sampling=Sampling(max_new_tokens=9))
    engine.step()
    cache, runner = engine.cache, engine.model_runner
    assert cache.recurrent is not None
    states = cache.recurrent.tensors
    assert engine.stats().state_bytes == sum(state_LS.nbytes for state_LS in states)
    before, positions = [state_LS.clone() for state_LS in states], cache.next_positions[:3].tolist()
    runner.launch_plain(3, [], logprobs=-1)
    after = [state_LS.clone() for state_LS in states]
    assert not any(torch.equal(old[:, :3], new[:, :3]) for old, new in zip(before, after, strict=True))
    for _ in range(2):  # the second time there is nothing to take back
        cache.rewind(positions)
        for state_LS, old in zip(states, before, strict=True):
            torch.testing.assert_close(state_LS, old, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ["qwen3_5_text", "bamba", "lfm2"])
@torch.inference_mode()
def test_a_step_of_more_rows_than_there_are_changes_only_the_states_of_requests_that_decode(architecture: str) -> None:
    model = make_model(architecture)
    engine = Engine(model, make_tokenizer(), slots=200, rows=5, prefill_tokens=40, ends=())
    for prompt in [*PROMPTS[1:], list(range(150, 200))]:  # the last one is still fed
        engine.add(prompt, policy="full", sampling=Sampling(max_new_tokens=9))
    engine.step()
    cache, runner = engine.cache, engine.model_runner
    assert cache.recurrent is not None
    assert cache.active == 3
    states, last_ids = cache.recurrent.tensors, runner.last_ids.clone()
    before, positions = [state_LS.clone() for state_LS in states], cache.next_positions[:3].tolist()
    runner.launch_plain(3, [], logprobs=-1)
    expected, tokens = [state_LS.clone() for state_LS in states], runner.last_ids[:3].clone()
    cache.rewind(positions)
    runner.last_ids.copy_(last_ids)
    runner._run(4, 4, [], engine.sampler.uses(3), -1)  # as a graph of four rows is captured
    assert torch.equal(runner.last_ids[:3], tokens)
    for state_LS, ours, old in zip(states, expected, before, strict=True):
        torch.testing.assert_close(state_LS[:, :3], ours[:, :3])
        assert torch.equal(state_LS[:, 3:5], old[:, 3:5])
        assert old[:, 3].any()


@pytest.mark.parametrize("architecture", [*HYBRIDS, "gemma3_text", "gpt_oss", "qwen3_moe"])
@torch.inference_mode()
def test_a_step_waits_for_nothing(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without memory, at which the host cannot look: it can be captured as a graph."""
    model = with_experts(make_model(architecture), "batched_mm").to("meta")
    monkeypatch.setattr(attention, "decode_attention", lambda q_NHGD, *_: torch.empty_like(q_NHGD))
    cache = SlotCache(kv_shape(model.config), slots=9, rows=4, dtype=model.dtype, device=model.device)
    positions_N1 = cache.start_step(3)
    _, logits_NV = attention.decode(model, cache, torch.zeros_like(positions_N1)[:, 0], positions_N1)
    assert logits_NV.shape == (3, model.config.vocab_size)


@pytest.mark.parametrize("architecture", ["nemotron_h", "lfm2_moe"])
def test_a_predictor_is_made_for_a_hybrid_model_and_ranks_its_slots(
    architecture: str, inside: Any, tmp_path: Path
) -> None:
    endless(architecture).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    made = [
        "--model",
        tmp_path / "model",
        "--tasks",
        "multiply",
        "--levels",
        "1,2",
        "--count",
        2,
        "--max-new-tokens",
        60,
    ]
    fitted = ["--horizons", "4,16", "--steps", 6, "--batch", 32, "--granularity", "head", "--out", tmp_path / "p"]
    run = inside("predictor", *made, *fitted, "--all", "--json")
    assert run.code == 0, run.err
    assert read_metadata(tmp_path / "p")["num_sets"] == 2  # of one layer in slots the kv heads
    assert json.loads(run.out)["expected"]["kl"]["sinks"] > 0
    budget = ["--budget", 8, "--recent-window", 2, "--eviction-interval", 4, "--max-new-tokens", 30, "--json"]
    used = inside("generate", "1+1=", "--model", tmp_path / "model", "--predictor", tmp_path / "p", *budget)
    assert used.code == 0, used.err
    assert json.loads(used.out)["evictions"] == 5
