"""`leanthink label`: computes exact attention labels for collected traces."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from leanthink.entrypoints.cli import options
from leanthink.entrypoints.cli.collect import whole_numbers
from leanthink.entrypoints.cli.grouped import add_command
from leanthink.entrypoints.cli.help import option
from leanthink.entrypoints.cli.output import print_json, refuse_existing, say
from leanthink.entrypoints.cli.progress import ProgressBar

if TYPE_CHECKING:
    from leanthink.importance.label_file import LabelCounts
    from leanthink.policies.policy import Granularity

EXAMPLES = (
    "leanthink label --traces traces.jsonl --out labels.safetensors",
    r"leanthink label --model FOLDER --traces traces.jsonl --answer-from '\boxed' --out labels.safetensors",
)
Traces = Annotated[Path, option("--traces", about="JSONL file that collect wrote.", metavar="FILE")]
Out = Annotated[Path, option("--out", about="Safetensors file for the labels.", metavar="FILE")]
Horizons = Annotated[
    str | None,
    option("--horizons", about="Distances in tokens.", default="16 to 1024 in doublings, 2048 for long traces"),
]
GranularityOption = Annotated[
    str | None,
    option("--granularity", about="One index set for the model, each layer or each kv head.", default="head"),
]
AnswerFrom = Annotated[
    str | None,
    option(
        "--answer-from",
        about="Where answers begin without think tags: last such text, or share of the tokens.",
        metavar="TEXT|SHARE",
    ),
]
AllTraces = Annotated[bool, option("--all", about="Label wrong traces too.")]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "label", "Compute the attention labels of collected traces.", EXAMPLES, command)


def command(
    traces: Traces,
    out: Out,
    model: options.Model = "tiny",
    *,
    horizons: Horizons = None,
    granularity: GranularityOption = None,
    answer_from: AnswerFrom = None,
    all_traces: AllTraces = False,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    where: options.EngineOptions,
    as_json: options.Json = False,
) -> None:
    """Read the traces before the model is loaded, then label them."""
    refuse_existing(out, overwrite=overwrite, resume=resume, resumable=True)
    from leanthink.data.traces.trace import read_traces

    found = read_traces(traces)
    distances = None if horizons is None else whole_numbers("--horizons", horizons)
    from leanthink.importance.answer_start import as_answer_from
    from leanthink.importance.label_file import default_horizons, label_traces

    start = None if answer_from is None else as_answer_from(answer_from)
    try:
        with where.open(model, {}) as backend, ProgressBar() as bar:
            counts = label_traces(
                None,
                found,
                out,
                horizons=default_horizons(found) if distances is None else distances,
                granularity=cast("Granularity", granularity or "head"),
                answer_from=start,
                only_correct=not all_traces,
                overwrite=overwrite,
                progress=partial(bar.update, "labels"),
                backend=backend,
            )
    except KeyboardInterrupt:
        say(f"{out} holds every trace that was labelled; --resume goes on with the rest")
        raise
    if as_json:
        print_json(asdict(counts))
    else:
        print(f"{counts.labelled + counts.done_before} labelled traces in {out} {_report(counts)}")


def _report(counts: LabelCounts) -> str:
    """How many are new, what was left out, and what `fit --target answer` will not take."""
    left_out = f"{counts.not_correct} not correct, {counts.no_thought} without a thought"
    if counts.no_answer_start:
        left_out += f", {counts.no_answer_start} in which no answer begins"
    unread = f"; {counts.no_answer} of the new ones have no answer" if counts.no_answer else ""
    return f"({counts.labelled} new); left out: {left_out}{unread}"
