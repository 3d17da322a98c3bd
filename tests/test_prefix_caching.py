"""Heads that prompts share are fed once: who may have them, that they are the very same, and how they are counted."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from leanthink.engine.engine import Engine
from leanthink.engine.generation import generate
from leanthink.engine.prefix_caching import CHUNK_TOKENS, chunk_keys
from leanthink.engine.sampling import Sampling
from leanthink.policies import make_policy
from leanthink.policies.budget import Budget
from leanthink.utils.errors import UsageError
from models import make_model
from test_engine import TOKENIZER, endless, make_policies

HEAD = list(range(100, 140))  # two chunks and a half


class Observed(Engine):
    """After each step every known chunk must hold what the first with its key held."""

    def __init__(self, model: Any = None, **options: Any) -> None:
        super().__init__(model or endless().double(), TOKENIZER, **({"slots": 900, "rows": 9} | options))
        self.first, self.tokens = dict[bytes, Tensor](), dict[bytes, int]()  # of each key, and how many it tells of
        self.cached = dict[int, int]()

    def ask(self, prompt: list[int], policy: str = "full", tokens: int = 4, **choices: Any) -> int:
        budget = None if policy == "full" else Budget(slots=70, recent_window=3, eviction_interval=5)
        how: Any = {"policy": make_policy(policy), "budget": budget, "sampling": Sampling(max_new_tokens=tokens)}
        return self.add(prompt, **how, **choices)

    def check_integrity(self) -> None:
        super().check_integrity()
        for request in self.scheduler.requests:
            left = len(request.prompt_ids) - 1
            self.tokens |= {key: left - CHUNK_TOKENS * at for at, key in enumerate(chunk_keys(request))}
        for allocation, keys in self.scheduler.prefix_cache._keys.items():
            for at, key in enumerate(keys):
                start = allocation.start + CHUNK_TOKENS * at
                held = self.cache.kv_LPHTD[:, :, :, start : start + min(CHUNK_TOKENS, self.tokens[key])]
                torch.testing.assert_close(held, self.first.setdefault(key, held.clone()), rtol=0, atol=1e-9)

    def run(self, steps: int = 10**6) -> dict[int, int]:
        """So many steps, or until nothing is left; the cached tokens of all that has finished so far."""
        while self.unfinished and (steps := steps - 1) >= 0:
            self.cached |= {index: done.cached_tokens for index, done in self.step().finished.items()}
            self.check_integrity()
        return self.cached


@pytest.mark.parametrize("row_slots", [None, 170])
@pytest.mark.parametrize("seed", range(4))
def test_families_of_prompts_get_what_each_gets_without_sharing(seed: int, row_slots: int | None) -> None:
    chance, model, policies = random.Random(seed), make_model(seed=seed).double(), make_policies(torch.float64)
    engine = Observed(model, slots=800, rows=5, row_slots=row_slots, prefill_tokens=chance.choice([5, 20, 500]))
    trunk, asked, finished, cancelled = [chance.randrange(250) for _ in range(70)], dict[int, Any](), {}, set[int]()
    while len(asked) < 40 or engine.unfinished:
        if len(asked) < 40 and chance.random() < 0.7:
            head = max(1, chance.choice([0, 16, 32, 48, 64]) + chance.randint(-1, 2))
            tail = [chance.randrange(250) for _ in range(chance.choice([0, 1, 7, 20]))]
            policy = chance.choice(policies)
            budget = Budget(slots=9 if policy.pins_prompt else 90, recent_window=3, eviction_interval=5)
            sampling = Sampling(max_new_tokens=chance.randrange(1, 40))
            choices = {"policy": policy, "budget": None if policy.name == "full" else budget, "sampling": sampling}
            index = engine.add(trunk[:head] + tail, cache_salt=chance.choice([None, "s"]), **choices)
            asked[index] = {"prompts": trunk[:head] + tail} | choices
        finished |= engine.step().finished
        engine.check_integrity()
        prefilling = [entry.request.index for entry in engine.scheduler.prefilling]
        victims = prefilling or sorted(asked.keys() - finished.keys() - cancelled)
        if victims and chance.random() < 0.12:
            cancelled.add(victim := chance.choice(victims))
            assert engine.cancel(victim)
            engine.check_integrity()
    assert cancelled
    assert finished.keys() | cancelled == asked.keys()
    assert sum(done.cached_tokens for done in finished.values()) > 50
    for index, done in finished.items():
        (alone,) = generate(model, TOKENIZER, **asked[index], enable_prefix_caching=False)
        assert (done.token_ids, done.evictions, 0) == (alone.token_ids, alone.evictions, alone.cached_tokens)


def test_hits_are_counted_by_hand() -> None:
    engine, fed, twin = Observed(), [], HEAD + [1] * 10
    forward = engine.scheduler.forward
    engine.scheduler.forward = lambda chunks: (fed.extend(c.tokens for _, c in chunks), forward(chunks))[1]  # type: ignore[func-returns-value, method-assign]
    wanted = {engine.ask(twin, tokens=30): 0}
    wanted[engine.ask(HEAD + [2] * 5, tokens=30)] = 32  # waits a step for the head, which is fed once
    wanted[engine.ask(twin, "window")] = 49  # an equal prompt: all but the last token, which decoding feeds
    wanted[engine.ask(HEAD[:32])] = 16  # its second chunk ends with the token that decoding feeds
    wanted[engine.ask(HEAD[:33])] = 32
    wanted[engine.ask(HEAD[1:])] = 0
    wanted[engine.ask(twin, cache_salt="x")] = 0
    wanted[engine.ask(HEAD, "h2o:pins_prompt=false")] = 0  # needs the attention of all the prompt's queries
    wanted[engine.ask(HEAD, "snapkv:pins_prompt=false")] = 32
    assert engine.run() == wanted
    lengths, stats = [50, 45, 50, 32, 33, 39, 50, 40, 40], engine.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (sum(lengths), 32 + 49 + 16 + 32 + 32)
    assert sum(fed) == sum(lengths) - len(lengths) - stats.prefix_cache_hits


def test_nobody_copies_from_a_prompt_that_may_lose_slots() -> None:
    engine = Observed()
    wanted = {engine.ask(HEAD, "keydiff:pins_prompt=false"): 0 for _ in range(2)}
    assert engine.run() == wanted


def test_who_waits_for_a_prompt_that_is_given_up_feeds_its_own() -> None:
    engine = Observed(prefill_tokens=10)
    source, other = engine.ask([*HEAD, 1]), engine.ask([*HEAD, 2])
    engine.run(3)
    assert [entry.done for entry in engine.scheduler.prefilling] == [30, 0]
    assert engine.cancel(source)
    assert engine.run() == {other: 0}


def test_a_prompt_that_has_ended_serves_until_its_slots_are_given_to_another() -> None:
    engine, copied = Observed(slots=200), []
    copy_prompt = engine.cache.copy_prompt
    engine.cache.copy_prompt = lambda *what: (copied.append(what), copy_prompt(*what))[1]  # type: ignore[func-returns-value, method-assign]
    for prompt, cached in ((HEAD, 0), (HEAD, 39), ([*HEAD, 1], 32), ([*HEAD, 2], 32), ([7], 0), (HEAD, 0)):
        index = engine.ask(prompt, tokens=30)  # all begin with slot 0; the last but one writes over what is there
        assert engine.run()[index] == cached
    assert not copied, "it lies where it is wanted"
    engine.ask(HEAD)
    with pytest.raises(UsageError, match="1 requests are unfinished: change weights when all have ended"):
        engine.reset_prefix_cache()
    engine.run()
    engine.reset_prefix_cache()
    again = engine.ask(HEAD)
    assert engine.run()[again] == 0


def test_a_prompt_that_lies_across_the_slots_of_a_request_is_no_source() -> None:
    engine = Observed(slots=200)
    engine.ask([7] * 6)  # slots 0 to 10
    engine.ask(HEAD)  # 10 to 54
    engine.run()
    across = engine.ask([*HEAD, 1])  # 0 to 45
    assert engine.run()[across] == 0


def test_what_is_copied_in_two_goes_counts_once_and_what_is_fed_after_an_error_not_at_all() -> None:
    engine = Observed()
    engine.ask(HEAD, tokens=30)
    engine.run(1)
    first, second = (
        engine.ask([*HEAD, *HEAD, tail], tokens=30) for tail in (1, 2)
    )  # both begin with 32 tokens of the head
    engine.run(4)
    prefill = engine.model_runner.prefill

    def failing(token_ids: Any, chunks: Any) -> None:
        assert 250 not in token_ids, "odd"
        prefill(token_ids, chunks)

    engine.model_runner.prefill = failing  # type: ignore[method-assign]
    third, odd = engine.ask([*HEAD, 1]), engine.ask([*HEAD[:20], 250, 1])
    assert engine.step().failed.keys() == {odd}
    assert engine.run().items() >= {first: 32, second: 80, third: 0}.items()
