"""Generates and grades what a run still lacks, and writes down each answer as it finishes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from leanthink.data.grading.grading import as_graded, verdict_on
from leanthink.data.grading.math_verify_pool import MOST_WORKERS
from leanthink.data.problems import Problem
from leanthink.data.think_tags import ThinkTags, think_tags
from leanthink.data.traces.trace import request_seed
from leanthink.engine.outputs import Completion
from leanthink.engine.sampling import Sampling
from leanthink.eval.aggregated_results import AggregatedResults, aggregate
from leanthink.eval.configurations import Benchmark, Configuration
from leanthink.eval.records import RESULT, Record, RunFolder
from leanthink.importance.inference_backend import GenerationRequest, InferenceBackend
from leanthink.models.prompt import PLAIN, ChatOptions, encode_prompt
from leanthink.utils.errors import LeanThinkError, RequestFailed
from leanthink.utils.file_writing import write_json


class Progress(Protocol):
    """Hears of every record: those that an earlier start wrote, and those that are written now."""

    def skip(self, what: str, count: int) -> None:
        """So many of a configuration were there."""

    def advance(self, what: str) -> None:
        """One more of a configuration is there."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all configurations of a run have in common.

    Attributes:
        backend: what answers; it knows the policies of all configurations.
        benchmarks: by name.
        samples: answers to each problem.
        sampling: how tokens are picked; its seed is that of the whole run.
        max_rows: most requests at a time.
        progress: told of every record.
        options: how problems become prompts.
        enable_prefix_caching: as of `leanthink.generate`.
    """

    backend: InferenceBackend
    benchmarks: Mapping[str, Benchmark]
    samples: int
    sampling: Sampling
    max_rows: int
    progress: Progress
    options: ChatOptions = PLAIN
    enable_prefix_caching: bool = True


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One request that is still to be made."""

    configuration: Configuration
    problem: Problem
    sample: int
    prompt_ids: tuple[int, ...]
    sampling: Sampling

    @property
    def request(self) -> GenerationRequest:
        policy, budget = self.configuration.policy, self.configuration.budget
        return GenerationRequest(prompt_ids=self.prompt_ids, policy=policy, budget=budget, sampling=self.sampling)


def complete(
    setup: Setup, folder: RunFolder, configurations: Iterable[Configuration], *, together: bool = False
) -> None:
    """Make the records that these configurations lack: each in an engine run of its own, or all of them `together`.

    Every request has its own seed, from the run's seed, the problem and the sample, the same in every configuration: a
    run that is resumed generates what it would have generated.
    """
    wanted = list(configurations)
    for group in [wanted] if together else [[configuration] for configuration in wanted]:
        jobs = [job for configuration in group for job in _jobs(setup, configuration, folder)]
        if jobs:
            _generate(setup, folder, jobs, alone=len(group) == 1)


def finish(setup: Setup, folder: RunFolder, configurations: Iterable[Configuration]) -> list[AggregatedResults]:
    """Write `result.json`, and return what is in it, once every record of these configurations is there."""
    found = [_aggregated(setup, folder, configuration) for configuration in configurations]
    benchmarks = {
        name: {**folder.header["benchmarks"][name], "ids": [problem.id for problem in benchmark.problems]}
        for name, benchmark in setup.benchmarks.items()
    }
    write_json(
        folder.path / RESULT, {**folder.header, "benchmarks": benchmarks, "cells": [one.record for one in found]}
    )
    return found


def mean_thought(setup: Setup, folder: RunFolder, configuration: Configuration) -> float:
    """Mean thought of a finished configuration, in tokens."""
    found = _aggregated(setup, folder, configuration)
    return float(found.column("thought_tokens").mean())


def _aggregated(setup: Setup, folder: RunFolder, configuration: Configuration) -> AggregatedResults:
    ids = [problem.id for problem in setup.benchmarks[configuration.benchmark].problems]
    return aggregate(configuration, ids, setup.samples, folder.of_configuration(configuration.name))


def _jobs(setup: Setup, configuration: Configuration, folder: RunFolder) -> list[_Job]:
    """What is left of a configuration, first samples of every problem first."""
    benchmark = setup.benchmarks[configuration.benchmark]
    prompts = [
        tuple(encode_prompt(setup.backend.tokenizer, index, benchmark.prompt(problem), setup.options))
        for index, problem in enumerate(benchmark.problems)
    ]
    jobs = [
        _Job(
            configuration=configuration,
            problem=problem,
            sample=sample,
            prompt_ids=prompt_ids,
            sampling=replace(setup.sampling, seed=request_seed(setup.sampling.seed, problem.id, sample)),
        )
        for sample in range(setup.samples)
        for problem, prompt_ids in zip(benchmark.problems, prompts, strict=True)
        if (configuration.name, problem.id, sample) not in folder.done
    ]
    setup.progress.skip(configuration.name, setup.samples * len(prompts) - len(jobs))
    return jobs


def _generate(setup: Setup, folder: RunFolder, jobs: Sequence[_Job], *, alone: bool) -> None:
    """One engine run. Answers are graded beside it, so that no step waits for that."""
    tags = think_tags(setup.backend.tokenizer)
    start = time.perf_counter()
    graded: list[Future[Record]] = []

    def finish_one(job: _Job, completion: Completion) -> None:
        seconds = round(time.perf_counter() - start, 3) if alone else None
        record = partial(_record, job, completion, tags=tags, start=folder.start, seconds=seconds)
        graded.append(threads.submit(record))
        while graded and graded[0].done():
            _write(graded.pop(0).result())

    def _write(record: Record) -> None:
        folder.write(record)
        setup.progress.advance(record.cell)

    with ThreadPoolExecutor(MOST_WORKERS) as threads:
        try:
            requests, how = [job.request for job in jobs], {"enable_prefix_caching": setup.enable_prefix_caching}
            for index, completion in setup.backend.complete(requests, max_rows=setup.max_rows, **how):
                finish_one(jobs[index], completion)
        except RequestFailed as failure:
            job = jobs[failure.request_id]
            raise LeanThinkError(
                f"{job.configuration.name}: sample {job.sample} of problem {job.problem.id} failed: {failure.why}. "
                "All others are written down; the same command tries it again"
            ) from failure
        finally:
            for future in graded:
                _write(future.result())


def _record(job: _Job, completion: Completion, *, tags: ThinkTags, start: int, seconds: float | None) -> Record:
    text, must_close = as_graded(completion.text, completion.thought_tokens, tags)
    found = verdict_on(job.problem, text, think_tags=must_close)
    copied = ("prompt_tokens", "thought_tokens", "answer_tokens", "peak_slots", "kept_slots", "slot_steps")
    return Record(
        cell=job.configuration.name,
        id=job.problem.id,
        sample=job.sample,
        seed=job.sampling.seed,
        right=found.right,
        finished=completion.finish_reason == "stop",
        vote=found.vote,
        answer=completion.answer,
        evictions=completion.evictions,
        peak_kv_bytes=completion.peak_kv_bytes,
        start=start,
        seconds=seconds,
        **{name: getattr(completion, name) for name in copied},
    )
