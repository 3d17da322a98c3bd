"""`leanthink eval`: a model's answers under policies and budgets on benchmarks, with nothing lost and nothing twice."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanthink.entrypoints.cli import options
from leanthink.entrypoints.cli.collect import MaxRows, Tasks, check_samples
from leanthink.entrypoints.cli.evaluate_plan import (
    Slots,
    Sources,
    make_slots,
    predictor_files,
)
from leanthink.entrypoints.cli.help import help_text, option
from leanthink.entrypoints.cli.output import print_json, say
from leanthink.utils.errors import UsageError

if TYPE_CHECKING:
    from leanthink.engine.request import Predictor
    from leanthink.eval.aggregated_results import Outcomes
    from leanthink.eval.configurations import Cell
    from leanthink.eval.records import RunFolder
    from leanthink.eval.run import Setup
    from leanthink.importance.inference_backend import Subject
    from leanthink.policies.budget import Budget

EXAMPLES = (
    "leanthink eval --tasks sums --levels 3 --count 4 --policies full,horizon --budgets 128 --out runs/tiny",
    "leanthink eval --model MODEL --benchmarks math-500 --budgets 1024,2048 --samples 4 --temperature 0.6 --out runs/m",
    "leanthink eval --problems mine.jsonl --ratios 2.8,4.3 --out runs/mine",
)
Benchmarks = Annotated[
    str | None, option("--benchmarks", about="Public data sets; NAME=FOLDER for a local copy.", metavar="A,B,...")
]
Problems = Annotated[
    list[Path] | None, option("--problems", about="JSONL file of id, problem, answer; may be repeated.", metavar="FILE")
]
Tolerance = Annotated[
    float, option("--tolerance", about="Of numbers in those files: a share of the gold.", default=0.0, metavar="SHARE")
]
Levels = Annotated[str, option("--levels", about="Levels of the tasks.", default="1,2,3,4,5", metavar="1,2,...")]
Gym = Annotated[str | None, option("--gym", about="Families of reasoning-gym, an extra.", metavar="A,B,...")]
Count = Annotated[int, option("--count", about="Problems for each family and level, or gym family.", default=8)]
Split = Annotated[str, option("--split", about="held-out or train, for the tasks.", default="held-out")]
Limit = Annotated[int | None, option("--limit", about="Only so many problems from the head of each benchmark.")]
Instruction = Annotated[
    str | None, option("--instruction", about="Text put after each problem.", default="the benchmark's", metavar="TEXT")
]
Policies = Annotated[
    str | None,
    option(
        "--policies",
        about="What is compared; full is the baseline.",
        default="full,horizon, r-kv without a predictor",
        metavar="A,...",
    ),
]
Budgets = Annotated[str | None, option("--budgets", about="Thought slots that stay.", default=256, metavar="N,...")]
Ratios = Annotated[
    str | None,
    option("--ratios", about="Instead: mean full thought by budget + interval.", metavar="R,..."),
]
PredictorFiles = Annotated[
    list[str] | None,
    option("--predictor", about="Fitted predictor, POLICY=FILE or FILE; may be repeated.",
           default="the one shipped with the model", metavar="FILE"),
]  # fmt: skip
Samples = Annotated[int, option("--samples", about="Answers to each problem.", default=1)]
Together = Annotated[bool, option("--together", about="All cells in one batch: faster on a GPU, without wall times.")]
Out = Annotated[Path, option("--out", about="Folder of the run; an unfinished one is gone on with.", metavar="FOLDER")]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval", help=help_text("Evaluate policies and budgets on benchmarks, resumably.", EXAMPLES))(command)


def command(
    out: Out,
    model: options.Model = "tiny",
    benchmarks: Benchmarks = None,
    problems: Problems = None,
    tolerance: Tolerance = 0.0,
    tasks: Tasks = None,
    levels: Levels = "1,2,3,4,5",
    gym: Gym = None,
    count: Count = 8,
    split: Split = "held-out",
    limit: Limit = None,
    instruction: Instruction = None,
    system_prompt: options.SystemPrompt = None,
    chat_template_kwargs: options.ChatTemplateKwargs = None,
    split_special_tokens: options.SplitSpecialTokens = None,
    think_tags: options.ThinkTags = None,
    policies: Policies = None,
    budgets: Budgets = None,
    ratios: Ratios = None,
    window: options.Window = None,
    interval: options.Interval = None,
    answer: options.Answer = None,
    predictor: PredictorFiles = None,
    ignore_predictor_mismatch: options.IgnorePredictorMismatch = False,
    samples: Samples = 1,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    max_new_tokens: options.MaxNewTokens = None,
    seed: options.Seed = None,
    max_rows: MaxRows = 64,
    together: Together = False,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    ray: options.Ray = None,
    ray_workers: options.RayWorkers = None,
    as_json: options.Json = False,
) -> None:
    """Check all that can be checked without the model, then load it, and make what the run still lacks."""
    slots = make_slots(policies or "full,horizon", budgets, ratios, window=window, interval=interval, answer=answer)
    if samples < 1 or max_rows < 1:
        raise UsageError(f"--samples {samples}, --max-rows {max_rows}: must be 1 or more")
    check_samples(samples, temperature)
    files = predictor_files(predictor or [], slots.policies)
    options.check_borrowing(ignore_predictor_mismatch, files)
    sampling = options.make_sampling(
        temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, max_new_tokens=max_new_tokens, seed=seed
    )
    chat = options.make_chat_options(system_prompt, chat_template_kwargs, split_special_tokens)
    sources = Sources(
        benchmarks=benchmarks,
        problems=problems or [],
        tolerance=tolerance,
        tasks=tasks,
        levels=levels,
        gym=gym,
        count=count,
        split=split,
        seed=seed or 0,
        limit=limit,
        instruction=instruction,
    )
    chosen = sources.read()
    from leanthink.entrypoints.cli.progress import ProgressBar
    from leanthink.eval.records import RunFolder
    from leanthink.eval.run import Setup, finish
    from leanthink.models.default_policy import WITHOUT_PREDICTOR, how_to_fit
    from leanthink.utils.provenance import certificate

    predictors: dict[str | None, Predictor] = {name: files.get(name) for name in slots.policies}
    if policies is None and not files:
        predictors = {"full": None, None: None}
    words = " ".join(["leanthink", *sys.argv[1:]])
    about = {name: benchmark.about for name, benchmark in chosen.items()}
    requests = sum(slots.cells * samples * len(benchmark.problems) for benchmark in chosen.values())
    with ExitStack() as stack:
        subject = stack.enter_context(
            options.open_subject(
                model,
                device,
                dtype,
                predictors,
                think_tags=think_tags,
                ignore_predictor_mismatch=ignore_predictor_mismatch,
                ray=ray,
                ray_workers=ray_workers,
            )
        )
        slots = replace(slots, policies=subject.about.policies)
        if ray is not None and None in predictors and WITHOUT_PREDICTOR in slots.policies:
            say(how_to_fit(model))  # the engines' own warnings stay where they are
        settings = {"model": model, "samples": samples, "sampling": asdict(sampling), **_settings(subject, slots)}
        settings |= chat.given | ({} if think_tags is None else {"think_tags": list(think_tags)})
        birth = certificate(command=words, hardware=subject.about.hardware)
        folder = stack.enter_context(RunFolder(out, settings, about, birth, overwrite=overwrite))
        progress = stack.enter_context(ProgressBar(requests))
        setup = Setup(
            subject=subject,
            benchmarks=chosen,
            samples=samples,
            sampling=sampling,
            max_rows=max_rows,
            progress=progress,
            options=chat,
        )
        try:
            cells = _complete(setup, folder, slots, together=together)
        except KeyboardInterrupt:
            say(f"{out} holds every answer that was finished; the same command goes on with the rest")
            raise
        found = finish(setup, folder, cells)
        header = folder.header
    _print(found, header, out, as_json=as_json)


def _settings(subject: Subject, slots: Slots) -> dict[str, Any]:
    """What else decides the records of a run, for its header."""
    about = subject.about
    borrowed = {"borrowed_predictors": about.borrowed} if about.borrowed else {}  # of which model, by policy
    return {
        "fingerprint": about.fingerprint,
        "device": about.device,
        "dtype": about.dtype,
        "policies": slots.policies,
        "budgets": [asdict(budget) for budget in slots.budgets],
        "ratios": slots.ratios,
        "slots": slots.others,
        "predictors": about.predictors,
        **borrowed,
    }


def _complete(setup: Setup, folder: RunFolder, slots: Slots, *, together: bool) -> list[Cell]:
    """All cells, finished: those of the full cache first, because the ratios are of its thoughts."""
    from leanthink.eval.configurations import FULL, Cell, budget_at_ratio, cells_of
    from leanthink.eval.run import complete, mean_thought

    full = {name: Cell(benchmark=name, policy=FULL, budget=None) for name in setup.benchmarks}
    first = list(full.values()) if FULL in slots.policies else []
    complete(setup, folder, first, together=together)
    rest: list[Cell] = []
    for name in setup.benchmarks:
        budgets: Sequence[Budget] = slots.budgets
        if slots.ratios:
            mean = mean_thought(setup, folder, full[name])
            budgets = [budget_at_ratio(mean, ratio, **slots.others) for ratio in slots.ratios]
            told = ", ".join(
                f"{ratio:g}x: {b.slots}+{b.interval}" for ratio, b in zip(slots.ratios, budgets, strict=True)
            )
            say(f"{name}: mean full thought {mean:.0f} tokens; slots {told}")
        rest += cells_of(name, slots.bounded, budgets)
    complete(setup, folder, rest, together=together)
    return [cell for name in setup.benchmarks for cell in [*first, *rest] if cell.benchmark == name]


def _print(found: list[Outcomes], header: dict[str, Any], out: Path, *, as_json: bool) -> None:
    """The table of a finished run."""
    from leanthink.eval.compare import full_of
    from leanthink.eval.metrics import metrics
    from leanthink.eval.smallest_budget import smallest_budgets
    from leanthink.eval.tables import COST_HEAD, accuracy_head, accuracy_row, aligned, cost_row

    rows = [(one.cell, metrics(one, full_of(one, found))) for one in found]
    if as_json:
        cells = [{**cell.record, **row.record} for cell, row in rows]
        smallest = [one.record for one in smallest_budgets(found)]
        print_json({"folder": str(out), "settings": header["settings"], "cells": cells, "smallest_budgets": smallest})
        return
    samples = [header["settings"]["samples"]]
    for name in header["benchmarks"]:
        mine = [(cell, row) for cell, row in rows if cell.benchmark == name]
        told = header["benchmarks"][name]
        print(f"{name}: {told['problems']} problems x {samples[0]} ({told['source']})\n")
        print(
            aligned(accuracy_head(samples), [accuracy_row(cell.policy, cell, row, samples) for cell, row in mine]),
            end="\n\n",
        )
        print(aligned(COST_HEAD, [cost_row(cell.policy, cell, row) for cell, row in mine]), end="\n\n")
    for one in smallest_budgets(found):
        print(one.sentence)
    print(f"{out / 'result.json'}; `leanthink compare {out}` makes the report")
