"""Heads that prompts share are fed once: who may have them, that they are the very same, and how they are counted."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from leanthink.engine.engine import Engine
from leanthink.engine.generation import generate
from leanthink.engine.outputs import Completion
from leanthink.engine.prefix_caching import CHUNK_TOKENS, chunk_keys
from leanthink.engine.sampling import Sampling
from leanthink.policies import make_policy
from leanthink.policies.budget import Budget
from leanthink.utils.errors import UsageError
from models import make_model
from test_engine import TOKENIZER, endless, make_policies, run

HEAD = list(range(100, 140))  # two chunks and a half
ROOMY = Budget(slots=70, recent_window=3, eviction_interval=5, max_answer_slots=20)


class Observed:
    """An engine; after each step every known chunk must hold what the first with its key held."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.first, self.fed = engine, dict[bytes, Tensor](), 0
        self.tokens: dict[bytes, int] = {}  # that each key tells of
        forward = engine.scheduler.forward

        def counted(chunks: Any) -> None:
            self.fed += sum(chunk.tokens for _, chunk in chunks)
            forward(chunks)

        engine.scheduler.forward = counted  # type: ignore[method-assign]

    def check(self) -> None:
        self.engine.check_integrity()
        for request in self.engine.scheduler.requests:
            left = len(request.prompt_ids) - 1
            self.tokens |= {key: left - CHUNK_TOKENS * at for at, key in enumerate(chunk_keys(request))}
        for allocation, keys in self.engine.scheduler.prefix_cache._keys.items():
            for at, key in enumerate(keys):
                start = allocation.start + CHUNK_TOKENS * at
                end = start + min(CHUNK_TOKENS, self.tokens[key])
                held = self.engine.cache.kv_LPHTD[:, :, :, start:end]
                torch.testing.assert_close(held, self.first.setdefault(key, held.clone()), rtol=0, atol=1e-9)

    def step(self) -> dict[int, Completion]:
        progress = self.engine.step()
        assert not progress.failed
        self.check()
        return progress.finished

    def add(self, prompt: list[int], policy: Any = "full", tokens: int = 4, **choices: Any) -> int:
        budget = None if policy == "full" else ROOMY
        return self.engine.add(
            prompt, policy=policy, budget=budget, sampling=Sampling(max_new_tokens=tokens), **choices
        )


def observed(**options: Any) -> Observed:
    return Observed(Engine(endless().double(), TOKENIZER, **({"slots": 900, "rows": 8} | options)))


@pytest.mark.parametrize("row_slots", [None, 170])
@pytest.mark.parametrize("seed", range(4))
def test_families_of_prompts_get_what_each_gets_without_sharing(seed: int, row_slots: int | None) -> None:
    chance, model, policies = random.Random(seed), make_model(seed=seed).double(), make_policies(torch.float64)
    own = {"slots": 800, "rows": 5, "row_slots": row_slots, "prefill_tokens": chance.choice([5, 20, 500])}
    engine = Engine(model, TOKENIZER, **own)
    watched, trunk = Observed(engine), [chance.randrange(250) for _ in range(70)]
    asked: dict[int, dict[str, Any]] = {}
    finished: dict[int, Completion] = {}
    cancelled: set[int] = set()
    while len(asked) < 40 or engine.unfinished:
        if len(asked) < 40 and chance.random() < 0.7:
            head = max(0, chance.choice([0, 16, 32, 48, 64]) + chance.randint(-1, 2))
            tail = [chance.randrange(250) for _ in range(chance.choice([0, 1, 7, 20]))]
            policy = chance.choice(policies)
            slots = 9 if policy.pins_prompt else 90
            bounded = Budget(slots=slots, recent_window=3, eviction_interval=5, max_answer_slots=20)
            choices = {
                "policy": policy,
                "budget": None if policy.name == "full" else bounded,
                "sampling": Sampling(max_new_tokens=chance.randrange(1, 40), seed=chance.randrange(99)),
            }
            prompt = (trunk[:head] + tail) or trunk[:1]
            asked[engine.add(prompt, cache_salt=chance.choice([None, "s"]), **choices)] = {"prompts": prompt} | choices
        finished |= watched.step()
        prefilling = [entry.request.index for entry in engine.scheduler.prefilling]
        victims = prefilling or sorted(asked.keys() - finished.keys() - cancelled)
        if victims and chance.random() < 0.12:
            cancelled.add(victim := chance.choice(victims))
            assert engine.cancel(victim)
            watched.check()
    assert cancelled
    assert sum(done.cached_tokens for done in finished.values()) > 100
    for request_id, done in finished.items():
        (alone,) = generate(model, TOKENIZER, **asked[request_id], enable_prefix_caching=False)
        assert done.token_ids == alone.token_ids, asked[request_id]["policy"]
        assert (done.evictions, alone.cached_tokens) == (alone.evictions, 0)


def test_hits_are_counted_by_hand() -> None:
    watched = observed()
    source, a, b = HEAD + [1] * 10, HEAD + [2] * 5, [*HEAD, 3]
    wanted = {watched.add(source, tokens=30): 0}
    wanted[watched.add(a, tokens=30)] = 32  # waits a step for the head, which is fed once
    wanted[watched.add(source, "window")] = 49  # an equal prompt: all but the last token, which decoding feeds
    wanted[watched.add(HEAD[:32])] = 16  # its second chunk ends with the token that decoding feeds
    wanted[watched.add(HEAD[:33])] = 32
    wanted[watched.add(HEAD[1:])] = 0
    wanted[watched.add(source, cache_salt="x")] = 0
    wanted[watched.add(b, make_policy("h2o:pins_prompt=false"))] = 0  # needs the attention of all the prompt's queries
    wanted[watched.add(b, make_policy("snapkv:pins_prompt=false"))] = 32
    finished: dict[int, Completion] = {}
    while watched.engine.unfinished:
        finished |= watched.step()
    assert {i: done.cached_tokens for i, done in finished.items()} == wanted
    lengths = [50, 45, 50, 32, 33, 39, 50, 41, 41]
    stats = watched.engine.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (sum(lengths), 0 + 32 + 49 + 16 + 32 + 32)
    assert watched.fed == sum(lengths) - len(lengths) - stats.prefix_cache_hits


def test_nobody_copies_from_a_prompt_that_may_lose_slots_or_where_it_is_off() -> None:
    for policy, options in (("keydiff:pins_prompt=false", {}), ("full", {"enable_prefix_caching": False})):
        watched = observed(**options)
        for _ in range(2):
            watched.add(HEAD, make_policy(policy) if ":" in policy else policy)
        assert [done.cached_tokens for done in run(watched.engine).values()] == [0, 0]
        assert watched.fed == 2 * (len(HEAD) - 1)
    assert watched.engine.stats().prefix_cache_queries == 0


def test_who_waits_for_a_prompt_that_is_given_up_feeds_its_own() -> None:
    watched = observed(prefill_tokens=10)
    source, other = watched.add([*HEAD, 1]), watched.add([*HEAD, 2])
    for _ in range(3):
        watched.step()
    assert [entry.done for entry in watched.engine.scheduler.prefilling] == [30, 0]
    assert watched.engine.cancel(source)
    watched.check()
    assert run(watched.engine)[other].cached_tokens == 0
    assert watched.fed == 30 + 40


def test_a_prompt_that_has_ended_serves_until_its_slots_are_given_to_another() -> None:
    watched = observed(slots=200)
    watched.add(HEAD)  # slots 0 to 43
    run(watched.engine)
    copied = watched.engine.cache.copy_prompt
    watched.engine.cache.copy_prompt = None  # type: ignore[assignment, method-assign]
    for tail, cached in (([], 39), ([1], 32), ([2], 32)):
        request_id = watched.add(HEAD + tail, tokens=60)  # it lies where it is wanted
        watched.step()
        done = watched.engine.finish_early(request_id)
        assert done is not None
        assert done.cached_tokens == cached
    watched.engine.cache.copy_prompt = copied  # type: ignore[method-assign]
    short = watched.add([7], tokens=30)  # slots 0 to 30, which are written again
    watched.step()
    assert run(watched.engine).keys() == {short}
    watched.add([*HEAD, 3])
    assert [done.cached_tokens for done in run(watched.engine).values()] == [0]
    watched.add(HEAD)
    with pytest.raises(UsageError, match="1 requests are unfinished: change weights when all have ended"):
        watched.engine.reset_prefix_cache()
    run(watched.engine)
    watched.engine.reset_prefix_cache()
    watched.add(HEAD)
    assert [done.cached_tokens for done in run(watched.engine).values()] == [0]


def test_a_prompt_that_lies_across_the_slots_of_a_request_is_no_source() -> None:
    watched = observed(slots=200)
    for prompt in ([7] * 6, HEAD):  # slots 0 to 10, and 10 to 54
        watched.add(prompt)
    run(watched.engine)
    watched.add([*HEAD, 1])  # 0 to 45
    assert [done.cached_tokens for done in run(watched.engine).values()] == [0]


def test_what_is_copied_in_two_goes_counts_once() -> None:
    watched = observed()
    watched.add(HEAD, tokens=30)
    watched.step()
    first, second = (watched.add([*HEAD, *HEAD, tail]) for tail in (1, 2))  # both begin with 32 tokens of the head
    finished = run(watched.engine)
    assert (finished[first].cached_tokens, finished[second].cached_tokens) == (32, 80)


def test_prompts_of_a_forward_that_raises_are_fed_from_their_beginning_and_count_so() -> None:
    watched = observed()
    watched.add(HEAD, tokens=30)
    watched.step()
    runner = watched.engine.model_runner
    prefill = runner.prefill

    def failing(token_ids: Any, chunks: Any) -> None:
        assert 250 not in token_ids, "odd"
        prefill(token_ids, chunks)

    runner.prefill = failing  # type: ignore[method-assign]
    good, odd = watched.add([*HEAD, 1]), watched.add([*HEAD[:20], 250, 1])
    assert watched.engine.step().failed.keys() == {odd}
    watched.check()
    assert run(watched.engine)[good].cached_tokens == 0
