"""`leanthink collect`: samples and grades a model's own traces on embedded tasks or on a file of problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanthink.entrypoints.cli import options
from leanthink.entrypoints.cli.grouped import add_command
from leanthink.entrypoints.cli.help import option
from leanthink.entrypoints.cli.output import print_json, refuse_existing, say
from leanthink.entrypoints.cli.progress import ProgressBar
from leanthink.utils.errors import UsageError

if TYPE_CHECKING:
    from leanthink.data.problems import Problem
    from leanthink.importance.collect import Collected

EXAMPLES = (
    "leanthink collect --tasks multiply,sums --levels 3,4 --count 8 --temperature 0.8 --out traces.jsonl",
    "leanthink collect --problems problems.jsonl --samples 4 --temperature 0.8 --out traces.jsonl --resume",
)
Tasks = Annotated[str | None, option("--tasks", about="Families of embedded tasks, or all.", metavar="A,B,...")]
Levels = Annotated[str, option("--levels", about="Levels of those tasks.", default="1,2,3,4,5", metavar="1,2,...")]
Count = Annotated[int, option("--count", about="Problems for each family and level.", default=8)]
Split = Annotated[str, option("--split", about="train or held-out, for the tasks.", default="train")]
Problems = Annotated[
    Path | None, option("--problems", about="JSONL file with the fields id, problem, answer.", metavar="FILE")
]
Limit = Annotated[int | None, option("--limit", about="Take only so many problems from the head of the file.")]
Samples = Annotated[int, option("--samples", about="Traces for each problem.", default=1)]
Instruction = Annotated[
    str | None,
    option(
        "--instruction",
        about="Text put after each problem.",
        default="for --problems that of eval: step by step, answer in a box",
        metavar="TEXT",
    ),
]
Out = Annotated[Path, option("--out", about="JSONL file for the traces.", metavar="FILE")]
CollectPolicy = Annotated[
    str, option("--policy", about="What to generate under.", default="full", metavar=options.POLICY)
]
Record = Annotated[bool, option("--record", about="Also write scores, and when each token was evicted.")]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which problems."""

    tasks: Tasks = None
    levels: Levels = "1,2,3,4,5"
    count: Count = 8
    split: Split = "train"
    problems: Problems = None
    limit: Limit = None


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "collect", "Sample and grade a model's own traces.", EXAMPLES, command)


def command(
    out: Out,
    model: options.Model = "tiny",
    *,
    source: Source,
    samples: Samples = 1,
    instruction: Instruction = None,
    prompt: options.PromptOptions,
    picked: options.SamplingOptions,
    policy: CollectPolicy = "full",
    slots: options.BudgetOptions,
    learned: options.PredictorOptions,
    max_num_seqs: options.MaxNumSeqs = 64,
    record: Record = False,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    where: options.EngineOptions,
    as_json: options.Json = False,
) -> None:
    """Check everything that can be checked without the model, then load it and collect."""
    refuse_existing(out, overwrite=overwrite, resume=resume, resumable=True)
    check_samples(samples, picked.temperature)
    seed = picked.seed or 0
    chosen = choose(source.tasks, source.levels, source.count, source.split, seed, source.problems, source.limit)
    asked: dict[str, Any] = {
        "samples": samples,
        "sampling": picked.make(),
        "policy": policy,
        "budget": slots.make(policy),
        "options": prompt.make(),
    }
    from leanthink.importance.collect import collect

    ignored = learned.ignore_predictor_mismatch
    opened = where.open(
        model, {policy: learned.predictor}, think_tags=prompt.think_tags, ignore_predictor_mismatch=ignored
    )
    try:
        with opened as backend, ProgressBar(samples * len(chosen)) as bar:
            collected = collect(
                None,
                None,
                chosen,
                out,
                **asked,
                model_name=model,
                instruction=as_instruction(instruction, from_files=source.problems is not None),
                max_rows=max_num_seqs,
                record=record,
                resume=resume,
                overwrite=overwrite,
                progress=partial(bar.update, "traces"),
                backend=backend,
            )
    except KeyboardInterrupt:
        say(f"{out} holds every trace that was finished; --resume goes on with the rest")
        raise
    _print(collected, out, as_json=as_json)


def _print(collected: Collected, out: Path, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(collected))
        return
    total = collected.written + collected.done_before
    print(f"{total} traces in {out} ({collected.written} new), {collected.correct} of them correct")


def check_samples(samples: int, temperature: float | None) -> None:
    """Refuse several greedy traces of a problem, which would be the same (UsageError)."""
    if samples > 1 and not temperature:
        raise UsageError(f"--samples {samples} at temperature 0 would be {samples} times the same: give --temperature")


def as_instruction(given: str | None, *, from_files: bool) -> str:
    """What was given, or for problems of files what `eval` puts after them; embedded tasks need nothing."""
    from leanthink.data.problems import STEP_BY_STEP

    if given is not None:
        return given
    return STEP_BY_STEP if from_files else ""


def choose(
    tasks: str | None, levels: str, count: int, split: str, seed: int, problems: Path | None, limit: int | None
) -> list[Problem]:
    """The problems of the options; raises UsageError unless exactly one source is given."""
    from leanthink.data.problems import from_tasks, read_problems
    from leanthink.data.tasks.registry import FAMILIES, sample

    if (tasks is None) == (problems is None):
        raise UsageError("give either --tasks (embedded tasks) or --problems (a JSONL file)")
    if problems is not None:
        if limit is not None and limit < 1:
            raise UsageError(f"--limit must be 1 or more, got {limit}")
        return read_problems(problems)[:limit]
    if limit is not None:
        raise UsageError("--limit belongs to --problems: give --count for tasks")
    families: Sequence[str] = list(FAMILIES) if tasks == "all" else str(tasks).split(",")
    chosen = [(family.strip(), level) for family in families for level in whole_numbers("--levels", levels)]
    return from_tasks(p for family, level in chosen for p in sample(family, level, count, seed, split))  # type: ignore[arg-type]


def whole_numbers(flag: str, text: str) -> tuple[int, ...]:
    """The numbers of a list such as 3,4; raises UsageError for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{flag} {text!r}: give whole numbers with commas between them, such as 3,4") from None
