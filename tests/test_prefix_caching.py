"""Heads that prompts share are fed once: who may have them, and how they are counted."""

from __future__ import annotations

from typing import Any

import pytest

from leanthink.engine.sampling import Sampling
from leanthink.policies import make_policy
from leanthink.policies.budget import Budget
from leanthink.utils.errors import UsageError
from models import endless
from test_engine import TOKENIZER, CheckedEngine

HEAD = list(range(100, 140))  # two chunks and a half


class Observed(CheckedEngine):
    """An engine that keeps how many tokens of the prompts of finished requests were cached."""

    def __init__(self, **options: Any) -> None:
        super().__init__(endless().double(), TOKENIZER, **({"slots": 1200, "rows": 14} | options))
        self.cached = dict[int, int]()

    def ask(self, prompt: list[int], policy: str = "full", tokens: int = 4, **choices: Any) -> int:
        budget = None if policy == "full" else Budget(slots=70, recent_window=3, eviction_interval=5)
        how: Any = {"policy": make_policy(policy), "budget": budget, "sampling": Sampling(max_new_tokens=tokens)}
        return self.add(prompt, **how, **choices)

    def run(self, steps: int = 10**6) -> dict[int, int]:
        """So many steps, or until nothing is left."""
        while self.unfinished and (steps := steps - 1) >= 0:
            self.cached |= {index: done.cached_tokens for index, done in self.step().finished.items()}
            self.check_integrity()
        return self.cached


def test_hits_are_counted_by_hand() -> None:
    engine, twin = Observed(), HEAD + [1] * 10
    wanted = {engine.ask(twin, tokens=30): 0}
    wanted[engine.ask(HEAD + [2] * 5, tokens=30)] = 32  # waits a step for the head
    wanted[engine.ask(twin, "window")] = 49  # an equal prompt: all but the last token, which decoding feeds
    wanted[engine.ask(HEAD[:32])] = 16  # its second chunk ends with the token that decoding feeds
    wanted[engine.ask(HEAD[:33])] = 32
    wanted[engine.ask(HEAD[1:])] = 0
    for salt in ("x", "y"):
        wanted |= {engine.ask(twin, cache_salt=salt): cached for cached in (0, 49)}
    wanted[engine.ask(HEAD, "h2o:pins_prompt=false")] = 0  # needs the attention of all the prompt's queries
    wanted[engine.ask(HEAD, "snapkv:pins_prompt=false")] = 32
    for _ in range(2):
        wanted[engine.ask(HEAD[::-1], "keydiff:pins_prompt=false")] = 0  # nobody has it whose slots stay
    assert engine.run() == wanted
    stats = engine.stats()
    assert stats.prefix_cache_queries == 50 + 45 + 50 + 32 + 33 + 39 + 4 * 50 + 4 * 40
    assert stats.prefix_cache_hits == 32 + 49 + 16 + 32 + 2 * 49 + 32


def test_who_waits_for_a_prompt_that_is_given_up_feeds_its_own() -> None:
    engine = Observed(prefill_tokens=10)
    source, other = engine.ask([*HEAD, 1]), engine.ask([*HEAD, 2])
    engine.run(3)
    assert [entry.done for entry in engine.scheduler.prefilling] == [30, 0]
    assert engine.cancel(source)
    assert engine.run() == {other: 0}


def test_what_has_ended_serves_until_its_slots_are_given_to_another() -> None:
    engine = Observed(slots=200)
    engine.cache.__dict__["copy_prompt"] = None  # nothing is copied: it lies where it is wanted
    for prompt, cached in ((HEAD, 0), (HEAD, 39), ([*HEAD, 1], 32), ([*HEAD, 2], 32), ([7], 0), (HEAD, 0)):
        index = engine.ask(prompt, tokens=30)  # all begin with slot 0; the last but one writes over what is there
        assert engine.run()[index] == cached
    first, _ = engine.ask([7]), engine.ask(HEAD)  # slots 0 to 5, and 5 to 49
    with pytest.raises(UsageError, match="2 requests are unfinished: change weights when all have ended"):
        engine.reset_prefix_cache()
    assert engine.run()[first] == 0
    across = engine.ask([*HEAD, 3])  # 0 to 45
    assert engine.run()[across] == 0
    engine.reset_prefix_cache()
    again = engine.ask([*HEAD, 3])
    assert engine.run()[again] == 0


def test_what_is_copied_in_two_goes_counts_once_and_what_is_fed_after_an_error_not_at_all() -> None:
    engine = Observed()
    engine.ask(HEAD, tokens=30)
    engine.run(1)
    first, second = (engine.ask([*HEAD, *HEAD, tail], tokens=30) for tail in (1, 2))  # both begin with 32 of the head
    engine.run(4)
    prefill = engine.model_runner.prefill

    def failing(token_ids: Any, chunks: Any) -> None:
        assert 250 not in token_ids, "odd"
        prefill(token_ids, chunks)

    engine.model_runner.__dict__["prefill"] = failing
    third, odd = engine.ask([*HEAD, 1]), engine.ask([*HEAD[:20], 250, 1])
    assert engine.step().failed.keys() == {odd}
    assert engine.run().items() >= {first: 32, second: 80, third: 0}.items()
