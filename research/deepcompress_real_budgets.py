"""Fewer tokens times less memory, on a real model: the `budgets` part of `research/deepcompress_real.py`.

A `horizon` predictor is fitted to the model itself as `leanthink predictor` does it: an index set for each kv head,
right and wrong traces. Then problems are answered greedily, with the full cache and under `horizon` with no more
thought slots than the model's own mean thought on them divided by each ratio. Without think tags all is thought.

What counts is slot-steps per right answer: the slots held at each decoding step (`Completion.slot_steps`), added up
over the steps of all problems, over the right answers. Intervals are over problems, the same ones drawn for both sides.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from deepcompress_real_table import START, Run, arms_of, interval, told
from torch import Tensor

from leanthink.data.problems import STEP_BY_STEP, read_problems
from leanthink.engine.sampling import Sampling
from leanthink.eval.aggregated_results import AggregatedResults
from leanthink.eval.benchmarks import from_file
from leanthink.eval.configurations import FULL, Configuration, budget_at_ratio
from leanthink.eval.records import RunFolder
from leanthink.eval.run import Setup, complete, finish, mean_thought
from leanthink.eval.statistics import Statistic, mean, ratio
from leanthink.importance.fit_config import FitConfig
from leanthink.importance.inference_backend import LoadedModel
from leanthink.importance.make_predictor import Made, Plan, make_predictor
from leanthink.importance.work_folder import WorkFolder
from leanthink.policies.budget import Budget
from leanthink.utils.provenance import provenance_record

HORIZON = "horizon"
TEMPERATURE = 0.8  # of the traces, as of `leanthink predictor`
MOST = 16  # window and interval that measured best on this model, where a quarter of what is held is not less
ANSWER = 64
COLUMNS = ("arm", "cache", "thought slots", "right, %", "points to start", "tokens", "slot-steps per right answer",
           "times fewer than start")  # fmt: skip


class Silent:
    """Hears of every answer and says nothing."""

    def skip(self, what: str, count: int) -> None:
        """So many were there."""

    def advance(self, what: str) -> None:
        """One more is there."""


def fitted(model: Any, tokenizer: Any, path: Path, options: argparse.Namespace, tokens: int) -> Made:
    """Collect, label, fit: the predictor is at `path`, and a folder beside it holds traces of at most `tokens`."""
    problems = [one for file in options.predictor_problems for one in read_problems(file)[: options.predictor_limit]]
    plan = Plan(
        problems=problems,
        model=options.name,
        fit_config=FitConfig(steps=options.predictor_steps, only_correct=False),
        sampling=Sampling(temperature=TEMPERATURE, max_new_tokens=tokens),
        instruction=STEP_BY_STEP,
        max_rows=options.rows,
    )
    how = {"resume": options.resume, "overwrite": not options.resume}
    made = make_predictor(model, tokenizer, plan, WorkFolder(path), **how)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what the fit took, for the slots of the answers
    return made


def answered(
    model: Any, tokenizer: Any, predictor: Path, file: Path, options: argparse.Namespace, tokens: int
) -> dict[str, Any]:
    """Of each problem of the file, in each cache: right, tokens and slot-steps of the greedy answer."""
    whole = from_file(file)
    asked = replace(whole, problems=whole.problems[: options.count], instruction=STEP_BY_STEP)
    backend, began = LoadedModel(model, tokenizer, {FULL: None, HORIZON: predictor}), time.time()
    setup = Setup(
        backend=backend, benchmarks={asked.name: asked}, samples=1, sampling=Sampling(max_new_tokens=tokens),
        max_rows=options.rows, progress=Silent(),
    )  # fmt: skip
    settings = {"model": options.name, "fingerprint": backend.model_info.fingerprint, "tokens": tokens}
    settings["predictor"] = backend.model_info.predictors[HORIZON]
    place = options.work / f"{options.name}.answers" / asked.name
    about = {asked.name: asked.about}
    with RunFolder(place, settings, about, provenance_record(), overwrite=not options.resume) as folder:
        caches = {FULL: Configuration(benchmark=asked.name, policy=FULL, budget=None)}
        complete(setup, folder, caches.values())
        thought = mean_thought(setup, folder, caches[FULL])
        for times in options.ratios:
            budget = budget_of(thought, times)
            caches[f"{times:g}x"] = Configuration(benchmark=asked.name, policy=HORIZON, budget=budget)
        complete(setup, folder, list(caches.values())[1:], together=True)
        found = finish(setup, folder, caches.values())
    return {
        "ids": [problem.id for problem in asked.problems],
        "caches": {name: columns_of(one) for name, one in zip(caches, found, strict=True)},
        "seconds": round(time.time() - began),
        "birth": provenance_record(),
    }


def budget_of(thought: float, times: float) -> Budget:
    """Of a mean thought divided by `times`: window and interval take at most a quarter of that each."""
    part = max(1, min(MOST, round(thought / times) // 4))
    usual = Budget(slots=part, recent_window=part, eviction_interval=part, max_answer_slots=ANSWER)
    return budget_at_ratio(thought, times, usual)


def columns_of(found: AggregatedResults) -> dict[str, Any]:
    """What stays of a configuration: budget, and a number for each problem."""
    columns, budget = found.columns, found.configuration.budget
    return {
        "budget": None if budget is None else budget.record,
        "right": columns["right"],
        "tokens": [sum(both) for both in zip(columns["thought_tokens"], columns["answer_tokens"], strict=True)],
        "slot_steps": columns["slot_steps"],
        "unfinished": sum(columns["capped"]),
    }


def summary(folder: Path) -> str:
    """Markdown: a table for each set of problems, the start with its full cache first; '' where nothing was asked."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    arms, lines = arms_of(runs, "budgets"), []
    for problems in sorted({name for some in arms.values() for run in some for name in run["budgets"]}):
        lines += [f"{problems}, greedy:", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        some = {arm: [run for run in found if problems in run["budgets"]] for arm, found in arms.items()}
        base = some.get(START)
        for arm, found in some.items():
            for cache in found[0]["budgets"][problems]["caches"] if found else ():
                lines.append(f"| {' | '.join((arm, cache, *cells(found, base, problems, cache)))} |")
        lines.append("")
    return "\n".join(lines)


def cells(runs: list[Run], base: list[Run] | None, problems: str, cache: str) -> list[str]:
    """Slots, right %, points to the start's full cache, tokens, slot-steps per right answer, times fewer than there."""
    right_P, tokens_P, steps_P = (column(runs, problems, cache, name) for name in ("right", "tokens", "slot_steps"))
    budgets = [run["budgets"][problems]["caches"][cache]["budget"] for run in runs]
    slots = "" if cache == FULL else f"{fmean(one['slots'] + one['interval'] for one in budgets):.0f}"
    cost = ratio(steps_P, right_P)
    points = fewer = ""
    if base and not (runs is base and cache == FULL):
        base_P, base_steps_P = (column(base, problems, FULL, name) for name in ("right", "slot_steps"))
        base_cost = ratio(base_steps_P, base_P)
        points = bounded(mean(right_P - base_P), len(right_P), 100, "+.1f")
        fewer = bounded(lambda weights_DP: base_cost(weights_DP) / cost(weights_DP), len(right_P), 1, ".2f")
    shown = [(mean(right_P), 100, ".1f"), (mean(tokens_P), 1, ".0f"), (cost, 1, ",.0f")]
    percent, tokens, per_right = (bounded(statistic, len(right_P), *form) for statistic, *form in shown)
    return [slots, percent, points, tokens, per_right, fewer]


def column(runs: list[Run], problems: str, cache: str, name: str) -> Tensor:
    """Mean over the runs of a measurement of each problem, [P]."""
    values = [run["budgets"][problems]["caches"][cache][name] for run in runs]
    return torch.tensor(values, dtype=torch.float64).mean(dim=0)


def bounded(statistic: Statistic, problems: int, scale: float, form: str) -> str:
    """Value and interval over problems alone."""
    return told(interval(statistic, problems, 0.0), scale, form)
