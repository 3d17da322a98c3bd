"""The engine's thread and the jobs: what is handed over, and what becomes of the jobs when the engine breaks."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from leanthink.engine.engine import Engine
from leanthink.engine.generation import generate
from leanthink.engine.request import Request, make_request
from leanthink.engine.sampling import Sampling
from leanthink.entrypoints.openai.dispatcher import Dispatcher, EngineDeadError, Job
from leanthink.entrypoints.openai.engine_thread import EngineCommand, EngineThread, EngineUpdate
from leanthink.policies import make_policy
from leanthink.policies.budget import Budget
from leanthink.utils.errors import RequestFailed
from models import make_model, make_tokenizer

TOKENIZER = make_tokenizer()
BUDGET = Budget(slots=16, recent_window=4, eviction_interval=8, max_answer_slots=8)


def request(prompt: list[int], tokens: int = 40) -> Request:
    sampling = Sampling(max_new_tokens=tokens)
    return make_request(0, prompt, policy=make_policy("window"), budget=BUDGET, sampling=sampling, context=4096)


def noted(news: list[Any]) -> dict[str, Any]:
    return {"on_update": news.append, "on_token": lambda *_: None, "on_failed": news.append, "on_failure": news.append}


async def all_of(job: Job) -> list[Any]:
    found = []
    while sum(update.is_last for update in found) < len(job.ids):
        found += await job.updates()
    return found


@pytest.mark.parametrize("streamed", [True, False])
def test_every_choice_gets_what_generate_gives_and_nothing_is_left(streamed: bool) -> None:
    model, prompts = make_model(), [[5, 6], [7], [8, 9, 10]]

    async def run() -> list[Any]:
        engine = Engine(model, TOKENIZER, slots=300, rows=2)
        work = Dispatcher(engine, **noted([]))
        work.start()
        jobs = [work.submit([request(prompt)], streamed=streamed) for prompt in prompts]
        found = [await all_of(job) for job in jobs]
        work.stop()
        assert (work.unfinished, engine.unfinished, engine.stats().slots_reserved) == (0, 0, 0)
        return found

    budget: dict[str, Any] = {"policy": "window", "budget": BUDGET, "sampling": Sampling(max_new_tokens=40)}
    expected = generate(model, TOKENIZER, prompts, **budget)
    for updates, alone in zip(asyncio.run(run()), expected, strict=True):
        assert updates[-1].completion.token_ids == alone.token_ids
        steps = [update.step.token_id for update in updates if update.step is not None]
        assert tuple(steps) == (alone.token_ids if streamed else ())


def test_a_job_that_is_abandoned_or_cut_leaves_the_engine() -> None:
    async def run() -> None:
        engine = Engine(make_model(), TOKENIZER, slots=9000, rows=2)
        work = Dispatcher(engine, **noted([]))
        work.start()
        left, cut, other = (work.submit([request([5, i], 3000)] * 2, streamed=True) for i in range(3))
        await cut.updates()
        work.abandon(left)
        work.abandon(left)
        work.cut(cut, "timeout")
        work.cut(other, "shutdown")
        for job in (cut, other):
            last = [update for update in await all_of(job) if update.is_last]
            assert {update.reason for update in last} == {job.reason}
        assert work.unfinished == 0
        work.stop()
        assert engine.unfinished == 0

    asyncio.run(run())


def test_a_job_that_cannot_be_read_when_it_is_cut_fails_and_the_engine_goes_on() -> None:
    async def run() -> None:
        engine, heard = Engine(make_model(), TOKENIZER, slots=9000, rows=2), list[Any]()
        work = Dispatcher(engine, **noted(heard))
        work.start()
        job = work.submit([request([5], 3000)], streamed=True)
        await job.updates()
        engine.running_batch.__dict__["complete"] = lambda *_, **__: 1 / 0
        work.cut(job, "timeout")
        with pytest.raises(RequestFailed, match="ZeroDivisionError"):
            await all_of(job)
        del engine.running_batch.__dict__["complete"]
        assert (await all_of(work.submit([request([5])], streamed=False)))[-1].completion is not None
        work.stop()
        assert isinstance(next(news for news in heard if isinstance(news, RequestFailed)).__cause__, ZeroDivisionError)

    asyncio.run(run())


def test_steps_are_gathered_while_the_last_ones_are_still_dealt_with() -> None:
    engine, told, enough = Engine(make_model(), TOKENIZER, slots=300, rows=1), [], threading.Event()

    def tell(gathered: list[EngineUpdate]) -> None:
        told.append(list(gathered))
        enough.set()

    thread = EngineThread(engine, tell=tell, fail=lambda error: told.append(error))
    thread.send(EngineCommand("add", 1, replace(request([5]), index=1), streamed=True))
    thread.start()
    assert enough.wait(30)
    while engine.unfinished:
        time.sleep(0.01)  # nobody has taken the first hand-over: no other may come
    time.sleep(0.1)
    assert len(told) == 1
    enough.clear()
    thread.taken()
    assert enough.wait(30)
    thread.stop()
    first, rest, *_ = told
    assert len(first) == 1
    assert sum(len(news.progress.steps) for news in rest) == 39


def test_when_the_engine_breaks_every_job_hears_of_it() -> None:
    async def run() -> None:
        engine: Any = Engine(make_model(), TOKENIZER, slots=300, rows=1)
        engine.step = lambda: 1 / 0
        heard: list[Any] = []
        work = Dispatcher(engine, **noted(heard))
        work.start()
        job = work.submit([request([5])], streamed=False)
        with pytest.raises(EngineDeadError):
            await job.updates()
        with pytest.raises(EngineDeadError):
            await work.submit([request([5])], streamed=False).updates()
        assert isinstance(work.broken, ZeroDivisionError)
        assert isinstance(heard[-1], ZeroDivisionError)
        work.stop()

    asyncio.run(run())


def test_a_request_that_fails_ends_its_job_alone_and_the_other_choices_of_it() -> None:
    model = make_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[77] = torch.nan
        model.get_output_embeddings().weight[77] = 0

    async def run() -> Any:
        engine, heard = Engine(model, TOKENIZER, slots=400, rows=4), list[Any]()
        work = Dispatcher(engine, **noted(heard))
        work.start()
        good = work.submit([request([5, 6])], streamed=True)
        bad = work.submit([request([7]), request([77])], streamed=False)
        refused = work.submit([request([5], tokens=4000), replace(request([5]), bound=10**6)], streamed=False)
        for job, why in ((bad, "logits are NaN"), (refused, "the engine has 400 for one")):
            with pytest.raises(RequestFailed, match=why):
                await all_of(job)
            work.abandon(job)
        updates = await all_of(good)
        work.stop()
        assert (work.unfinished, engine.unfinished, engine.stats().slots_reserved) == (0, 0, 0)
        assert [type(news) for news in heard].count(RequestFailed) == 2
        return updates[-1].completion

    (alone,) = generate(model, TOKENIZER, [5, 6], policy="window", budget=BUDGET, sampling=Sampling(max_new_tokens=40))
    assert asyncio.run(run()).token_ids == alone.token_ids
