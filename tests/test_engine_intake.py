"""What an engine takes in: tokens of its vocabulary, ids of its own, policies without end."""

from __future__ import annotations

import gc
import random
import weakref
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from leanthink.engine.engine import Engine
from leanthink.engine.generation import generate
from leanthink.engine.known_policies import MAX_IDLE, KnownPolicies, first_gap
from leanthink.engine.request import Request, make_request
from leanthink.engine.sampling import Sampling
from leanthink.policies import Policy, make_policy
from leanthink.policies.budget import Budget
from leanthink.policies.window import Window
from leanthink.utils.errors import UsageError
from models import VOCABULARY, RandomPredictor, endless, make_model, make_tokenizer
from test_engine import assert_empty, run

TOKENIZER = make_tokenizer()
BUDGET = Budget(slots=16, recent_window=4, eviction_interval=8, max_answer_slots=8)


def checked(prompt: tuple[Any, ...], index: int = 0, tokens: int = 5) -> Request:
    sampling = Sampling(max_new_tokens=tokens)
    return make_request(index, prompt, policy=make_policy("window"), budget=BUDGET, sampling=sampling, context=4096)


@pytest.mark.parametrize("odd", [-1, VOCABULARY, 2**31, 2**63, 2**70, -(2**70), True, 1.0, "1", None])
def test_a_token_that_is_not_of_the_vocabulary_is_refused_when_it_is_added(odd: Any) -> None:
    engine = Engine(make_model(), TOKENIZER, slots=200)
    for prompt in ((odd,), (1, 2, odd), (odd, 5)):
        with pytest.raises(UsageError, match=r"prompt 0 (has token|is)"):
            engine.add_request(checked(prompt))
        with pytest.raises(UsageError, match=r"prompt 0 (has token|is)"):
            engine.add(list(prompt), policy="window", budget=BUDGET)
    assert engine.unfinished == 0
    engine.add_request(checked((0, VOCABULARY - 1)))
    assert len(run(engine)) == 1


def test_an_id_of_an_unfinished_request_is_refused_and_free_again_when_that_has_left() -> None:
    engine = Engine(endless(), TOKENIZER, slots=200, rows=1, prefill_tokens=4)
    engine.add_request(checked((1, 2), 7))
    engine.add_request(checked(tuple(range(20)), 8))
    engine.add_request(checked((3,), 9))
    for _ in range(2):  # they wait; one decodes
        for index in (7, 8, 9):
            with pytest.raises(UsageError, match=f"request {index} is not finished"):
                engine.add_request(checked((3,), index))
        engine.step()
    assert engine.cancel(8)
    engine.add_request(checked((5,), 8))
    assert sorted(run(engine)) == [7, 8, 9]
    engine.add_request(checked((5,), 7))
    assert engine.add([1], policy="window", budget=BUDGET, sampling=Sampling(max_new_tokens=2)) == 10
    assert sorted(run(engine)) == [7, 10]
    assert_empty(engine)
    assert not engine._known


def memory(engine: Engine) -> int:
    """Bytes of all that the engine remembers of tokens."""
    cache = engine.cache
    tensors = [
        cache.kv_LPHTD,
        cache.positions,
        cache.token_scores,
        cache.hidden_states,
        *cache.queries,
        cache.accumulated_attention_LHT,
    ]
    return sum(tensor.nbytes for tensor in tensors)


def fresh(index: int) -> Policy:
    """A policy that is equal to no other; some have one score a token, some three, some only every 8th step."""
    torch.manual_seed(index)
    if index % 3 == 0:
        return make_policy("dynts", RandomPredictor(64, "answer").double())
    horizons = (4, 8, 16) if index % 3 == 1 else (12, 20)
    return make_policy("horizon", RandomPredictor(64, "horizon", horizons, offsets=(0, 1, 3)).double())


def test_memory_is_flat_over_hundreds_of_requests_with_policies_of_their_own() -> None:
    engine, sampling = Engine(endless().double(), TOKENIZER, slots=200, rows=3), Sampling(max_new_tokens=2)
    bytes_after, alive = [], []
    for index in range(300):
        policy = fresh(index)
        alive.append(weakref.ref(policy.predictor))  # type: ignore[attr-defined]
        engine.add([1, 2], policy=policy, budget=BUDGET, sampling=sampling)
        del policy
        run(engine)
        bytes_after.append(memory(engine))
    assert bytes_after[299] == bytes_after[40]
    assert len(engine.policies) == len(engine.columns) == MAX_IDLE
    gc.collect()
    assert sum(ref() is not None for ref in alive) <= MAX_IDLE, "predictors are kept by somebody"


def test_a_predictor_given_for_a_name_again_and_again_is_one_policy() -> None:
    engine, predictor = Engine(endless(), TOKENIZER, slots=200), RandomPredictor(64, "answer")
    for _ in range(3):
        policy = make_policy("dynts", predictor)
        engine.add([1], policy=policy, budget=BUDGET, sampling=Sampling(max_new_tokens=2))
        engine.add([1], policy=Window(), budget=BUDGET, sampling=Sampling(max_new_tokens=2))
    assert [policy.name for policy in engine.policies] == ["dynts", "window"]
    assert engine.cache.requirements.score_dims == 1
    run(engine)


def test_policies_that_come_and_go_change_no_tokens() -> None:
    model, chance = endless().double(), random.Random(0)
    engine = Engine(model, TOKENIZER, slots=1200, rows=8)
    asked: dict[int, dict[str, Any]] = {}
    finished: dict[int, Any] = {}
    kept = [fresh(index) for index in range(3)] + [make_policy("window"), make_policy("h2o")]
    for index in range(60):
        policy = chance.choice(kept) if chance.random() < 0.4 else fresh(index)
        options: dict[str, Any] = {"policy": policy, "budget": BUDGET}
        options["sampling"] = Sampling(max_new_tokens=chance.randrange(30, 60), seed=index, temperature=0.8)
        asked[engine.add([index], **options)] = options
        for _ in range(chance.randrange(12)):
            finished |= engine.step().finished
            engine.check_integrity()
    finished |= run(engine)
    assert len(engine.policies) < 40
    for request_id, options in asked.items():
        (alone,) = generate(model, TOKENIZER, [request_id], **options)
        assert finished[request_id].token_ids == alone.token_ids
        assert finished[request_id].evictions > 0


def test_scores_of_a_wider_dtype_fit_into_columns_that_became_free() -> None:
    model = endless()
    engine = Engine(model, TOKENIZER, slots=200, rows=2)
    options: dict[str, Any] = {"budget": BUDGET, "sampling": Sampling(max_new_tokens=60)}
    for index in range(MAX_IDLE):
        torch.manual_seed(index)
        narrow = make_policy("dynts", _Narrow(64, "answer").bfloat16())
        engine.add([1], policy=narrow, budget=BUDGET, sampling=Sampling(max_new_tokens=1))
        run(engine)
    assert engine.cache.token_scores.dtype == torch.bfloat16
    torch.manual_seed(99)
    wide = make_policy("dynts", RandomPredictor(64, "answer"))
    request_id = engine.add([1, 2], policy=wide, **options)
    (alone,) = generate(model, TOKENIZER, [1, 2], policy=wide, **options)
    assert run(engine)[request_id].token_ids == alone.token_ids
    assert engine.cache.token_scores.dtype == torch.float32
    assert engine.cache.token_scores.shape[1] == MAX_IDLE


class _Narrow(RandomPredictor):
    def forward(self, hidden_states_NWF: torch.Tensor) -> torch.Tensor:
        """As of RandomPredictor, in its own dtype."""
        return super().forward(hidden_states_NWF.bfloat16())


def test_columns_of_policies_in_use_never_overlap() -> None:
    chance, known = random.Random(1), KnownPolicies()
    used: list[Policy] = []
    for index in range(400):
        policy = fresh(index)
        assert known.find(policy) is None
        known.add(policy, {id(one) for one in used})
        used.append(policy)
        while len(used) > chance.randrange(1, 12):
            used.pop(chance.randrange(len(used)))
        assert all(known.find(policy) is policy for policy in used)
        spans = sorted(
            (column, column + policy.score_dims) for policy, column in zip(known.policies, known.columns, strict=True)
        )
        assert all(end <= first for (_, end), (first, _) in pairwise(spans))
    assert len(known.policies) <= MAX_IDLE + 13
    assert max(known.columns) < 3 * (MAX_IDLE + 13)


def test_the_first_gap_that_is_large_enough_is_taken() -> None:
    assert first_gap([], 3) == 0
    assert first_gap([(2, 5), (6, 8)], 1) == 0
    assert first_gap([(6, 8), (0, 5)], 1) == 5
    assert first_gap([(0, 5), (6, 8)], 2) == 8


def test_a_salt_that_is_no_text_or_empty_is_refused() -> None:
    engine = Engine(make_model(), TOKENIZER, slots=200)
    for salt in ("", 5):
        with pytest.raises(UsageError, match=r"cache_salt=.*must be a non-empty string"):
            engine.add_request(replace(checked((1,)), cache_salt=salt))  # type: ignore[arg-type]
