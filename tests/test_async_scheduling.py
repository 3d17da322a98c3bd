"""Async scheduling: a step is launched before the tokens of the one before are read, and no token is another's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from leanthink.engine.engine import Engine
from leanthink.engine.generation import generate
from leanthink.engine.outputs import Completion
from leanthink.engine.sampling import Sampling
from leanthink.policies import make_policy
from leanthink.policies.budget import Budget
from models import RandomPredictor, endless, make_model, make_tokenizer, mix_prompts
from test_engine import run

TOKENIZER = make_tokenizer()
BUDGET = Budget(slots=16, recent_window=4, eviction_interval=8, max_answer_slots=8)
PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
LONG = list(range(40, 62))


def make_engine(model: Any = None, **options: Any) -> Engine:
    chosen = {"slots": 300, "rows": 4, "async_scheduling": True} | options
    return Engine(endless() if model is None else model, TOKENIZER, **chosen)


def order_of(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is launched, evicted and read, in its order."""
    seen: list[str] = []

    def told(owner: Any, name: str) -> None:
        work: Callable[..., Any] = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, **named: (seen.append(name), work(*given, **named))[1])

    for owner, name in ((engine.model_runner, "launch"), (engine.evictor, "evict"), (engine.model_runner, "ids")):
        told(owner, name)
    return seen


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_a_step_is_launched_when_the_one_before_has_evicted_and_before_its_tokens_are_read(
    async_scheduling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(async_scheduling=async_scheduling)
    seen = order_of(engine, monkeypatch)
    engine.add([1, 2, 3], policy="full", sampling=Sampling(max_new_tokens=4))
    run(engine)
    launch, rest = ["launch"], ["evict", "ids"]
    if async_scheduling:  # the length of the last step is known, and none is launched behind it
        assert seen == launch + 3 * ["evict", "launch", "ids"] + rest
    else:
        assert seen == 4 * (launch + rest)


@pytest.mark.parametrize("mixes", [False, True])
def test_prompts_are_fed_by_steps_that_are_launched_ahead(mixes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if mixes:
        mix_prompts(monkeypatch)
    engine = make_engine(prefill_tokens=5)
    sampling = Sampling(max_new_tokens=40)
    engine.add([1, 2, 3], policy="full", sampling=sampling)
    engine.step()
    late = engine.add(LONG, policy="full", sampling=sampling)
    seen = order_of(engine, monkeypatch)
    for _ in range(6):
        engine.step()
        engine.check_integrity()
    assert seen == 6 * ["evict", "launch", "ids"]
    row = engine.rows.find(late)
    assert row is not None
    assert int(engine.running_batch.generated[row]) == 1, "the step in which its prompt ends gives its first token"
    assert engine.cancel(late)
    engine.check_integrity()


@pytest.mark.parametrize(
    "options",
    [
        {"sampling": Sampling(max_new_tokens=9, logprobs=1)},
        {"record": True, "policy": make_policy("horizon", RandomPredictor(64, "horizon", (4, 8))), "budget": BUDGET},
    ],
)
def test_who_wants_what_the_next_step_overwrites_is_read_first(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    seen = order_of(engine, monkeypatch)
    engine.add([1, 2, 3], **({"policy": "full", "sampling": Sampling(max_new_tokens=9)} | options))
    run(engine)
    assert seen == 9 * ["launch", "evict", "ids"]


def test_whoever_waits_takes_the_row_that_becomes_free_at_once() -> None:
    engine = make_engine(rows=1)
    for prompt in PROMPTS:
        engine.add(prompt, policy="full", sampling=Sampling(max_new_tokens=6))
    steps = 0
    while engine.unfinished:
        engine.step()
        steps += 1
    assert steps == 3 * 6


@pytest.mark.parametrize("end", ["eos", "stop", "cancel", "early"])
def test_who_ends_unforeseen_leaves_the_others_their_tokens(end: str) -> None:
    model = endless().double()
    options: dict[str, Any] = {"policy": "window", "budget": BUDGET, "sampling": Sampling(max_new_tokens=40)}
    whole = [generate(model, TOKENIZER, prompt, **options)[0].token_ids for prompt in PROMPTS]
    ends, sampling = (), Sampling(max_new_tokens=40)
    if end == "eos":
        ends = (next(token for token in whole[0] if token not in whole[1] + whole[2]),)
    if end == "stop":
        sampling = Sampling(max_new_tokens=40, stop=(TOKENIZER.decode(whole[0][3:7]),), stop_in_thought=True)
    engine = make_engine(model, ends=ends)
    first = engine.add(PROMPTS[0], **options | {"sampling": sampling})
    others = [engine.add(prompt, **options) for prompt in PROMPTS[1:]]
    done: dict[int, Completion] = {}
    for _ in range(9):
        done |= engine.step().finished
        engine.check_integrity()
    if end == "cancel":
        assert engine.cancel(first)
    if end == "early":
        early = engine.finish_early(first)
        assert early is not None
        assert early.token_ids == whole[0][:9]
    engine.check_integrity()
    late = engine.add(PROMPTS[0], **options | {"sampling": Sampling(max_new_tokens=12)})
    done |= run(engine)
    assert [done[index].token_ids for index in others] == whole[1:]
    if end != "eos":
        assert done[late].token_ids == whole[0][:12]
    assert engine.cache.allocator.used == 0


@pytest.mark.parametrize("architecture", ["llama", "qwen3_5_text", "gpt_oss"])
def test_a_step_launched_ahead_that_raises_begins_again(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(architecture).double()
    options: dict[str, Any] = {"policy": "window", "budget": BUDGET, "sampling": Sampling(max_new_tokens=30)}
    mix_prompts(monkeypatch)
    engine = make_engine(model, ends=(), prefill_tokens=5)
    decode, raised = engine.model_runner._decode, []

    def raising(*given: Any) -> Any:
        out = decode(*given)
        if engine.model_runner._unread and len(raised) < 12:  # the one before is still to be read
            raised.append(1)
            raise ValueError("nobody's fault")
        return out

    monkeypatch.setattr(engine.model_runner, "_decode", raising)
    asked = [engine.add(prompt, **options) for prompt in PROMPTS]
    done: dict[int, Completion] = {}
    for _ in range(4):
        done |= engine.step().finished
    asked.append(engine.add(LONG, **options))  # in pieces that ride along
    done |= run(engine)
    assert len(raised) == 12
    monkeypatch.undo()
    alone = make_engine(model, ends=(), rows=1, async_scheduling=False)
    expected = [alone.add(prompt, **options) for prompt in [*PROMPTS, LONG]]
    single = run(alone)
    assert [done[index].token_ids for index in asked] == [single[index].token_ids for index in expected]
    assert [done[index].slot_steps for index in asked] == [single[index].slot_steps for index in expected]


def test_a_row_whose_numbers_are_nan_ends_alone() -> None:
    model, options = endless().double(), {"policy": "full", "sampling": Sampling(max_new_tokens=20)}
    engine = make_engine(model)
    failing, fine = (engine.add(prompt, **options) for prompt in PROMPTS[:2])
    for _ in range(4):
        engine.step()
    row = engine.rows.find(failing)
    assert row is not None
    start = engine.cache.allocations[row].start
    engine.cache.kv_LPHTD[:, :, :, start] = torch.nan
    progress = [engine.step() for _ in range(2)]
    assert [list(one.failed) for one in progress] == [[], [failing]], "one was launched before the numbers broke"
    (alone,) = generate(model, TOKENIZER, PROMPTS[1], **options)
    assert run(engine)[fine].token_ids == alone.token_ids


def test_steps_after_all_have_ended_begin_anew() -> None:
    model = endless().double()
    (whole,) = generate(model, TOKENIZER, PROMPTS[0], policy="full", sampling=Sampling(max_new_tokens=9))
    engine = make_engine(model, ends=(whole.token_ids[4],))
    first = whole.token_ids.index(whole.token_ids[4])
    for _ in range(2):  # the step behind the last token was launched, and nobody reads it
        index = engine.add(PROMPTS[0], policy="full", sampling=Sampling(max_new_tokens=9))
        assert run(engine)[index].token_ids == whole.token_ids[: first + 1]
        assert engine.cache.steps_ahead == 1


@pytest.mark.parametrize("end", ["cancel", "eos"])
def test_log_probabilities_follow_a_row_that_moves(end: str) -> None:
    model, sampling = endless().double(), Sampling(max_new_tokens=40)
    wanted = Sampling(max_new_tokens=6, logprobs=2)
    (whole,) = generate(model, TOKENIZER, PROMPTS[0], policy="full", sampling=sampling)
    (alone,) = generate(model, TOKENIZER, PROMPTS[2], policy="full", sampling=wanted)
    ends = (whole.token_ids[2],) if end == "eos" else ()
    assert not {*ends} & {*alone.token_ids}
    engine = make_engine(model, ends=ends)
    first, _ = (engine.add(prompt, policy="full", sampling=sampling) for prompt in PROMPTS[:2])
    for _ in range(2):
        engine.step()
    late = engine.add(PROMPTS[2], policy="full", sampling=wanted)  # has the last row in a step that is launched ahead
    engine.step()
    if end == "cancel":
        assert engine.cancel(first)
    assert engine.rows.find(late) == 0, "it has moved to the row that became free"
    found = run(engine)[late]
    assert found.token_ids == alone.token_ids
    assert found.logprobs == pytest.approx(alone.logprobs)
    assert [[token for token, _ in top] for top in found.top_logprobs or ()] == [
        [token for token, _ in top] for top in alone.top_logprobs or ()
    ]


def test_what_a_token_fed_in_vain_has_written_harms_nobody() -> None:
    model, options = endless("gpt_oss").double(), {"policy": "full", "sampling": Sampling(max_new_tokens=30)}
    (whole,), (alone,), (beside,) = (
        generate(model, TOKENIZER, prompt, **options) for prompt in (PROMPTS[0], PROMPTS[1], LONG)
    )
    others = {*PROMPTS[1], *LONG, *alone.token_ids, *beside.token_ids}
    end = next(token for token in whole.token_ids[4:] if token not in others)
    with torch.no_grad():
        model.get_input_embeddings().weight[end] = torch.nan  # only a step that is launched ahead feeds it
    engine = make_engine(model, ends=(end,), row_slots=90)
    first, longer = (engine.add(prompt, **options) for prompt in (PROMPTS[0], LONG))
    done: dict[int, Completion] = {}
    while first not in done:
        done |= engine.step().finished
    assert engine.cache.steps_ahead == 1
    index = engine.add(PROMPTS[1], **options)  # in the slots of the first, beside a longer one
    done |= run(engine)
    assert [done[index].token_ids, done[longer].token_ids] == [alone.token_ids, beside.token_ids]


def test_states_of_who_has_ended_are_not_restored_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("qwen3_5_text").double()
    options: dict[str, Any] = {"policy": "full", "sampling": Sampling(max_new_tokens=12)}
    alone = make_engine(model, ends=(), rows=1, async_scheduling=False)
    asked = [alone.add(prompt, **options) for prompt in PROMPTS[:2]]
    single = run(alone)
    ids = single[asked[0]].token_ids
    engine = make_engine(model, ends=(next(token for token in ids[4:] if token not in single[asked[1]].token_ids),))
    engine.add(PROMPTS[0], **options)
    run(engine)
    assert engine.cache.steps_ahead == 1, "all have ended, and the step behind was launched"
    decode, index = engine.model_runner._decode, engine.add(PROMPTS[1], **options)
    failing = engine.add([8, 3], **options)

    def raising(cache: Any, ids: torch.Tensor, positions: torch.Tensor) -> Any:
        if bool((ids == 3).any()):
            cache.forward_batch = None
            raise ValueError("before any layer")
        return decode(cache, ids, positions)

    monkeypatch.setattr(engine.model_runner, "_decode", raising)
    done, failed = {}, []
    while engine.unfinished:
        progress = engine.step()
        done |= progress.finished
        failed += progress.failed
    assert failed == [failing]
    assert done[index].token_ids == single[asked[1]].token_ids
