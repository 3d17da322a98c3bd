"""The plugin inside vLLM, in one process: tokens against our engine, blocks, preemption, abort, prefixes, leaks."""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: `make test-vllm` runs this in an environment of its own")

from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from leanthink import Budget, Completion, Sampling, generate, load
from leanthink.data.tasks import registry
from leanthink.integrations.vllm.lengths import Lengths
from leanthink.integrations.vllm.rows import Rows
from leanthink.integrations.vllm.thought import Watch
from leanthink.integrations.vllm.version import ROWS, check_config
from leanthink.integrations.vllm.worker import ROW, worker_here, worker_of
from leanthink.models.prompt import encode_prompt
from leanthink.models.tiny import weights_path
from leanthink.utils.errors import PredictorMismatch, UsageError

POLICIES = ("horizon", "dynts", "random", "window")
ENVIRONMENT = {
    "LEANTHINK_VLLM": json.dumps({"policies": POLICIES, "max_thought_slots": 512}),
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # scheduler and worker where the tests can look at them
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
BLOCK, BLOCKS = 32, 64
OPTIONS: dict[str, Any] = {
    "model": str(weights_path()),
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 1536,
    "block_size": BLOCK,
    "num_gpu_blocks_override": BLOCKS,
    "max_num_seqs": 48,
    "max_num_batched_tokens": 256,
    "logits_processors": [ROWS],
    "disable_log_stats": True,
}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request."""

    ids: tuple[int, ...]
    policy: str = "full"
    budget: Budget | None = None
    most: int = 700

    @property
    def params(self) -> SamplingParams:
        asked = None
        if self.budget is not None:
            parts = {"budget": self.budget.slots, "recent_window": self.budget.recent_window,
                     "eviction_interval": self.budget.eviction_interval,
                     "max_answer_slots": self.budget.max_answer_slots}  # fmt: skip
            asked = {f"leanthink_{name}": value for name, value in (parts | {"policy": self.policy}).items()}
        return SamplingParams(temperature=0, max_tokens=self.most, extra_args=asked)


class Served:
    """An engine in this process, stepped by hand."""

    def __init__(self) -> None:
        self.llm = LLM(**OPTIONS)
        self.engine = self.llm.llm_engine
        self.scheduler = self.engine.engine_core.engine_core.scheduler
        self.cache = self.scheduler.kv_cache_manager
        self.manager = self.cache.coordinator.single_type_managers[0]
        self.pool = self.cache.block_pool
        self.count = 0

    def run(self, asks: Sequence[Ask], after_step: Callable[[], None] = lambda: None) -> list[Any]:
        """The outputs of all requests, in their order; None for one that was aborted."""
        first, self.count = self.count, self.count + len(asks)
        for index, ask in enumerate(asks, first):
            self.engine.add_request(str(index), {"prompt_token_ids": list(ask.ids)}, ask.params)
        done: dict[int, Any] = {}
        while self.engine.has_unfinished_requests():
            done |= {int(output.request_id): output for output in self.engine.step() if output.finished}
            after_step()
        return [done.get(index) for index in range(first, self.count)]

    def check_nothing_is_left(self) -> None:
        self.run([Ask(ids=(1, 2, 3), most=1)])  # whoever has ended is told to workers with the next step
        gc.collect()
        assert self.pool.get_num_free_blocks() == BLOCKS - 1  # one is vLLM's null block
        assert not self.manager.req_to_blocks
        assert not self.manager.num_cached_block
        assert not len(self.manager._known)
        assert not len(self.manager._requests)
        assert not worker_here().rows

    def name(self, request: Any) -> str:
        """The one that was given; vLLM makes it unique by a tail of its own."""
        return str(request.request_id).split("-")[0]

    def blocks_of(self, request: Any) -> int:
        return len(self.manager.req_to_blocks.get(request.request_id, ()))


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield Served()


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    pair: tuple[Any, Any] = load("tiny", device="cpu")
    return pair


def prompts(count: int, level: int = 2, seed: int = 1) -> list[tuple[int, ...]]:
    """So many problems of each family."""
    _, tokenizer = load("tiny", device="cpu")
    problems = [problem for family in registry.FAMILIES for problem in registry.sample(family, level, count, seed)]
    return [tuple(encode_prompt(tokenizer, 0, problem.prompt)) for problem in problems]


def ours(tiny: tuple[Any, Any], asks: Sequence[Ask]) -> list[Completion]:
    """The same requests on our engine."""
    return generate(
        *tiny,
        [list(ask.ids) for ask in asks],
        policy=[ask.policy for ask in asks],
        budget=[ask.budget for ask in asks],
        sampling=[Sampling(max_new_tokens=ask.most) for ask in asks],
    )


def assert_same(outputs: Sequence[Any], completions: Sequence[Completion]) -> None:
    for output, completion in zip(outputs, completions, strict=True):
        assert tuple(output.outputs[0].token_ids) == completion.token_ids
        assert output.outputs[0].finish_reason == completion.finish_reason


BUDGET = Budget(slots=96, recent_window=32, eviction_interval=32)


def test_without_a_budget_tokens_are_those_of_vllm_alone(served: Served, tmp_path: Path) -> None:
    asks = [Ask(ids=ids) for ids in prompts(1)]
    script = (
        "import json, sys\nfrom vllm import LLM, SamplingParams\noptions, prompts = json.load(sys.stdin)\n"
        "params = SamplingParams(temperature=0, max_tokens=700)\n"
        "outputs = LLM(**options).generate([{'prompt_token_ids': ids} for ids in prompts], params)\n"
        "open(sys.argv[1], 'w').write(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))\n"
    )
    options = {name: value for name, value in OPTIONS.items() if name != "logits_processors"}
    alone = {name: value for name, value in os.environ.items() if name != "LEANTHINK_VLLM"}
    given = json.dumps([options, [ask.ids for ask in asks]])
    out = tmp_path / "out.json"
    subprocess.run([sys.executable, "-c", script, str(out)], input=given, env=alone, text=True, check=True,
                   capture_output=True)  # fmt: skip
    assert [list(output.outputs[0].token_ids) for output in served.run(asks)] == json.loads(out.read_text())
    served.check_nothing_is_left()


@pytest.mark.parametrize("policy", POLICIES)
def test_with_a_budget_tokens_are_those_of_our_engine(served: Served, tiny: tuple[Any, Any], policy: str) -> None:
    asks = [Ask(ids=ids, policy=policy, budget=BUDGET) for ids in prompts(1)]
    expected = ours(tiny, asks)
    assert sum(completion.evictions for completion in expected) > 12
    assert_same(served.run(asks), expected)
    if policy != "horizon":  # which thinks here as if nothing had been evicted
        full = [Ask(ids=ask.ids) for ask in asks]
        assert [done.token_ids for done in ours(tiny, full)] != [done.token_ids for done in expected]
    served.check_nothing_is_left()


def test_blocks_never_exceed_the_slots_that_a_request_can_hold(served: Served, tiny: tuple[Any, Any]) -> None:
    budget = Budget(slots=48, recent_window=16, eviction_interval=16)
    asks = [Ask(ids=ids, policy="horizon", budget=budget) for ids in prompts(1)]
    seen: dict[str, int] = {}

    def look() -> None:
        for request in served.scheduler.running:
            blocks = served.blocks_of(request)
            seen[request.request_id] = max(seen.get(request.request_id, 0), blocks)
            answer_at = Watch(request.prompt_token_ids, tiny[1]).answer_at(request.output_token_ids)
            lengths = Lengths(prompt=request.num_prompt_tokens, budget=budget, answer_at=answer_at)
            assert blocks <= -(-lengths.peak(request.num_tokens) // BLOCK)

    expected = ours(tiny, asks)
    assert_same(served.run(asks, look), expected)
    assert max(seen.values()) == max(-(-completion.peak_slots // BLOCK) for completion in expected)


def test_a_long_answer_ends_where_it_ends_in_our_engine(served: Served, tiny: tuple[Any, Any]) -> None:
    asks = [
        Ask(ids=ids, policy="horizon", budget=Budget(slots=96, eviction_interval=32, max_answer_slots=answer))
        for ids, answer in zip(prompts(1), (2, 3, 4, 5, 6, 7), strict=True)
    ]
    expected = ours(tiny, asks)
    assert {done.finish_reason for done in expected} >= {"length"}
    assert_same(served.run(asks), expected)


def test_preempted_requests_go_on_as_if_nothing_had_been(served: Served, tiny: tuple[Any, Any]) -> None:
    """Both kinds at once, in a cache that is too small for all of them."""
    asks = [
        Ask(ids=ids, policy="random" if index % 3 else "horizon", budget=BUDGET) if index % 4 else Ask(ids=ids)
        for index, ids in enumerate(prompts(4))
    ]
    preempted: dict[str, int] = {}

    def look() -> None:
        preempted.update({served.name(one): one.num_preemptions for one in served.scheduler.requests.values()})

    first = served.count
    assert_same(served.run(asks, look), ours(tiny, asks))
    bounded = [preempted[str(first + index)] for index, ask in enumerate(asks) if ask.budget]
    assert sum(bounded) >= 3, "the test is about them"
    served.check_nothing_is_left()


def test_a_request_fed_again_finds_no_keys_of_another_that_kept_everything(
    served: Served, tiny: tuple[Any, Any]
) -> None:
    """The other's blocks hold the very same tokens, hashed, with the keys of a full cache."""
    ids = prompts(1)[0]
    full, bounded = Ask(ids=ids), Ask(ids=ids, policy="horizon", budget=BUDGET)
    served.run([full])
    request: list[Any] = []

    def preempt_once() -> None:
        running = served.scheduler.running
        if not request and running and running[0].num_output_tokens == 250:
            request.append(running[0])
            served.scheduler.running.remove(running[0])
            served.scheduler._preempt_request(request[0], 0.0)

    assert_same(served.run([bounded], preempt_once), ours(tiny, [bounded]))
    assert request.pop().num_preemptions == 1
    served.check_nothing_is_left()


def test_aborted_requests_free_everything_and_leave_the_others_alone(served: Served, tiny: tuple[Any, Any]) -> None:
    asks = [Ask(ids=ids, policy="random", budget=BUDGET) for ids in prompts(2)]
    first, steps = served.count, iter(range(10**6))

    def abort() -> None:
        step = next(steps)
        if step % 40 == 39:
            served.engine.abort_request([str(first + 2 * (step // 40))])

    outputs = served.run(asks, abort)
    kept = [
        index
        for index, output in enumerate(outputs)
        if output is not None and output.outputs[0].finish_reason != "abort"
    ]
    assert 0 < len(kept) < len(asks)
    assert_same([outputs[index] for index in kept], ours(tiny, [asks[index] for index in kept]))
    served.check_nothing_is_left()


def test_prompts_are_shared_and_generated_blocks_never(served: Served, tiny: tuple[Any, Any]) -> None:
    ids = prompts(1)[0]
    long = (*ids[:1], *list(b"There are three ways to do this. " * 5), *ids[1:])  # five blocks and more
    asks = [Ask(ids=long, policy="random", budget=BUDGET) for _ in range(2)]
    served.llm.reset_prefix_cache()
    hashed: set[int] = set()
    expected = ours(tiny, asks)
    assert_same(served.run(asks[:1]), expected[:1])
    hashed = {block.block_id for block in served.pool.blocks if block.block_hash is not None}
    assert len(hashed) == len(long) // BLOCK
    outputs = served.run([*asks, Ask(ids=long)])
    assert [output.num_cached_tokens for output in outputs] == [len(long) // BLOCK * BLOCK] * 3
    assert_same(outputs[:2], expected)  # nobody wrote into the shared blocks
    assert_same(served.run(asks), expected)
    served.check_nothing_is_left()


def test_prompts_longer_than_a_step_are_fed_in_chunks(served: Served, tiny: tuple[Any, Any]) -> None:
    drawn = random.Random(0)
    asks = [
        Ask(ids=tuple(drawn.randrange(32, 127) for _ in range(length)), policy="random", budget=BUDGET, most=160)
        for length in (300, 520, 31, 257)
    ]
    assert_same(served.run(asks), ours(tiny, asks))


def test_five_hundred_mixed_requests_leave_nothing_behind(served: Served) -> None:
    drawn, ids = random.Random(0), prompts(4)
    memory: list[int] = []
    for _ in range(5):
        asks = []
        for _ in range(100):
            slots = drawn.choice([6, 16, 32])
            budget = Budget(
                slots=slots,
                recent_window=drawn.randrange(slots),
                eviction_interval=drawn.choice([1, 5, 16]),
                max_answer_slots=8,
            )
            policy = drawn.choice([*POLICIES, "full"])
            asks.append(Ask(ids=drawn.choice(ids), policy=policy, budget=None if policy == "full" else budget,
                            most=drawn.choice([1, 20, 60])))  # fmt: skip
        first = served.count

        def abort(first: int = first) -> None:
            if drawn.random() < 0.1:
                served.engine.abort_request([str(first + drawn.randrange(100))])

        served.run(asks, abort)
        served.check_nothing_is_left()
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert memory[-1] - memory[1] < 40 * 1024, "KiB"


def test_requests_that_ask_for_what_there_is_not_are_refused(served: Served) -> None:
    for asked in (
        {"leanthink_budget": 0},
        {"leanthink_budgt": 8},
        {"leanthink_policy": "sinks", "leanthink_budget": 64},
    ):
        with pytest.raises(VLLMValidationError, match=r"leanthink_|choose one of|Budget"):
            served.llm.generate([{"prompt_token_ids": [1]}], SamplingParams(extra_args=asked))
    served.check_nothing_is_left()


def test_a_row_outlives_its_place_in_the_batch(served: Served) -> None:
    """vLLM takes a request out of the batch that a step has no room for, and puts it back later."""
    rows = Rows(served.engine.vllm_config, torch.device("cpu"), False)
    worker = worker_of(served.engine.vllm_config)
    params = [Ask(ids=(1,), policy="window", budget=BUDGET).params for _ in range(3)]
    tokens: list[list[int]] = [[], [], []]
    added = [(index, params[index], [1, 2], tokens[index]) for index in range(3)]
    rows.update_state(BatchUpdate(batch_size=3, removed=[], added=added, moved=[]))
    first, second, third = (worker.rows[index] for index in range(3))
    rows.update_state(None)
    to_1 = [(2, 1, MoveDirectionality.UNIDIRECTIONAL)]
    rows.update_state(BatchUpdate(batch_size=2, removed=[1], added=[], moved=to_1))
    assert worker.rows == {0: first, 1: third}
    again = [(2, params[1], [1, 2], tokens[1])]
    rows.update_state(BatchUpdate(batch_size=3, removed=[], added=again, moved=[(0, 2, MoveDirectionality.SWAP)]))
    assert worker.rows == {0: second, 1: third, 2: first}
    other = [(1, Ask(ids=(1,)).params, [1, 2], [])]  # no budget, in the place of one that has gone
    rows.update_state(BatchUpdate(batch_size=3, removed=[1], added=other, moved=[(1, 0, MoveDirectionality.SWAP)]))
    assert worker.rows == {1: second, 2: first}
    rows.update_state(BatchUpdate(batch_size=0, removed=[2, 1, 0], added=[], moved=[]))
    assert worker.rows == {}
    assert (params[0].extra_args or {})[ROW] == [first]


def test_choices_of_one_request_have_rows_of_their_own(served: Served, tiny: tuple[Any, Any]) -> None:
    """In one process they even have the same parameters object; top_k=1 draws what greedy takes."""
    ask = Ask(ids=prompts(1)[1], policy="random", budget=BUDGET)
    params = ask.params
    params.n, params.temperature, params.top_k = 3, 1.0, 1
    (output,) = served.llm.generate([{"prompt_token_ids": list(ask.ids)}], params, use_tqdm=False)
    (expected,) = ours(tiny, [ask])
    assert [tuple(choice.token_ids) for choice in output.outputs] == [expected.token_ids] * 3
    served.check_nothing_is_left()


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("cache_config", "enable_prefix_caching", False, "shows no request"),
        ("cache_config", "cache_dtype", "fp8", "moved as they are"),
        ("scheduler_config", "async_scheduling", True, "too late"),
        ("parallel_config", "pipeline_parallel_size", 2, "one process"),
        ("model_config", "skip_tokenizer_init", True, "looked up"),
        ("model_config", "logits_processors", None, "--logits-processors"),
        (None, "speculative_config", "ngram", "draft"),
        (None, "lora_config", "any", "one model"),
    ],
)
def test_a_server_whose_hooks_would_not_run_does_not_start(
    served: Served, monkeypatch: pytest.MonkeyPatch, section: str | None, name: str, value: Any, message: str
) -> None:
    config = served.engine.vllm_config
    check_config(config)
    monkeypatch.setattr(getattr(config, section) if section else config, name, value)
    with pytest.raises(UsageError, match=message):
        check_config(config)


def test_model_runner_v2_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(served.engine.vllm_config), "use_v2_model_runner", property(lambda _: True))
    with pytest.raises(UsageError, match="model runner V2"):
        check_config(served.engine.vllm_config)


def test_a_predictor_of_another_model_ends_the_start(served: Served) -> None:
    config = served.engine.vllm_config.model_config.hf_config
    with pytest.raises(PredictorMismatch, match=r"has no weight 'model\.layers\.0"):
        worker_here().make_policies(SimpleNamespace(config=config), {})
