"""Policies per head rank many layers of many rows at a time: what they keep is what one layer of one row keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanthink.engine import attention_sums
from leanthink.engine.cache import SlotCache
from leanthink.engine.engine import Engine
from leanthink.engine.sampling import Sampling
from leanthink.models.kv_shape import KVShape
from leanthink.policies import POLICIES, Policy, Slots, make_policy
from leanthink.policies.budget import Budget
from leanthink.policies.h2o import H2O
from leanthink.policies.rkv import RKV
from leanthink.policies.snapkv import SnapKV
from leanthink.policies.vase import VaSE
from models import endless, make_tokenizer
from reference.layers_slow import kept_slow

LAYERS = 5
BUDGET = Budget(slots=20, recent_window=3, eviction_interval=8, max_answer_slots=8)
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [2, 7], [1, 6, 1, 8, 0], list(range(17))]
POLICIES_PER_HEAD = {name: make_policy(name) for name in POLICIES if POLICIES[name].per_head} | {
    "h2o:published": H2O(waiting=3, pins_prompt=False),
    "snapkv:published": SnapKV(pins_prompt=False),
    "r-kv:published": RKV(observation=3, pins_prompt=False),
    "vase:published": VaSE(observation=4, pins_prompt=False),
}


@dataclass(frozen=True, kw_only=True)
class ByLayer(Policy):
    """Keeps the youngest in even layers and the oldest in odd ones."""

    name: ClassVar[str] = "by-layer"
    per_head: ClassVar[bool] = True

    def score(self, slots: Slots) -> Tensor:
        assert slots.layer is not None
        return torch.where(slots.layer[:, None, None] % 2 == 0, -slots.ages, slots.ages).float()


class Watched(Engine):
    """Asks the reference implementation before it evicts, and notes how many rows and layers were shown together."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.shown: list[tuple[int, range | None]] = []
        self.kept: list[Tensor] = []
        self.evictor._kept, self.select = self._kept, self.evictor._kept  # type: ignore[method-assign]
        self.cache.evict, self.evict = self._evict_as_the_twin, self.cache.evict  # type: ignore[method-assign]

    def _kept(self, rows: list[int], rows_R: Tensor, layers: range | None) -> Tensor:
        self.shown.append((len(rows), layers))
        return self.select(rows, rows_R, layers)

    def _evict_as_the_twin(self, rows: Sequence[int], kept: Tensor, policy: Policy, **where: Any) -> None:
        count = int(self.running_batch.max_thought_slots[rows[0]])
        for place, row in enumerate(rows):
            request = self.running_batch.requests[row]
            assert request.budget is not None
            seed = int(self.sampler.seeds[row])
            assert kept[place].tolist() == kept_slow(self.cache, row, count, seed, policy, request.budget)
        self.kept.append(kept.clone())
        self.evict(rows, kept, policy, **where)


def run(policy: Policy) -> tuple[Watched, list[tuple[int, ...]]]:
    """Requests with one policy that are due together, or not; and the tokens of each."""
    model = endless(num_hidden_layers=LAYERS)
    engine = Watched(model, make_tokenizer(), slots=400, rows=4)
    for index, prompt in enumerate(PROMPTS):
        sampling = Sampling(max_new_tokens=60 + index, temperature=0.5, seed=index)
        engine.add(prompt, policy=policy, budget=BUDGET, sampling=sampling)
    finished = {}
    while engine.unfinished:
        finished |= engine.step().finished
        engine.check_integrity()
    return engine, [finished[index].token_ids for index in range(len(PROMPTS))]


@pytest.mark.parametrize("name", POLICIES_PER_HEAD)
def test_however_many_layers_are_ranked_together_each_keeps_what_it_keeps_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_sums, "CACHED_BYTES", attention_sums.SCRATCH_BYTES)
    whole, tokens = run(POLICIES_PER_HEAD[name])
    assert whole.stats().evictions > 12
    assert {layers for _, layers in whole.shown} == {range(LAYERS)}
    assert max(rows for rows, _ in whole.shown) > 1

    with monkeypatch.context() as patched:
        patched.setattr(attention_sums, "at_a_time", lambda cache, bytes_of_one, num_rows: (min(num_rows, 2), 2))
        parts, written = run(POLICIES_PER_HEAD[name])
    assert written == tokens
    assert [layers for _, layers in parts.shown] == [range(2), range(2, 4), range(4, 5)] * len(parts.kept)
    assert max(rows for rows, _ in parts.shown) == 2

    monkeypatch.setattr(attention_sums, "SCRATCH_BYTES", 1)
    single, written = run(POLICIES_PER_HEAD[name])
    assert written == tokens
    assert single.shown == [(1, range(layer, layer + 1)) for layer in range(LAYERS)] * len(single.kept)


def test_a_policy_is_told_the_layer_of_each_row() -> None:
    engine, _ = run(ByLayer())
    oldest = list(range(BUDGET.slots - BUDGET.recent_window))
    due = BUDGET.slots + BUDGET.eviction_interval
    wanted = {0: list(range(due - BUDGET.slots, due)), 1: oldest + list(range(due - BUDGET.recent_window, due))}
    for kept in engine.kept:
        for of_layers in kept.view(len(kept), LAYERS, -1, BUDGET.slots):
            for layer, heads in enumerate(of_layers.tolist()):
                assert all(head == wanted[layer % 2] for head in heads)


@given(
    layers=st.integers(1, 40),
    rows=st.integers(1, 300),
    bytes_of_one=st.integers(1, 3 << 30),
    cached=st.sampled_from([1, 1 << 20, 1 << 30]),
)
def test_rows_and_layers_at_a_time_fit_into_the_scratch(layers: int, rows: int, bytes_of_one: int, cached: int) -> None:
    shape = KVShape(layers=layers, kv_heads=1, group=1, head_dim=1)
    cache = SlotCache(shape, slots=1, rows=1, dtype=torch.float32, device=torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(attention_sums, "CACHED_BYTES", cached)
        num_rows, num_layers = attention_sums.at_a_time(cache, bytes_of_one, rows)
    assert 1 <= num_rows <= rows
    assert 1 <= num_layers <= layers
    assert num_rows * bytes_of_one <= attention_sums.SCRATCH_BYTES or num_rows == 1
    assert num_rows * num_layers * bytes_of_one <= min(attention_sums.SCRATCH_BYTES, cached) or num_layers == 1
    assert num_rows == rows or (num_rows + 1) * bytes_of_one > attention_sums.SCRATCH_BYTES
    assert num_layers == layers or num_rows * (num_layers + 1) * bytes_of_one > cached
    parts = attention_sums.layers_in_parts(cache, num_layers)
    assert [layer for part in parts for layer in part] == list(range(layers))
    assert max(map(len, parts)) == num_layers


def test_the_room_for_ranking_counts_the_prompt_that_the_queries_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    at_a_time = attention_sums.at_a_time

    def noted(cache: SlotCache, bytes_of_one: int, num_rows: int) -> tuple[int, int]:
        asked.append((bytes_of_one, attention_sums.pinned_bytes(cache, 8)))
        return at_a_time(cache, bytes_of_one, num_rows)

    monkeypatch.setattr(attention_sums, "at_a_time", noted)
    run(SnapKV(observation=8))
    (with_prompt, of_prompt), *_ = asked
    assert of_prompt > 0
    asked.clear()
    run(SnapKV(observation=8, pins_prompt=False))
    assert {of_prompt for _, of_prompt in asked} == {0}
    assert asked[0][0] == with_prompt - of_prompt
