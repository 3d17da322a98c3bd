"""Samples a model's own traces, grades them and writes each one down as it finishes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from leanthink.data.grading.grading import as_graded, check_gold, is_solved
from leanthink.data.problems import Problem
from leanthink.data.think_tags import ThinkTags, think_tags
from leanthink.data.traces.trace import Trace, TraceWriter, request_seed, trace_key
from leanthink.engine.outputs import Completion
from leanthink.engine.request import Predictor
from leanthink.engine.sampling import Sampling
from leanthink.importance.inference_backend import GenerationRequest, InferenceBackend, LoadedModel
from leanthink.models.prompt import PLAIN, ChatOptions, encode_prompt
from leanthink.policies.budget import Budget
from leanthink.policies.policy_spec import canonical
from leanthink.utils.errors import UsageError

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Collected:
    """How one call went: traces written now and found from before, and how many of all are correct."""

    written: int
    done_before: int
    correct: int


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One trace to be made."""

    problem: Problem
    sample: int
    prompt_ids: tuple[int, ...]
    sampling: Sampling

    @property
    def key(self) -> str:
        return trace_key(self.problem.id, self.sample)


def collect(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    out_path: str | os.PathLike[str],
    *,
    samples: int,
    sampling: Sampling,
    policy: str = "full",
    budget: Budget | None = None,
    predictor: Any = None,
    ignore_predictor_mismatch: bool = False,
    model_name: str | None = None,
    instruction: str = "",
    options: ChatOptions = PLAIN,
    max_rows: int = 64,
    record: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    backend: InferenceBackend | None = None,
) -> Collected:
    r"""Generate `samples` traces of each problem into a JSONL file.

    Every trace is written and flushed when its request finishes, so a run that is stopped has lost none of those;
    `resume` goes on with the rest. Each trace has its own seed, made from `sampling.seed`, problem and sample.

    Args:
        model: what generates, as for `leanthink.generate`.
        tokenizer: its tokenizer.
        problems: what to solve; their golds grade the traces.
        out_path: the file to write; refused if it exists, unless `resume` or `overwrite`.
        samples: traces for each problem.
        sampling: how tokens are picked; its seed is the seed of the whole collection.
        policy: the policy to generate under, by its name, with settings behind a colon where they are not the defaults.
        budget: its budget; None for "full" only.
        predictor: its predictor or a path; None for the one shipped with the model.
        ignore_predictor_mismatch: as of `leanthink.generate`.
        model_name: what the traces say of the model; None: the name it was loaded by.
        instruction: text put after each problem, such as "Put the final answer in \boxed{}."
        options: how problems become prompts.
        max_rows: most requests at a time.
        record: fill `evicted_at`, `token_chars` and `scores` of each trace.
        resume: go on with the file, leaving out what it has.
        overwrite: start the file anew.
        progress: called with the numbers of traces done and asked for, after each.
        backend: what completes in place of `model`, `tokenizer` and `predictor`, which may then be None; it knows the
            policy, and `model_name` has to be given.

    Raises:
        UsageError: no problem, two of one id, a gold that cannot be graded, samples < 1, or a file that exists or, on
            resuming, was written with other settings.
        DamagedFile: a line of the file to resume cannot be read.
    """
    check_problems(problems, samples)
    policy = canonical(policy)
    if backend is not None and model_name is None:
        raise UsageError("backend is given without model_name: say what the traces are to call the model")
    if backend is None:
        given: dict[str | None, Predictor] = {policy: predictor}
        backend = LoadedModel(model, tokenizer, given, ignore_predictor_mismatch=ignore_predictor_mismatch)
    tokenizer = backend.tokenizer
    tags = think_tags(tokenizer)
    jobs = _jobs(tokenizer, problems, samples, sampling, instruction, options)
    common = {
        "model": model_name or str(getattr(model.config, "_name_or_path", "")) or type(model).__name__,
        "fingerprint": backend.model_info.fingerprint,
        "policy": policy,
        "budget": None if budget is None else budget.record,
        "temperature": float(sampling.temperature),
    }
    with TraceWriter(out_path, resume=resume, overwrite=overwrite) as writer:
        done = {trace.key: trace for trace in writer.done}
        _check_same_run(jobs, done, common)
        before = [bool(done[job.key].correct) for job in jobs if job.key in done]
        todo = [job for job in jobs if job.key not in done]
        now: list[bool] = []

        how: dict[str, Any] = {"policy": policy, "budget": budget}
        requests = [GenerationRequest(prompt_ids=job.prompt_ids, sampling=job.sampling, **how) for job in todo]
        for index, completion in backend.complete(requests, max_rows=max_rows, record=record):
            trace = _trace(todo[index], completion, common, tags)
            writer.write(trace)
            now.append(bool(trace.correct))
            if progress is not None:
                progress(len(before) + len(now), len(jobs))
    return Collected(written=len(now), done_before=len(before), correct=sum(before) + sum(now))


def check_problems(problems: Sequence[Problem], samples: int) -> None:
    """Refuse what no trace can be collected of, as `collect` does, before there is a model (UsageError)."""
    if not problems:
        raise UsageError("no problem to collect traces of: give at least one")
    if samples < 1:
        raise UsageError(f"samples={samples}: at least 1 trace for each problem")
    ids = [problem.id for problem in problems]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise UsageError(f"two problems have the id {twice!r}: ids must differ, traces are known by them")
    for problem in problems:
        if problem.check is None:
            check_gold(problem.answer)


def _jobs(
    tokenizer: Any,
    problems: Sequence[Problem],
    samples: int,
    sampling: Sampling,
    instruction: str,
    options: ChatOptions,
) -> list[_Job]:
    """All traces asked for, first samples of every problem first, so that a stopped run covers all problems."""
    texts = [f"{problem.problem}\n\n{instruction}" if instruction else problem.problem for problem in problems]
    prompts = [tuple(encode_prompt(tokenizer, index, text, options)) for index, text in enumerate(texts)]
    return [
        _Job(
            problem=problem,
            sample=sample,
            prompt_ids=prompt_ids,
            sampling=replace(sampling, seed=request_seed(sampling.seed, problem.id, sample)),
        )
        for sample in range(samples)
        for problem, prompt_ids in zip(problems, prompts, strict=True)
    ]


def _check_same_run(jobs: Sequence[_Job], done: dict[str, Trace], common: dict[str, Any]) -> None:
    """A resumed file must be what this call would have written: mixed settings would pass for one experiment."""
    for trace in done.values():
        for name, value in common.items():
            if name == "fingerprint" and trace.fingerprint is None:
                continue  # it was written before traces knew theirs
            if getattr(trace, name) != value:
                raise UsageError(
                    f"the file to resume has a trace ({trace.key}) of {name} {getattr(trace, name)!r}, "
                    f"asked for is {value!r}: give another file, or the same settings"
                )
    for job in jobs:
        trace_of_job = done.get(job.key)
        if trace_of_job is None:
            continue
        if trace_of_job.prompt_ids != job.prompt_ids or trace_of_job.seed != job.sampling.seed:
            raise UsageError(
                f"the trace {job.key} in the file to resume had another prompt or seed: "
                "give another file, or the same problems, instruction and seed"
            )


def _trace(job: _Job, completion: Completion, common: dict[str, Any], tags: ThinkTags) -> Trace:
    text, must_close = as_graded(completion.text, completion.thought_tokens, tags)
    copied = {name: getattr(completion, name) for name in _COPIED}
    return Trace(
        id=job.problem.id,
        sample=job.sample,
        problem=job.problem.problem,
        gold=job.problem.answer,
        seed=job.sampling.seed,
        prompt_ids=job.prompt_ids,
        correct=is_solved(job.problem, text, think_tags=must_close),
        **copied,
        **common,
    )


_COPIED = (
    "token_ids",
    "text",
    "thought_tokens",
    "answer_tokens",
    "finish_reason",
    "peak_slots",
    "kept_slots",
    "evictions",
    "peak_kv_bytes",
    "full_kv_bytes",
    "evicted_at",
    "token_chars",
    "scores",
)
