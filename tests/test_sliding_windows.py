"""Layers with a sliding window: rings of keys and values, sinks, and the memory that is told of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from leanthink.engine import attention_sums, causal_attention
from leanthink.engine.bench.memory import allocated_bytes, predicted_bytes
from leanthink.engine.engine import Engine
from leanthink.engine.generation import generate, rows_that_fit
from leanthink.engine.memory_plan import GIB, Workload, plan
from leanthink.engine.policy_view import policy_view
from leanthink.engine.sampling import Sampling
from leanthink.entrypoints.openai.run import make_engine
from leanthink.entrypoints.openai.settings import Settings
from leanthink.models.loading import kv_shape
from leanthink.policies import make_policy
from leanthink.policies.budget import Budget
from leanthink.policies.observed import observed_attention
from leanthink.utils.errors import UsageError
from models import make_model, make_tokenizer, stock_tokens
from reference.labels_slow import attention_slow

TOKENIZER = make_tokenizer()
PROMPTS = [list(range(10 + i, 10 + i + n)) for i, n in enumerate((1, 7, 8, 9, 33))]  # around a window of 8, and longer
WINDOW_BYTES = 2 * 1 * 8 * 2 * 16 * 4  # keys and values, layers, tokens, kv heads, numbers, bytes


@pytest.mark.parametrize("row_slots", [None, 80])
@pytest.mark.parametrize("prefill_tokens", [1, 5, 8, 9, 500])
def test_prompts_in_pieces_of_any_size_go_on_as_transformers_does(prefill_tokens: int, row_slots: int | None) -> None:
    model = make_model("gemma3_text").double()
    engine = Engine(model, TOKENIZER, slots=400, rows=5, row_slots=row_slots, prefill_tokens=prefill_tokens)
    ids = [engine.add(prompt, policy="full", sampling=Sampling(max_new_tokens=40)) for prompt in PROMPTS]
    finished: dict[int, Any] = {}
    while engine.unfinished:
        finished |= engine.step().finished
        engine.check_integrity()
    for index, prompt in zip(ids, PROMPTS, strict=True):
        assert finished[index].token_ids == stock_tokens(model, prompt, 40)


@pytest.mark.parametrize("facts", [{"max_window_layers": 1}, {"layer_types": ["full_attention", "sliding_attention"]}])
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "smollm3"])
def test_types_that_may_have_windows_are_served_with_them(architecture: str, facts: dict[str, Any]) -> None:
    if architecture == "smollm3":
        facts = {"layer_types": ["full_attention", "sliding_attention"]}
    model = make_model(architecture, num_hidden_layers=2, use_sliding_window=True, sliding_window=8, **facts).double()
    assert kv_shape(model.config).sliding_layers == (1,)
    batch = generate(model, TOKENIZER, PROMPTS, policy="full", sampling=Sampling(max_new_tokens=40))
    assert [done.token_ids for done in batch] == [stock_tokens(model, prompt, 40) for prompt in PROMPTS]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None, sinks: Tensor | None) -> Tensor:
    """All pairs at once, in the scale 0.3."""
    S, T, A = q.shape[2], k.shape[2], q.shape[1]
    keys, values = (x.repeat_interleave(A // x.shape[1], dim=1) for x in (k, v))
    age = torch.arange(T - S, T)[:, None] - torch.arange(T)
    unseen = (age < 0) | (age >= (window or T))
    scores = (q @ keys.mT * 0.3).masked_fill(unseen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[None, :, None, None].expand(len(q), -1, S, 1)], dim=-1)
    return scores.softmax(dim=-1)[..., :T] @ values


@pytest.mark.parametrize("window", [None, 1, 7, 30, 31, 1000])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize(("asked", "seen"), [(1, 1), (1, 30), (17, 30), (30, 30)])
@pytest.mark.parametrize("scores", [1, 400, 1 << 24])
def test_attention_by_blocks_is_that_of_all_pairs(
    window: int | None, has_sinks: bool, asked: int, seen: int, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal_attention, "SCORES", scores)
    q = torch.randn(2, 6, asked, 4, dtype=torch.float64)
    k, v = torch.randn(2, 2, 2, seen, 4, dtype=torch.float64)
    sinks = torch.randn(6, dtype=torch.float64) if has_sinks else None
    got = causal_attention.causal_attention(q, k, v, 0.3, window=window, sinks_A=sinks)
    torch.testing.assert_close(got, plain_attention(q, k, v, window, sinks))


@pytest.mark.parametrize("pinned", [True, False])
def test_policies_see_the_attention_that_sinks_leave(pinned: bool) -> None:
    model, prompt = make_model("gpt_oss"), PROMPTS[4]
    model.generation_config.eos_token_id = None
    engine = Engine(model, TOKENIZER, slots=100, rows=1)
    policies = [make_policy(f"{name}:pins_prompt={str(pinned).lower()}") for name in ("h2o", "snapkv")]
    budget = Budget(slots=60, recent_window=4, eviction_interval=8)
    for policy in policies:
        engine.add(prompt, policy=policy, budget=budget, sampling=Sampling(max_new_tokens=20))
    seeds, row, cache = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), engine.cache
    for policy in policies:
        while not cache.active or int(engine.running_batch.generated[0]) < 16:
            engine.step()
        written = engine.running_batch.ids[0, :15].tolist()
        whole_AMM = torch.tensor(attention_slow(model, [*prompt, *written]))  # of the only layer with slots
        first = len(prompt) * pinned
        held, heads = len(prompt) + 15 - first, kv_shape(model.config).kv_heads
        if policy.accumulates:
            attention_sums.add(cache, [0], policy.num_queries)
        view = policy_view(cache, row, held, seeds, policy, layers=range(1))
        whole_HGMS = whole_AMM.view(heads, -1, *whole_AMM.shape[1:])[..., first:]
        if policy.accumulates:
            since = len(prompt) - 1 if pinned else 0
            assert view.accumulated_attention is not None
            wanted_HS = whole_HGMS[:, :, since:].sum(dim=(1, 2))
            torch.testing.assert_close(view.accumulated_attention[0], wanted_HS, rtol=1e-4, atol=1e-5)
        else:
            got = observed_attention(view, 3)[0]
            torch.testing.assert_close(got, whole_HGMS[:, :, -3:], rtol=1e-4, atol=1e-5)
        engine.cancel(engine.running_batch.requests[0].index)


def test_memory_told_is_what_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("gemma3_text")
    shape = kv_shape(model.config)
    assert shape.bytes_per_state(torch.float32) == WINDOW_BYTES
    per_slot = 2 * 1 * 2 * 16 * 4  # of the layer of full attention alone
    assert shape.bytes_per_slot(torch.float32) == per_slot
    engine = Engine(model, TOKENIZER, slots=50, rows=3)
    windows = engine.cache.windows
    assert windows is not None
    told = predicted_bytes(model.config, torch.float32, slots=50, rows=3)["keys_and_values"]
    assert told == engine.cache.kv_LPHTD.nbytes + allocated_bytes(windows) == 51 * per_slot + 4 * WINDOW_BYTES
    assert engine.stats().state_bytes == allocated_bytes(windows)
    room = 3 * WINDOW_BYTES + 100 * (per_slot + 8)  # two rows, the spare one, and a position for each slot
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 2 * room, "SC_PAGE_SIZE": 1}.__getitem__)
    assert rows_that_fit(model, [50] * 7, [make_policy("full")]) == 2
    assert rows_that_fit(model, [51] * 7, [make_policy("full")]) == 1
    settings: dict[str, Any] = {"name": "m", "policy": "full", "budget": None, "kv_gib": room / GIB}
    assert make_engine(model, TOKENIZER, Settings(**settings, rows=2)).cache.slots == 100
    with pytest.raises(
        UsageError, match=r"memory for 0 slots beside .* windows and states.* raise kv_gib or lower rows"
    ):
        make_engine(model, TOKENIZER, Settings(**settings, rows=500))


def test_a_plan_counts_the_windows() -> None:
    config = make_model("gemma3_text").config
    workload = Workload(prompt_tokens=100, max_tokens=1000, concurrent=4)
    how: dict[str, Any] = {"dtype": torch.float32, "workload": workload, "horizons": (16, 64)}
    found = plan(config, gpu_bytes=2e7, budgets=[Budget(slots=64)], **how)
    full, budgeted = found.rows
    assert found.bytes_per_state == WINDOW_BYTES
    assert full.bytes_per_request == 1000 * (256 + 8) + WINDOW_BYTES
    assert budgeted.bytes_per_request == budgeted.slots_per_request * found.bytes_per_slot + WINDOW_BYTES
    assert full.requests == (found.kv_bytes - WINDOW_BYTES) // full.bytes_per_request
