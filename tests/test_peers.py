"""Every peer through the real engine, eviction by eviction, against a run worked out slot by slot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from leanthink.engine.engine import Engine
from leanthink.engine.forward_batch import DecodeBatch, PrefillBatch
from leanthink.engine.generation import generate
from leanthink.engine.sampling import Sampling
from leanthink.importance.labels import Thought, label_trace
from leanthink.importance.oracle import oracles
from leanthink.models.loading import kv_shape
from leanthink.policies import Policy
from leanthink.policies.budget import Budget
from leanthink.policies.dynts import DynTS
from leanthink.policies.h2o import H2O
from leanthink.policies.keydiff import KeyDiff
from leanthink.policies.oracle import Oracle
from leanthink.policies.rkv import RKV
from leanthink.policies.sepllm import SepLLM
from leanthink.policies.sinks import Sinks
from leanthink.policies.snapkv import SnapKV
from leanthink.policies.tova import TOVA
from leanthink.policies.vase import VaSE
from leanthink.utils.errors import UsageError
from models import RandomPredictor, endless, make_tokenizer
from reference.dynts_published import evicted_at_published
from reference.peers_slow import SlowRun
from reference.policies_slow import (
    Key,
    Row,
    h2o_slow,
    keydiff_slow,
    oracle_slow,
    rkv_slow,
    sepllm_slow,
    sinks_slow,
    snapkv_slow,
    tova_slow,
    vase_slow,
)

TOKENIZER = make_tokenizer()
BUDGET = Budget(slots=20, recent_window=4, eviction_interval=7, max_answer_slots=8)
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [2, 7], [1, 6, 1, 8, 0]]
HORIZONS = (3, 6, 12)


@dataclass(frozen=True)
class Peer:
    """A policy, and how its reference implementation ranks."""

    policy: Policy
    rank: Callable[[Row], list[Key]]


PEERS = {
    "h2o": Peer(H2O(waiting=5), h2o_slow),
    "snapkv": Peer(SnapKV(observation=6, kernel=3), partial(snapkv_slow, observation=6, kernel=3)),
    "r-kv": Peer(RKV(observation=3, alike=0.2), partial(rkv_slow, observation=3, alike=0.2)),
    "tova": Peer(TOVA(), tova_slow),
    "keydiff": Peer(KeyDiff(), keydiff_slow),
    "vase": Peer(VaSE(observation=3), partial(vase_slow, observation=3)),
    "sepllm": Peer(SepLLM(separator_ids=tuple(range(40))), partial(sepllm_slow, separators=tuple(range(40)))),
}


def slow_run(model: Any, peer: Peer, prompt: list[int], seed: int, budget: Budget) -> SlowRun:
    shape, policy = kv_shape(model.config), peer.policy
    return SlowRun(
        peer.rank,
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        scaling=shape.head_dim**-0.5,
        prompt=len(prompt),
        pinned=len(prompt) if policy.pins_prompt else 0,
        slots=budget.slots,
        window=budget.recent_window,
        interval=budget.eviction_interval,
        seed=seed,
        num_queries=policy.num_queries,
        shared=not policy.per_head,
    )


class Followed:
    """An engine whose requests each have a reference implementation, which is fed what the engine's layers compute."""

    def __init__(self, engine: Engine, twins: dict[int, SlowRun], prompts: list[list[int]]) -> None:
        self.engine, self.cache, self.twins, self.prompts = engine, engine.cache, twins, prompts
        self.shape = engine.cache.shape
        self.asked: dict[int, Tensor] = {}
        self.written: dict[int, tuple[Tensor, Tensor]] = {}
        append, note_queries, write = self.cache.append, self.cache.note_queries, self.cache.write

        def spy_append(layer: int, batch: DecodeBatch | PrefillBatch, keys: Tensor, values: Tensor) -> None:
            append(layer, batch, keys, values)
            if isinstance(batch, DecodeBatch):
                self.written[layer] = (keys.clone(), values.clone())

        def spy_queries(layer: int, batch: DecodeBatch | PrefillBatch, queries: Tensor) -> None:
            note_queries(layer, batch, queries)
            if isinstance(batch, DecodeBatch):
                self.asked[layer] = queries.clone()

        def spy_write(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> None:
            write(layer, queries, keys, values)
            if isinstance(self.cache.forward_batch, PrefillBatch):
                self._feed_prompts(layer, self.cache.forward_batch, queries[0], keys[0], values[0])

        self.cache.append, self.cache.note_queries, self.cache.write = spy_append, spy_queries, spy_write  # type: ignore[method-assign]

    def _feed_prompts(self, layer: int, batch: PrefillBatch, queries: Tensor, keys: Tensor, values: Tensor) -> None:
        owner = {id(entry.allocation): entry.request.index for entry in self.engine.scheduler.prefilling}
        for allocation, request in zip(self.cache.allocations, self.engine.running_batch.requests, strict=True):
            owner[id(allocation)] = request.index  # its prompt ends in this step
        at = 0
        for piece in batch.chunks:
            index = owner[id(piece.allocation)]
            for position in range(piece.done, piece.done + piece.tokens):
                self._feed(index, layer, position, queries[:, at], keys[:, at], values[:, at])
                at += 1

    def _feed(self, index: int, layer: int, position: int, queries_AD: Tensor, keys: Tensor, values: Tensor) -> None:
        prompt = self.prompts[index]
        row = next((row for row, r in enumerate(self.engine.running_batch.requests) if r.index == index), None)
        generated = [] if row is None else self.engine.running_batch.tokens(row)
        token_id = [*prompt, *generated][position]
        queries = queries_AD.view(self.shape.kv_heads, self.shape.group, -1).tolist()
        self.twins[index].feed(layer, position, token_id, keys.tolist(), values.tolist(), queries)

    def step(self) -> None:
        """One step of the engine and of all twins; every head must then hold what its twin holds."""
        self.asked, self.written = {}, {}
        note = self.engine.running_batch.note_tokens

        def spy_note(ids_N: Tensor) -> None:
            self._feed_tokens()
            note(ids_N)

        self.engine.running_batch.note_tokens = spy_note  # type: ignore[method-assign]
        assert not self.engine.step().failed
        self.engine.running_batch.note_tokens = note  # type: ignore[method-assign]
        self.engine.check_integrity()

    def _feed_tokens(self) -> None:
        """After the engine evicted, and before the new tokens are noted."""
        for row, request in enumerate(self.engine.running_batch.requests):
            twin, position = self.twins[request.index], int(self.cache.next_positions[row]) - 1
            for layer in range(self.shape.layers):
                keys, values = (part[row] for part in self.written[layer])
                self._feed(request.index, layer, position, self.asked[layer][row], keys, values)
            twin.evict_if_due(position)
            allocation, held = self.cache.allocations[row], int(self.cache.host_lengths[row])
            all_heads = (self.shape.layers, self.shape.kv_heads, -1)
            positions = self.cache.positions.expand(all_heads)[:, :, allocation.start : allocation.start + held]
            assert positions.tolist() == twin.positions(), f"request {request.index} at position {position}"


def follow(model: Any, peers: list[Peer], budgets: list[Budget], prompts: list[list[int]], tokens: int) -> list[int]:
    """Evictions of each request, all in one engine; every step compared with the reference implementations."""
    engine = Engine(model, TOKENIZER, slots=400, rows=len(peers), prefill_tokens=5, ends=())
    twins = {}
    for index, (peer, budget, prompt) in enumerate(zip(peers, budgets, prompts, strict=True)):
        sampling = Sampling(max_new_tokens=tokens + 3 * index, seed=index + 5)
        assert engine.add(prompt, policy=peer.policy, budget=budget, sampling=sampling) == index
        twins[index] = slow_run(model, peer, prompt, index + 5, budget)
    followed = Followed(engine, twins, prompts)
    while engine.unfinished:
        followed.step()
    return [twin.evictions for twin in twins.values()]


def unpinned(peer: Peer) -> Peer:
    return replace(peer, policy=replace(peer.policy, pins_prompt=False))  # type: ignore[type-var]


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_keeps_what_its_reference_implementation_keeps_eviction_by_eviction(name: str) -> None:
    budgets = [BUDGET, replace(BUDGET, eviction_interval=11), replace(BUDGET, slots=24, recent_window=0)]
    evictions = follow(endless(), [PEERS[name]] * 3, budgets, PROMPTS, 70)
    assert min(evictions) >= 4


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_as_published_keeps_what_its_reference_implementation_keeps_of_prompt_and_thought(name: str) -> None:
    budgets = [replace(BUDGET, slots=BUDGET.slots + len(prompt), recent_window=2) for prompt in PROMPTS]
    evictions = follow(endless(), [unpinned(PEERS[name])] * 3, budgets, PROMPTS, 60)
    assert min(evictions) >= 4


def test_peers_of_all_kinds_share_an_engine() -> None:
    peers = [*PEERS.values(), unpinned(PEERS["h2o"]), unpinned(PEERS["sepllm"])]
    prompts = [[index, *PROMPTS[index % 3]] for index in range(len(peers))]  # equal ones would be copied
    assert min(follow(endless(), peers, [BUDGET] * len(peers), prompts, 50)) >= 2


def test_published_sinks_are_the_first_tokens_of_the_prompt() -> None:
    peer = Peer(Sinks(pins_prompt=False), lambda row: sinks_slow(row | {"prompt_tokens": 0}))
    assert min(follow(endless(), [peer], [BUDGET], PROMPTS[:1], 60)) >= 4


def test_a_prompt_that_is_not_pinned_is_inside_the_budget() -> None:
    policy, sampling = H2O(pins_prompt=False), Sampling(max_new_tokens=80)
    (done,) = generate(endless(), TOKENIZER, PROMPTS[0], policy=policy, budget=BUDGET, sampling=sampling)
    assert done.peak_slots == BUDGET.slots + BUDGET.eviction_interval
    long = [1] * (BUDGET.slots + BUDGET.eviction_interval + 1)
    with pytest.raises(UsageError, match=r"prompt 0 has 28 tokens.*room for 20 \+ 7: give slots=21 or more"):
        generate(endless(), TOKENIZER, long, policy=policy, budget=BUDGET, sampling=sampling)


@pytest.mark.parametrize("waiting", [1, 2, 32])
def test_when_attention_is_added_up_decides_nothing(waiting: int) -> None:
    model, sampling = endless(), Sampling(max_new_tokens=90)
    done = [
        generate(model, TOKENIZER, PROMPTS, policy=H2O(waiting=w), budget=BUDGET, sampling=sampling)
        for w in (waiting, 7)
    ]
    assert [one.token_ids for one in done[0]] == [other.token_ids for other in done[1]]
    assert done[0][0].evictions > 5


def test_separators_may_be_evicted_from_a_prompt_while_the_record_is_kept() -> None:
    policy = SepLLM(separator_ids=(7,), pins_prompt=False)
    (done,) = generate(
        endless(),
        TOKENIZER,
        PROMPTS[0],
        policy=policy,
        budget=BUDGET,
        sampling=Sampling(max_new_tokens=60),
        record=True,
    )
    assert done.evicted_at is not None
    gone = [index for index, at in enumerate(done.evicted_at) if at is not None]
    assert gone == list(range(len(gone))), "no separator was written, so the oldest went first"


def test_a_prompt_that_somebody_pinned_is_not_copied_for_one_whose_queries_must_be_watched() -> None:
    model, prompt = endless(), list(range(20))
    published, budget = H2O(pins_prompt=False), replace(BUDGET, slots=30)
    options: dict[str, Any] = {"budget": budget, "sampling": Sampling(max_new_tokens=60)}
    _, beside = generate(model, TOKENIZER, [prompt, prompt], policy=["window", published], **options)
    (alone,) = generate(model, TOKENIZER, prompt, policy=published, **options)
    assert beside.token_ids == alone.token_ids


# -- the oracle ----------------------------------------------------------------------------------------------------


def recorded(model: Any, tokens: int = 70) -> list[Thought]:
    sampling = Sampling(max_new_tokens=tokens)
    full = generate(model, TOKENIZER, PROMPTS, policy="full", sampling=sampling)
    return [
        Thought(token_ids=[*prompt, *done.token_ids], prompt_tokens=len(prompt), thought_end=len(prompt) + tokens)
        for prompt, done in zip(PROMPTS, full, strict=True)
    ]


def test_an_oracle_has_the_labels_of_its_own_request() -> None:
    model = endless()
    thoughts = recorded(model)
    made = oracles(model, thoughts, HORIZONS)
    for oracle, thought in zip(made, thoughts, strict=True):
        wanted = label_trace(model, thought.token_ids, thought.prompt_tokens, thought.thought_end, HORIZONS)
        assert oracle.distances == HORIZONS
        torch.testing.assert_close(oracle.labels_XTC[0], wanted.values_TC[:, 1:])


def test_oracles_keep_what_their_reference_implementations_keep_each_for_its_request() -> None:
    model = endless()
    made: list[Oracle] = oracles(model, recorded(model), HORIZONS)
    peers = [Peer(o, partial(oracle_slow, labels=o.labels_XTC[0].tolist(), horizons=HORIZONS)) for o in made]
    assert min(follow(model, peers, [BUDGET] * 3, PROMPTS, 70)) >= 4


# -- DynTS as its authors run it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("cache", "window", "ratio"), [(40, 12, 0.5), (48, 8, 0.35), (60, 1, 0.4), (33, 20, 0.9)])
@pytest.mark.parametrize("prompt", PROMPTS[:2])
def test_dynts_evicts_what_the_published_rule_evicts(prompt: list[int], cache: int, window: int, ratio: float) -> None:
    torch.manual_seed(cache)
    predictor, scores = RandomPredictor(64, "answer"), list[float]()
    forward = predictor.forward

    def spy(hidden_states_NWF: Tensor) -> Tensor:
        predicted: Tensor = forward(hidden_states_NWF)
        scores.append(predicted.item())
        return predicted

    predictor.forward = spy  # type: ignore[method-assign]
    # The published numbers count the prompt: as soon as cache + 1 slots are held, so many of them stay.
    kept = window + int((cache + 1 - window) * ratio)
    budget = Budget(slots=kept - len(prompt), recent_window=window, eviction_interval=cache + 1 - kept)
    (done,) = generate(
        endless(),
        TOKENIZER,
        prompt,
        policy=DynTS(predictor=predictor),
        budget=budget,
        sampling=Sampling(max_new_tokens=200),
        record=True,
    )
    assert len(scores) == 200, "one for the last token of the prompt, and one for each but the last that was generated"
    wanted, lost = evicted_at_published(scores[1:], prompt=len(prompt), cache=cache, window=window, ratio=ratio)
    assert lost == 0
    assert done.evictions >= 3
    assert done.evicted_at is not None
    assert list(done.evicted_at[:-1]) == wanted


def test_the_published_rule_loses_prompt_tokens_where_they_outgrow_the_quota_and_ours_does_not() -> None:
    _, lost = evicted_at_published([0.5] * 40, prompt=30, cache=40, window=10, ratio=0.3)
    assert lost == 30 - int((41 - 10) * 0.3)
