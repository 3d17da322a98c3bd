"""`leanthink eval`: a model's answers under policies and budgets on benchmarks, with nothing lost and nothing twice."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanthink.entrypoints.cli import options
from leanthink.entrypoints.cli.collect import check_samples
from leanthink.entrypoints.cli.evaluate_plan import Slots, Sources, make_slots, predictor_files
from leanthink.entrypoints.cli.grouped import add_command
from leanthink.entrypoints.cli.help import option
from leanthink.entrypoints.cli.output import print_json, say
from leanthink.utils.errors import UsageError

if TYPE_CHECKING:
    from leanthink.engine.request import Predictor
    from leanthink.eval.aggregated_results import AggregatedResults
    from leanthink.eval.configurations import Configuration
    from leanthink.eval.records import RunFolder
    from leanthink.eval.run import Setup
    from leanthink.importance.inference_backend import InferenceBackend
    from leanthink.policies.budget import Budget

EXAMPLES = (
    "leanthink eval --tasks sums --levels 3 --count 4 --policies full,horizon --budgets 128 --out runs/tiny",
    "leanthink eval --model MODEL --benchmarks math-500 --budgets 1024,2048 --samples 4 --temperature 0.6 --out runs/m",
    "leanthink eval --problems mine.jsonl --ratios 2.8,4.3 --out runs/mine",
)
Policies = Annotated[
    str | None,
    option(
        "--policies",
        about="What is compared; full is the baseline.",
        default="full,horizon, r-kv without a predictor",
        metavar="A,B:key=value,...",
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
Out = Annotated[Path, option("--out", about="Folder of the run; an unfinished one is resumed.", metavar="FOLDER")]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What is compared: policies, and how many slots each may keep."""

    policies: Policies = None
    budgets: Budgets = None
    ratios: Ratios = None
    recent_window: options.RecentWindow = None
    eviction_interval: options.EvictionInterval = None
    max_answer_slots: options.MaxAnswerSlots = None

    def make(self) -> Slots:
        """Policies and slots; raises UsageError for what does not go together."""
        parts = {"recent_window": self.recent_window, "eviction_interval": self.eviction_interval}
        parts["max_answer_slots"] = self.max_answer_slots
        return make_slots(self.policies or "full,horizon", self.budgets, self.ratios, **parts)


@dataclass(frozen=True, kw_only=True)
class Learned:
    """The importance predictors, and of which model they are."""

    predictor: PredictorFiles = None
    ignore_predictor_mismatch: options.IgnorePredictorMismatch = False


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How often each problem is answered, how many at a time, and in what keys and values are held."""

    samples: Samples = 1
    max_num_seqs: options.MaxNumSeqs = 64
    together: Together = False
    enable_prefix_caching: options.EnablePrefixCaching = True
    kv_cache_dtype: options.KVCacheDtype = None

    def __post_init__(self) -> None:
        options.check_kv_cache_dtype(self.kv_cache_dtype)
        if self.samples < 1 or self.max_num_seqs < 1:
            raise UsageError(f"--samples {self.samples}, --max-num-seqs {self.max_num_seqs}: must be 1 or more")


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "eval", "Evaluate policies and budgets on benchmarks, resumably.", EXAMPLES, command)


def command(
    out: Out,
    model: options.Model = "tiny",
    *,
    sources: Sources,
    prompt: options.PromptOptions,
    compared: Compared,
    learned: Learned,
    effort: Effort,
    picked: options.SamplingOptions,
    overwrite: options.Overwrite = False,
    where: options.EngineOptions,
    as_json: options.Json = False,
) -> None:
    """Check all that can be checked without the model, then load it, and make what the run still lacks."""
    slots, sampling, chat = compared.make(), picked.make(), prompt.make()
    check_samples(effort.samples, picked.temperature)
    files = predictor_files(learned.predictor or [], slots.policies)
    options.check_borrowing(learned.ignore_predictor_mismatch, files)
    chosen = sources.read(picked.seed or 0)
    from leanthink.entrypoints.cli.progress import ProgressBar
    from leanthink.eval.records import RunFolder
    from leanthink.eval.run import Setup
    from leanthink.utils.provenance import provenance_record

    predictors: dict[str | None, Predictor] = {spec: files.get(spec) for spec in slots.policies}
    if compared.policies is None and not files:
        predictors = {"full": None, None: None}
    about = {name: benchmark.about for name, benchmark in chosen.items()}
    requests = sum(slots.cells * effort.samples * len(benchmark.problems) for benchmark in chosen.values())
    opened = where.open(model, predictors, think_tags=prompt.think_tags, kv_cache_dtype=effort.kv_cache_dtype,
                        ignore_predictor_mismatch=learned.ignore_predictor_mismatch)  # fmt: skip
    with opened as backend, ExitStack() as stack:
        slots = replace(slots, policies=backend.model_info.policies)
        if where.ray is not None and None in predictors:
            _say_how_to_fit(model, slots)
        settings = {
            "model": model,
            "samples": effort.samples,
            "sampling": asdict(sampling),
            **_settings(backend, slots),
            **({} if effort.kv_cache_dtype in (None, "auto") else {"kv_cache_dtype": "fp8"}),
        }
        settings |= chat.given | ({} if prompt.think_tags is None else {"think_tags": list(prompt.think_tags)})
        provenance = provenance_record(
            command=" ".join(["leanthink", *sys.argv[1:]]), hardware=backend.model_info.hardware
        )
        folder = stack.enter_context(RunFolder(out, settings, about, provenance, overwrite=overwrite))
        setup = Setup(
            backend=backend,
            benchmarks=chosen,
            samples=effort.samples,
            sampling=sampling,
            max_rows=effort.max_num_seqs,
            progress=stack.enter_context(ProgressBar(requests)),
            options=chat,
            enable_prefix_caching=effort.enable_prefix_caching,
        )
        found = _finish(setup, folder, slots, together=effort.together)
    _print(found, folder.header, out, as_json=as_json)


def _say_how_to_fit(model: str, slots: Slots) -> None:
    """What engines elsewhere warn of, whose warnings stay where they are."""
    from leanthink.models.default_policy import WITHOUT_PREDICTOR, how_to_fit

    if WITHOUT_PREDICTOR in slots.policies:
        say(how_to_fit(model))


def _finish(setup: Setup, folder: RunFolder, slots: Slots, *, together: bool) -> list[AggregatedResults]:
    """Make what is missing, and write the result."""
    from leanthink.eval.run import finish

    try:
        cells = _complete(setup, folder, slots, together=together)
    except KeyboardInterrupt:
        say(f"{folder.path} holds every answer that was finished; the same command goes on with the rest")
        raise
    return finish(setup, folder, cells)


def _settings(backend: InferenceBackend, slots: Slots) -> dict[str, Any]:
    """What else decides the records of a run, for its header."""
    about = backend.model_info
    borrowed = {"borrowed_predictors": about.borrowed} if about.borrowed else {}  # of which model, by policy
    return {
        "fingerprint": about.fingerprint,
        "device": about.device,
        "dtype": about.dtype,
        "policies": slots.policies,
        "budgets": [budget.record for budget in slots.budgets],
        "ratios": slots.ratios,
        "slots": {key: value for key, value in slots.usual.record.items() if key != "slots"},
        "predictors": about.predictors,
        **borrowed,
    }


def _complete(setup: Setup, folder: RunFolder, slots: Slots, *, together: bool) -> list[Configuration]:
    """All cells, finished: those of the full cache first, because the ratios are of its thoughts."""
    from leanthink.eval.configurations import FULL, Configuration, budget_at_ratio, configurations_of
    from leanthink.eval.run import complete, mean_thought

    full = {name: Configuration(benchmark=name, policy=FULL, budget=None) for name in setup.benchmarks}
    first = list(full.values()) if FULL in slots.policies else []
    complete(setup, folder, first, together=together)
    rest: list[Configuration] = []
    for name in setup.benchmarks:
        budgets: Sequence[Budget] = slots.budgets
        if slots.ratios:
            mean = mean_thought(setup, folder, full[name])
            budgets = [budget_at_ratio(mean, ratio, slots.usual) for ratio in slots.ratios]
            told = ", ".join(
                f"{ratio:g}x: {b.slots}+{b.eviction_interval}" for ratio, b in zip(slots.ratios, budgets, strict=True)
            )
            say(f"{name}: mean full thought {mean:.0f} tokens; slots {told}")
        rest += configurations_of(name, slots.bounded, budgets)
    complete(setup, folder, rest, together=together)
    return [cell for name in setup.benchmarks for cell in [*first, *rest] if cell.benchmark == name]


def _print(found: list[AggregatedResults], header: dict[str, Any], out: Path, *, as_json: bool) -> None:
    """The table of a finished run."""
    from leanthink.eval.compare import full_of
    from leanthink.eval.metrics import metrics
    from leanthink.eval.smallest_budget import smallest_budgets
    from leanthink.eval.tables import COST_HEAD, accuracy_head, accuracy_row, aligned, cost_row

    rows = [(one.configuration, metrics(one, full_of(one, found))) for one in found]
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
