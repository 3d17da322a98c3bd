from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import pytest
import torch

from leanthink.data.think_tags import ThinkTags, think_tags
from leanthink.engine import attention
from leanthink.engine.engine import Engine
from leanthink.engine.forward_batch import MixedBatch
from leanthink.engine.generation import generate
from leanthink.engine.outputs import Completion
from leanthink.engine.prefix_caching import CHUNK_TOKENS, chunk_keys
from leanthink.engine.sampling import Sampling
from leanthink.engine.stats import EngineStats
from leanthink.policies import Policy, Slots, make_policy
from leanthink.policies.budget import Budget
from leanthink.policies.h2o import H2O
from leanthink.policies.horizon import Horizon
from leanthink.policies.sepllm import SepLLM
from leanthink.utils.errors import LeanThinkError, UsageError
from models import (
    HYBRIDS,
    RandomPredictor,
    endless,
    make_model,
    make_tokenizer,
    mix_prompts,
    stock_tokens,
    with_experts,
)

TOKENIZER = make_tokenizer()
BUDGET = Budget(slots=16, recent_window=4, eviction_interval=8, max_answer_slots=8)


def make_policies(dtype: torch.dtype = torch.float32) -> list[Policy]:
    torch.manual_seed(3)
    horizon = RandomPredictor(64, "horizon", (4, 8, 16), offsets=(0, 1, 3)).to(dtype)
    learned = [make_policy("dynts", RandomPredictor(64, "answer").to(dtype)), make_policy("horizon", horizon)]
    names = ("full", "window", "sinks", "random", "random-heads", "snapkv", "h2o", "r-kv", "tova", "keydiff", "vase")
    published = [H2O(waiting=3, pins_prompt=False), SepLLM(separator_ids=(5, 9), pins_prompt=False)]
    return [make_policy(name) for name in names] + learned + published


class CheckedEngine(Engine):
    """One in which every chunk of a prompt must hold what the first with its key held."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.first, self.tokens = dict[bytes, torch.Tensor](), dict[bytes, int]()  # of each key; how many it tells of

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


def run(engine: Engine) -> dict[int, Completion]:
    """Steps until nothing is left, with every invariant checked after each step."""
    finished: dict[int, Completion] = {}
    while engine.unfinished:
        progress = engine.step()
        assert not progress.failed, progress.failed
        finished |= progress.finished
        engine.check_integrity()
    return finished


def assert_empty(engine: Engine) -> None:
    assert engine.cache.allocator.used == engine.cache.active == 0
    engine.reset_prefix_cache()
    assert not engine.scheduler.prefix_cache._holders
    assert not engine.streams.texts
    assert not engine.running_batch.logprobs


@pytest.mark.parametrize("row_slots", [None, 170])
@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_around_it_a_request_gets_what_it_gets_alone(
    seed: int, row_slots: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In float64, as a product of few rows is rounded differently from one of many: in float32 a draw that falls on the
    # border of two tokens, to seven digits, may take either.
    architecture = ("llama", "gpt_oss", "llama", "olmo3", "qwen3_5_text", "bamba", "llama", "llama")[seed]
    model, policies = make_model(architecture, seed=seed).double(), make_policies(torch.float64)
    chance, shares = random.Random(seed), architecture == "llama"
    prefill = {"prefill_tokens": chance.choice([3, 16, 500])}
    ahead = {"async_scheduling": seed % 2 == 1}
    engine = CheckedEngine(model, TOKENIZER, slots=700, rows=5, row_slots=row_slots, **prefill, **ahead)
    trunk = [chance.randrange(250) for _ in range(70)]
    asked: dict[int, dict[str, Any]] = {}
    if seed > 5:
        mix_prompts(monkeypatch)
    if seed > 6:
        raise_at_times(engine, monkeypatch)
    for _ in range(35):
        policy = chance.choice(policies)
        slots = chance.randrange(6, 20) + 80 * (not policy.pins_prompt)  # room for any of these prompts
        head = max(0, chance.choice([0, 16, 32, 48, 64]) + chance.randint(-1, 2))  # around whole chunks
        tail = [chance.randrange(250) for _ in range(chance.choice([0, 1, 7, 20]))]
        prompt = (trunk[:head] + tail) or trunk[:1]
        choices: dict[str, Any] = {
            "policy": policy,
            "budget": None
            if policy.name == "full"
            else Budget(slots=slots, recent_window=3, eviction_interval=5, max_answer_slots=20),
            "sampling": Sampling(
                max_new_tokens=chance.randrange(1, 60),
                temperature=chance.choice([0.0, 0.8]),
                top_k=chance.choice([0, 20]),
                seed=chance.randrange(10**9),
            ),
        }
        asked[engine.add(prompt, **choices, cache_salt=chance.choice([None, "s"]))] = {"prompts": prompt, **choices}
    finished: dict[int, Completion] = {}
    cancelled: set[int] = set()
    while engine.unfinished:
        progress = engine.step()
        assert not progress.failed
        finished |= progress.finished
        engine.check_integrity()
        if chance.random() < 0.1:
            victim = chance.choice(sorted(asked.keys() - finished.keys() - cancelled) or [10**6])
            if engine.cancel(victim):
                cancelled.add(victim)
            engine.check_integrity()
    assert cancelled
    assert finished.keys() | cancelled == asked.keys()
    assert (engine.stats().prefix_cache_hits > 50) == shares
    monkeypatch.undo()
    for request_id, completion in finished.items():
        (alone,) = generate(model, TOKENIZER, **asked[request_id], enable_prefix_caching=False)
        assert completion.token_ids == alone.token_ids, asked[request_id]["policy"]
        assert (completion.peak_slots, completion.evictions) == (alone.peak_slots, alone.evictions)
        assert completion.slot_steps == alone.slot_steps
    assert_empty(engine)


def raise_at_times(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other forward of prompts and rows raises when it is done, which must change nobody's tokens."""
    decode, calls = engine.model_runner._decode, count()

    def raising(cache: Any, *given: Any) -> Any:
        mixed, out = isinstance(cache.forward_batch, MixedBatch), decode(cache, *given)
        assert not mixed or next(calls) % 2 == 0, "nobody's fault"
        return out

    monkeypatch.setattr(engine.model_runner, "_decode", raising)


def test_attention_within_a_prompt_counts_once_though_a_forward_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[torch.Tensor] = []
    mix_prompts(monkeypatch)
    for raises in (False, True):
        engine = Engine(endless().double(), TOKENIZER, slots=200, rows=2, prefill_tokens=8)
        if raises:
            raise_at_times(engine, monkeypatch)
        for length in (1, 24):
            engine.add(list(range(length)), policy=H2O(waiting=8, pins_prompt=False), budget=replace(BUDGET, slots=48))
        for _ in range(4):
            assert not engine.step().failed
        held.append(engine.cache.accumulated_attention_LHT[:, :, :-1])
    assert held[0].any()
    torch.testing.assert_close(*held)


def counting(forward: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    """The same, which adds one to the last of these numbers."""

    def counted(*given: Any) -> Any:
        calls[-1] += 1
        return forward(*given)

    return counted


def test_prompts_and_rows_share_a_forward_and_no_token_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    forwards: list[list[int]] = []  # in each step, apart and together
    tokens: list[list[list[int]]] = []  # of each row after each step
    for together in (False, True):
        if together:
            mix_prompts(monkeypatch)
        engine = Engine(endless(num_hidden_layers=3).double(), TOKENIZER, slots=500, rows=5, prefill_tokens=16)
        runner, calls = engine.model_runner, [0]
        for name in ("_decode", "prefill"):
            monkeypatch.setattr(runner, name, counting(getattr(runner, name), calls))
        for i, length in enumerate((40, 1, 9, 50, 30)):
            engine.add(list(range(i, i + length)), policy="full", sampling=Sampling(max_new_tokens=12))
        tokens.append([])
        while engine.unfinished:
            engine.step()
            tokens[-1].append([len(engine.running_batch.tokens(row)) for row in range(engine.cache.active)])
            calls.append(0)
        forwards.append(calls[:-1])
    assert tokens[0] == tokens[1]
    assert max(forwards[0]) == 2
    assert set(forwards[1]) == {1}


def test_requests_are_admitted_in_their_order_and_within_the_slots() -> None:
    engine = Engine(endless(), TOKENIZER, slots=100, rows=8)
    sizes = [30, 60, 50, 5, 40]  # the third does not fit beside the first two, and the fourth does not overtake it
    for index, size in enumerate(sizes):
        engine.add([1, index], policy="full", sampling=Sampling(max_new_tokens=size - 2))
    engine.step()
    assert [request.index for request in engine.running_batch.requests] == [0, 1]
    finished = run(engine)
    assert list(finished) == [0, 1, 3, 4, 2]
    assert [finished[i].reserved_kv_bytes // engine.cache.bytes_per_slot for i in range(5)] == sizes
    assert_empty(engine)


@pytest.mark.parametrize(
    ("tags", "prompt", "reserved"),
    [
        (think_tags(TOKENIZER), "Say: ", 5 + 24 + 50),
        (think_tags(TOKENIZER), "<think></think>", 2 + 50),
        (ThinkTags(open_id=None, close_id=None), "Say: ", 5 + 24),
    ],
)
def test_a_request_reserves_what_it_can_write_and_no_more(tags: ThinkTags, prompt: str, reserved: int) -> None:
    engine = Engine(endless(), TOKENIZER, slots=200, rows=1, tags=tags)
    budget = Budget(slots=16, recent_window=4, eviction_interval=8, max_answer_slots=50)
    engine.add(TOKENIZER(prompt).input_ids, policy="window", budget=budget, sampling=Sampling(max_new_tokens=150))
    (done,) = run(engine).values()
    assert done.reserved_kv_bytes == reserved * engine.cache.bytes_per_slot
    assert done.peak_slots <= reserved


def test_a_request_that_can_never_fit_is_refused_with_the_numbers() -> None:
    engine = Engine(endless(), TOKENIZER, slots=100)
    with pytest.raises(UsageError, match=r"can hold 103 slots, 3 of them prompt, and the engine has 100 for one"):
        engine.add([1, 2, 3], policy="full", sampling=Sampling(max_new_tokens=100))
    engine.add([1, 2, 3], policy="window", budget=BUDGET, sampling=Sampling(max_new_tokens=1000))
    assert engine.unfinished == 1


@pytest.mark.parametrize(
    "option", [{"slots": 0}, {"slots": 1.5}, {"slots": 10, "rows": 0}, {"slots": 10, "rows": True}]
)
def test_arguments_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be a whole number of at least 1"):
        Engine(make_model(), TOKENIZER, **option)


def test_a_long_prompt_does_not_stall_those_that_decode() -> None:
    engine = Engine(endless(), TOKENIZER, slots=400, rows=4, prefill_tokens=10)
    first = engine.add([5, 6, 7], policy="full", sampling=Sampling(max_new_tokens=40), streamed=True)
    engine.step()
    long = engine.add(list(range(100)), policy="full", sampling=Sampling(max_new_tokens=3), streamed=True)
    came = [set(engine.step().steps) for _ in range(12)]
    assert all(first in steps for steps in came), "each step brings a token to the first request"
    assert [long in steps for steps in came] == [False] * 9 + [
        True
    ] * 3  # 99 tokens in pieces of 10, the last by decoding


def test_a_short_prompt_overtakes_a_long_one_that_is_still_fed() -> None:
    model = endless()
    engine = Engine(model, TOKENIZER, slots=400, rows=4, prefill_tokens=10)
    long = engine.add(list(range(35)), policy="full", sampling=Sampling(max_new_tokens=4))
    short = engine.add([5], policy="full", sampling=Sampling(max_new_tokens=4))
    finished = run(engine)
    assert list(finished) == [short, long]
    for request_id, prompt in ((long, list(range(35))), (short, [5])):
        (alone,) = generate(model, TOKENIZER, prompt, policy="full", sampling=Sampling(max_new_tokens=4))
        assert finished[request_id].token_ids == alone.token_ids


def test_equal_prompts_are_fed_once_while_one_of_them_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    prefill = attention.prefill

    def noted(model: Any, cache: Any, ids_1S: torch.Tensor, positions_1S: torch.Tensor) -> None:
        fed.append(ids_1S.shape[1])
        prefill(model, cache, ids_1S, positions_1S)

    monkeypatch.setattr(attention, "prefill", noted)
    engine, prompt = Engine(endless(), TOKENIZER, slots=1000, rows=3, prefill_tokens=10), list(range(25))
    lengths = [12, 5, 9, 30, 8]  # the request that was fed leaves before others that share its prompt
    for seed, length in enumerate(lengths):
        engine.add(prompt, policy="full", sampling=Sampling(max_new_tokens=length, temperature=1.0, seed=seed))
    finished = run(engine)
    assert fed == [10, 10, 4]
    assert len({completion.token_ids[:5] for completion in finished.values()}) == 5
    for again in (1, 2):
        engine.add(prompt, policy="full", sampling=Sampling(max_new_tokens=2))
        run(engine)
        assert fed == [10, 10, 4] * again, "it still lies in the slots that were given back, until it is forgotten"
        assert_empty(engine)


@pytest.mark.parametrize("steps", [0, 1, 3, 20])
def test_a_cancelled_request_leaves_nothing_behind_whatever_it_was_doing(steps: int) -> None:
    model = endless()
    engine = Engine(model, TOKENIZER, slots=130, rows=2, prefill_tokens=10)
    options: dict[str, Any] = {"policy": "window", "budget": BUDGET, "sampling": Sampling(max_new_tokens=50)}
    other = engine.add([9, 8, 7], **options)
    victim = engine.add(list(range(40)), **options, streamed=True)
    for _ in range(steps):
        engine.step()
    assert engine.cancel(victim)
    assert not engine.cancel(victim)
    engine.check_integrity()
    finished = run(engine)
    assert list(finished) == [other]
    assert finished[other].token_ids == generate(model, TOKENIZER, [9, 8, 7], **options)[0].token_ids
    assert_empty(engine)


def test_a_long_request_can_take_the_row_of_a_cancelled_one() -> None:
    model = endless()
    engine = Engine(model, TOKENIZER, slots=900, rows=2)
    first = engine.add([1, 2, 3], policy="full", sampling=Sampling(max_new_tokens=300))
    second = engine.add([4, 5], policy="full", sampling=Sampling(max_new_tokens=300))
    for _ in range(270):  # more tokens than the host's record has room for at first
        engine.step()
    assert engine.cancel(first)
    finished = run(engine)
    (alone,) = generate(model, TOKENIZER, [4, 5], policy="full", sampling=Sampling(max_new_tokens=300))
    assert finished[second].token_ids == alone.token_ids


def test_streams_can_be_read_in_turns_and_lose_nothing_of_each_other_or_of_the_rest() -> None:
    model, sampling = endless(), Sampling(max_new_tokens=12)
    engine = Engine(model, TOKENIZER, slots=300, rows=4)
    silent = engine.add([9, 9], policy="full", sampling=Sampling(max_new_tokens=4))
    first = engine.stream([1, 2, 3], policy="full", sampling=sampling)
    second = engine.stream([4, 5], policy="full", sampling=sampling)
    started = [next(first), next(first), next(second)]
    told = engine.step()
    assert set(told.steps) == {1, 2}, "a step tells what the streams do, and takes nothing from them"
    rest_first, rest_second = list(first), list(second)
    for prompt, steps in (([1, 2, 3], started[:2] + rest_first), ([4, 5], started[2:] + rest_second)):
        (alone,) = generate(model, TOKENIZER, prompt, policy="full", sampling=sampling)
        assert tuple(step.token_id for step in steps) == alone.token_ids
        assert steps[-1].completion is not None
        assert "".join(step.text for step in steps) == alone.text
    assert engine.unfinished == 0
    assert list(engine.step().finished) == [silent], "it finished while the streams were read"
    assert not engine.step().finished
    assert_empty(engine)


def test_a_stream_whose_request_is_cancelled_elsewhere_ends() -> None:
    engine = Engine(endless(), TOKENIZER, slots=300, rows=4)
    steps = engine.stream([1, 2, 3], policy="full", sampling=Sampling(max_new_tokens=50))
    next(steps)
    assert engine.cancel(0)
    assert list(steps) == []


def test_a_stream_that_is_given_up_frees_its_slots() -> None:
    engine = Engine(endless(), TOKENIZER, slots=100)
    steps = engine.stream([1, 2, 3], policy="full", sampling=Sampling(max_new_tokens=50))
    assert next(steps).full_slots == 3
    steps.close()  # type: ignore[attr-defined]
    assert_empty(engine)


def test_log_probabilities_are_those_of_the_stock_model() -> None:
    model, prompt = endless(), [3, 1, 4, 1, 5]
    wanted, tokens = [None, 0, 3], [5, 12, 300]  # rows move when one has finished, and tables grow
    samplings = [
        Sampling(max_new_tokens=n, temperature=0.9, seed=i, logprobs=k)
        for i, (k, n) in enumerate(zip(wanted, tokens, strict=True))
    ]
    done = generate(model, TOKENIZER, [prompt] * 3, policy="full", sampling=samplings)
    assert done[0].logprobs is None
    assert done[0].top_logprobs is None
    for completion, most in zip(done[1:], wanted[1:], strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *completion.token_ids]])).logits[0, len(prompt) - 1 : -1]
        log_NV = logits.double().log_softmax(-1)
        own = log_NV.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        assert completion.logprobs == pytest.approx(own.tolist(), abs=1e-4)
        assert completion.top_logprobs is not None
        best = log_NV.topk(most)
        for entry, values, ids in zip(
            completion.top_logprobs, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            assert [token for token, _ in entry] == ids
            assert [value for _, value in entry] == pytest.approx(values, abs=1e-4)


def test_a_policy_that_comes_later_changes_nothing_for_those_that_run() -> None:
    model, policies = endless(), make_policies()
    engine = Engine(model, TOKENIZER, slots=2000, rows=8)
    options: dict[str, Any] = {"sampling": Sampling(max_new_tokens=60)}
    asked, finished = {}, dict[int, Completion]()
    for policy in reversed(policies):
        budget = None if policy.name == "full" else BUDGET
        asked[engine.add([7, 7, 9], policy=policy, budget=budget, **options)] = (policy, budget)
        for _ in range(3):
            finished |= engine.step().finished
            engine.check_integrity()
    finished |= run(engine)
    for request_id, (policy, budget) in asked.items():
        (alone,) = generate(model, TOKENIZER, [7, 7, 9], policy=policy, budget=budget, **options)
        assert finished[request_id].token_ids == alone.token_ids, policy.name


def test_a_score_that_is_no_number_is_an_error_and_not_a_wrong_eviction() -> None:
    class Broken(type(make_policy("window"))):  # type: ignore[misc]
        def score(self, slots: Slots) -> torch.Tensor:
            return slots.ages * float("nan")

    with pytest.raises(LeanThinkError, match="NaN or infinite"):
        generate(endless(), TOKENIZER, [1, 2], policy=Broken(), budget=BUDGET, sampling=Sampling(max_new_tokens=60))


def test_a_name_and_a_predictor_are_resolved_once() -> None:
    engine = Engine(endless(), TOKENIZER, slots=500)
    predictor = RandomPredictor(64, "horizon", (4, 8, 16))
    for _ in range(3):
        engine.add([1], policy="horizon", budget=BUDGET, predictor=predictor, sampling=Sampling(max_new_tokens=2))
        engine.add([1], policy="window", budget=BUDGET, sampling=Sampling(max_new_tokens=2))
    assert [policy.name for policy in engine.policies] == ["horizon", "window"]
    run(engine)


@pytest.mark.gpu
def test_graphs_give_the_tokens_of_plain_steps_and_of_the_cpu() -> None:
    from leanthink.data.tasks import registry
    from leanthink.models.loading import load

    problems = [p for family in registry.FAMILIES for p in registry.sample(family, 2, 4, 5)]
    budget = Budget(slots=96, recent_window=16, eviction_interval=16, max_answer_slots=128)
    policies = ["horizon", "window", "random", "dynts", "snapkv", "full", "h2o", "r-kv", "tova", "keydiff", "vase"]
    policies += ["sepllm"]
    outcomes = []
    for device, graphs in (("cpu", False), ("cuda", False), ("cuda", True)):
        model, tokenizer = load("tiny", device=device, dtype=torch.float32)
        engine = Engine(model, tokenizer, slots=12_000, rows=20, graphs=graphs, prefill_tokens=100)
        for i, problem in enumerate(problems):
            policy = policies[i % len(policies)]
            sampling = Sampling(max_new_tokens=400, temperature=0.5 * (i % 2), seed=i, logprobs=2 if i == 3 else None)
            engine.add(problem.prompt, policy=policy, budget=None if policy == "full" else budget, sampling=sampling)
        finished = run(engine)
        outcomes.append([finished[i] for i in range(len(problems))])
        assert_empty(engine)
    cpu, plain, graphed = ([done.token_ids for done in outcome] for outcome in outcomes)
    assert graphed == plain
    assert sum(a == b for a, b in zip(cpu, plain, strict=True)) >= len(problems) - 2  # rounding may turn a near tie
    assert outcomes[2][3].logprobs == pytest.approx(outcomes[1][3].logprobs, abs=1e-3)


@pytest.mark.gpu
def test_prompts_fed_on_a_gpu_whole_or_in_pieces_give_the_tokens_of_transformers() -> None:
    from leanthink.data.tasks import registry
    from leanthink.models.loading import load
    from leanthink.models.prompt import encode_prompt

    model, tokenizer = load("tiny", device="cuda", dtype=torch.float32)
    problems = [problem for family in registry.FAMILIES for problem in registry.sample(family, 2, 1, 7)]
    prompts = [encode_prompt(tokenizer, i, problem.prompt) for i, problem in enumerate(problems)]
    config = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    wanted = [model.generate(torch.tensor([prompt], device="cuda"), **config)[0, len(prompt) :] for prompt in prompts]
    for prefill_tokens, packed in ((8192, True), (100, True), (7, True), (100, False)):
        engine = Engine(model, tokenizer, slots=12_000, rows=8, prefill_tokens=prefill_tokens, ends=(), graphs=False)
        engine.model_runner.packs_prompts = packed
        for prompt in prompts:
            engine.add(prompt, policy="full", sampling=Sampling(max_new_tokens=24))
        finished = run(engine)
        assert [list(finished[i].token_ids) for i in range(len(prompts))] == [ids.tolist() for ids in wanted]


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "smollm3", "phi3"])
def test_prompts_packed_into_one_call_are_those_of_a_call_each(architecture: str) -> None:
    model, made = endless(architecture=architecture).cuda(), []
    policy, budget = H2O(waiting=3, pins_prompt=False), replace(BUDGET, slots=48)  # it adds up the prompt's attention
    for packed in (True, False):
        engine = Engine(model, TOKENIZER, slots=400, rows=5, prefill_tokens=16, graphs=False)
        engine.model_runner.packs_prompts = packed
        for i, length in enumerate((1, 2, 40, 17, 33)):
            engine.add(list(range(i, i + length)), policy=policy, budget=budget, sampling=Sampling(max_new_tokens=40))
        made.append((run(engine), engine.cache.kv_LPHTD))
    (packed_done, packed_kv), (each_done, each_kv) = made
    assert [done.token_ids for _, done in sorted(packed_done.items())] == [
        done.token_ids for _, done in sorted(each_done.items())
    ]
    torch.testing.assert_close(packed_kv[..., :-1, :], each_kv[..., :-1, :], rtol=1e-3, atol=1e-3)


@pytest.fixture
def _exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of float32 numbers: cuDNN rounds them to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)


def decoded(
    model: Any, prompts: list[list[int]], tokens: list[int], policies: list[Any], *, graphs: bool, captures: bool = True
) -> list[tuple[int, ...]]:
    """The tokens of each request, of which up to four decode together: rows and what belongs to them are used again."""
    engine = Engine(model, TOKENIZER, slots=500, rows=4, graphs=graphs, ends=())
    ids = [
        engine.add(
            prompt, policy=policy, budget=None if policy == "full" else BUDGET, sampling=Sampling(max_new_tokens=length)
        )
        for prompt, length, policy in zip(prompts, tokens, policies, strict=True)
    ]
    finished, captured = run(engine), engine.model_runner._captured.values()
    assert bool(captured) == graphs
    assert not captures or None not in captured, "some steps are not captured"
    return [finished[index].token_ids for index in ids]


@pytest.mark.gpu
@pytest.mark.usefixtures("_exact_convolutions")
@pytest.mark.parametrize("architecture", ["gpt_oss", "gemma3_text", "olmo3", "qwen3_moe", "granitemoe", *HYBRIDS])
def test_other_layers_give_on_a_gpu_with_graphs_and_without_the_tokens_of_transformers(architecture: str) -> None:
    model = with_experts(endless(architecture), "batched_mm").cuda()  # in float32 grouped_mm waits for counts
    prompts, tokens = [list(range(n, 3 * n)) for n in (3, 9, 1, 20, 8, 5)], [25, 40, 12, 33, 18, 20]
    wanted = [stock_tokens(model, prompt, length) for prompt, length in zip(prompts, tokens, strict=True)]
    learned = make_policy("dynts", RandomPredictor(64, "answer").cuda())
    evicted = []
    for graphs in (False, True):
        assert decoded(model, prompts, tokens, ["full"] * 6, graphs=graphs) == wanted
        assert decoded(model, prompts[1:2], tokens[1:2], ["full"], graphs=graphs) == wanted[1:2]
        policies = ["window", "random", "snapkv", "h2o", "r-kv", learned]
        evicted.append(decoded(model, prompts, [60] * 6, policies, graphs=graphs))
    assert evicted[0] == evicted[1]


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["qwen3_moe", "gpt_oss", "qwen3_5_text", "qwen3_5_moe_text", "nemotron_h"])
def test_graphs_in_bfloat16_give_the_tokens_of_plain_steps(architecture: str) -> None:
    """Of as many rows as the graph has: products of more rows round otherwise."""
    model = with_experts(endless(architecture), "grouped_mm").bfloat16().cuda()
    prompts, policies = [list(range(n, 3 * n)) for n in (3, 9, 20, 8)], ["full", "full", "window", "window"]
    plain, graphed = (decoded(model, prompts, [50] * 4, policies, graphs=graphs) for graphs in (False, True))
    assert plain == graphed


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:a step cannot be captured")
@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_experts_that_wait_for_the_gpu_run_without_graphs(experts: str) -> None:
    model, prompt = with_experts(endless("qwen3_moe"), experts).cuda(), list(range(9))
    assert decoded(model, [prompt], [20], ["full"], graphs=True, captures=False) == [stock_tokens(model, prompt, 20)]


@pytest.mark.parametrize("steps", [0, 1, 4, 5, 20])
def test_a_request_that_is_finished_early_brings_what_it_has_and_frees_its_slots(steps: int) -> None:
    model, horizon = endless(), make_policy("horizon", RandomPredictor(64, "horizon", (4, 8)))
    engine = Engine(model, TOKENIZER, slots=200, rows=2, prefill_tokens=10)
    options: dict[str, Any] = {"policy": horizon, "budget": BUDGET, "sampling": Sampling(max_new_tokens=50)}
    other = engine.add([9, 8, 7], **options)
    victim = engine.add(list(range(40)), **options, streamed=True, record=True)
    for _ in range(steps):
        engine.step()
    done = engine.finish_early(victim)
    assert engine.finish_early(victim) is None
    engine.check_integrity()
    assert list(run(engine)) == [other]
    assert_empty(engine)
    written = max(0, steps - 4)  # 2 + 39 tokens in pieces of 10; the last piece and the first token share a step
    if not written:
        assert done is None
        return
    assert done is not None
    options["sampling"] = Sampling(max_new_tokens=written)
    (whole,) = generate(model, TOKENIZER, list(range(40)), **options, record=True)
    assert (done.token_ids, done.scores) == (whole.token_ids, whole.scores)
    assert (done.finish_reason, done.prompt_tokens) == ("length", 40)


def test_stats_say_what_is_held_after_every_step() -> None:
    engine = Engine(endless(), TOKENIZER, slots=120, rows=2, prefill_tokens=10)
    prompts = [list(range(25)), [1, 2, 3], [4, 5]]
    for prompt in prompts:
        engine.add(prompt, policy="window", budget=BUDGET, sampling=Sampling(max_new_tokens=40))
    assert engine.stats() == EngineStats(waiting=3, max_rows=2, slots_total=120, max_slots_per_request=120)
    evictions = 0
    while engine.unfinished:
        finished = engine.step().finished.values()
        stats, batch = engine.stats(), engine.running_batch
        assert stats.waiting + stats.running == engine.unfinished
        assert stats.running <= 2
        held = [int(slots) for slots in engine.cache.host_lengths[: engine.cache.active]]
        full = [len(r.prompt_ids) + len(batch.tokens(row)) - 1 for row, r in enumerate(batch.requests)]
        assert (stats.slots_held, stats.slots_of_full) == (sum(held), sum(full))
        assert stats.slots_held <= stats.slots_reserved <= 120
        evictions += sum(done.evictions for done in finished)
    assert engine.stats() == EngineStats(
        max_rows=2, slots_total=120, max_slots_per_request=120, evictions=evictions, prefix_cache_queries=30
    )
    assert evictions > 0


NOTED: dict[int, tuple[float, ...]] = {}  # of each position, what the latest eviction was shown


@dataclass(frozen=True, kw_only=True, repr=False)
class NotingHorizon(Horizon):
    """Horizon, which notes what it is shown of each token."""

    def score(self, slots: Slots) -> torch.Tensor:
        """As of Horizon."""
        assert slots.token_scores is not None
        NOTED.update(
            {p: tuple(s) for p, s in zip(slots.positions[0].tolist(), slots.token_scores[0].tolist(), strict=True)}
        )
        return super().score(slots)


def test_a_recorded_stream_tells_what_each_eviction_took_and_what_was_predicted() -> None:
    torch.manual_seed(3)
    NOTED.clear()
    policy = NotingHorizon(predictor=RandomPredictor(64, "horizon", (8, 16), offsets=(0, 1, 3)))
    model, sampling = endless(), Sampling(max_new_tokens=90, logprobs=1)
    engine = Engine(model, TOKENIZER, slots=400, rows=3)
    engine.add([5], policy="window", budget=BUDGET, sampling=sampling, record=True)  # recorded, but nobody listens
    engine.add([5, 6], policy="window", budget=BUDGET, sampling=sampling, streamed=True)
    told = engine.add([1, 2, 3], policy=policy, budget=BUDGET, sampling=sampling, streamed=True, record=True)
    steps, others = [], []
    while engine.unfinished:
        progress = engine.step()
        steps += [progress.steps[told]] if told in progress.steps else []
        others += [step.eviction for request_id, step in progress.steps.items() if request_id != told]
        engine.check_integrity()
    assert others == [None] * 90
    assert_empty(engine)
    assert not engine.recorder._evicted
    assert not engine.recorder._ranked
    noted = dict(NOTED)
    evicted_at: list[int | None] = [None] * 90
    importance: dict[int, tuple[float, ...]] = {}
    for generated, step in enumerate(steps):
        if step.eviction is not None:
            assert not importance.keys() & step.eviction.importance.keys(), "told twice"
            importance |= step.eviction.importance
            for position in step.eviction.positions:
                evicted_at[position - 3] = generated
    (alone,) = generate(model, TOKENIZER, [1, 2, 3], policy=policy, budget=BUDGET, sampling=sampling, record=True)
    assert tuple(evicted_at) == alone.evicted_at == steps[-1].completion.evicted_at
    assert sum(at is not None for at in evicted_at) > 40
    gone = {index + 3 for index, at in enumerate(evicted_at) if at is not None}
    assert gone <= importance.keys()
    assert importance == {position: noted[position] for position in importance}
    assert tuple(step.logprob for step in steps) == steps[-1].completion.logprobs
    assert tuple(step.top_logprobs for step in steps) == steps[-1].completion.top_logprobs
    assert engine.stats().evictions == 3 * alone.evictions, "all three have the same budget and length"
