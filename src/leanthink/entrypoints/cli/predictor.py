"""`leanthink predictor`: from problems to a predictor for a model, and what to expect of it, in one command."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanthink.entrypoints.cli import options
from leanthink.entrypoints.cli.collect import (
    Count,
    Instruction,
    Levels,
    Samples,
    Tasks,
    as_instruction,
    check_samples,
    choose,
)
from leanthink.entrypoints.cli.fit import FitOptions, report
from leanthink.entrypoints.cli.grouped import add_command
from leanthink.entrypoints.cli.help import option
from leanthink.entrypoints.cli.label import AnswerFrom
from leanthink.entrypoints.cli.output import print_json, refuse_existing, say
from leanthink.entrypoints.cli.progress import ProgressBar
from leanthink.utils.errors import UsageError

if TYPE_CHECKING:
    from leanthink.data.problems import Problem
    from leanthink.engine.sampling import Sampling
    from leanthink.importance.make_predictor import Made, Plan
    from leanthink.importance.work_folder import WorkFolder

EXAMPLES = (
    "leanthink predictor --model Qwen/Qwen3-4B --problems problems.jsonl --out predictor.safetensors",
    "leanthink predictor --model Qwen/Qwen3-4B --problems problems.jsonl --out predictor.safetensors --resume",
    "leanthink predictor --tasks multiply,sums --levels 2,3 --count 8 --out predictor.safetensors",
)
TEMPERATURE = 0.8
STAGES = {
    "collect": "traces",
    "label": "labels",
    "read": "traces read",
    "fit": "training steps",
    "expect": "thoughts with evictions",
}
Problems = Annotated[
    list[Path] | None, option("--problems", about="JSONL file of id, problem, answer; may be repeated.", metavar="FILE")
]
Limit = Annotated[int | None, option("--limit", about="Take only so many problems from the head of each file.")]
Out = Annotated[
    Path, option("--out", about="Safetensors file; traces and labels stay beside it, in FILE.work.", metavar="FILE")
]
Temperature = Annotated[float | None, option("--temperature", about="Of the traces; 0 is greedy.", default=TEMPERATURE)]
MaxNumSeqs = Annotated[
    int | None, option("--max-num-seqs", about="Most traces generated at a time.", default="512 on cuda, 64 on cpu")
]
Horizons = Annotated[
    str | None,
    option("--horizons", about="Distances in tokens.", default="of 16 to 1024 in doublings those reached"),
]
Granularity = Annotated[
    str | None,
    option(
        "--granularity",
        about="One index set for the model, each layer or each kv head, which measured best on a real model.",
        default="head",
    ),
]
CorrectOnly = Annotated[
    bool,
    option(
        "--correct-only/--all",
        about="Fit to right traces alone, or to all; all measured best on a real model.",
        default="all",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which problems."""

    problems: Problems = None
    limit: Limit = None
    tasks: Tasks = None
    levels: Levels = "1,2,3,4,5"
    count: Count = 8


@dataclass(frozen=True, kw_only=True)
class TraceSampling(options.SamplingOptions):
    """How the tokens of traces are picked."""

    temperature: Temperature = None

    def make(self, model: Any = None) -> Sampling:
        """As of `SamplingOptions`, warm where nothing is said."""
        warm = TEMPERATURE if self.temperature is None else self.temperature
        return replace(super().make(model), temperature=warm)


@dataclass(frozen=True, kw_only=True)
class PredictorFit(FitOptions):
    """How the predictor is fitted: the options of `fit` that matter when labels are made for it, too."""

    horizons: Horizons = None
    granularity: Granularity = None


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    about = "Make a predictor for a model: collect its traces, label them, fit, and measure what to expect."
    add_command(app, "predictor", about, EXAMPLES, command)


def command(
    out: Out,
    model: options.Model = "tiny",
    *,
    source: Source,
    samples: Samples = 1,
    instruction: Instruction = None,
    prompt: options.PromptOptions,
    picked: TraceSampling,
    max_num_seqs: MaxNumSeqs = None,
    correct_only: CorrectOnly = False,
    answer_from: AnswerFrom = None,
    fitted_as: PredictorFit,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    where: options.DeviceOptions,
    as_json: options.Json = False,
) -> None:
    """Check everything that can be checked without the model, then load it and go through the stages."""
    from leanthink.importance.answer_start import as_answer_from
    from leanthink.importance.make_predictor import Plan
    from leanthink.importance.work_folder import WorkFolder

    folder = WorkFolder(out)
    for path in (out, folder.traces, folder.labels):
        refuse_existing(path, overwrite=overwrite, resume=resume, resumable=True)
    sampling = picked.make()
    check_samples(samples, sampling.temperature)
    if max_num_seqs is not None and max_num_seqs < 1:
        raise UsageError(f"--max-num-seqs must be 1 or more, got {max_num_seqs}")
    plan = Plan(
        problems=_problems(source, picked.seed or 0),
        model=model,
        fit_config=fitted_as.make(seed=picked.seed, only_correct=correct_only),
        samples=samples,
        sampling=sampling,
        instruction=as_instruction(instruction, from_files=bool(source.problems)),
        options=prompt.make(),
        answer_from=None if answer_from is None else as_answer_from(answer_from),
        max_rows=max_num_seqs,
    )
    if resume:
        folder.check(plan.settings)
    made = _make(plan, folder, where.load(model, prompt.think_tags), resume=resume, overwrite=overwrite)
    if as_json:
        print_json(asdict(made))
        return
    print(_told(made))
    print(f"\nleanthink generate {shlex.join(_use(made, model, prompt))}")


def _make(plan: Plan, folder: WorkFolder, loaded: tuple[Any, Any], *, resume: bool, overwrite: bool) -> Made:
    """All stages, with a bar for each."""
    from leanthink.importance.make_predictor import make_predictor

    say(f"traces and labels go to {folder.path}, and stay there")
    try:
        with ProgressBar() as bar:
            return make_predictor(
                *loaded,
                plan,
                folder,
                resume=resume,
                overwrite=overwrite,
                progress=lambda stage, done, total: bar.update(STAGES[stage], done, total),
            )
    except KeyboardInterrupt:
        say(f"{folder.found()}; the same command with --resume goes on from there")
        raise


def _problems(source: Source, seed: int) -> list[Problem]:
    """The problems of the options; those of files have the file's name in their ids, as every file begins with 1."""
    files, levels, count, limit = source.problems or [], source.levels, source.count, source.limit
    if not files or source.tasks is not None:
        return choose(source.tasks, levels, count, "train", seed, files[0] if files else None, limit)
    names = [path.stem for path in files]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two files of problems are called {name}: rename one, or give each once")
    return [
        replace(problem, id=f"{path.stem}/{problem.id}")
        for path in files
        for problem in choose(None, levels, count, "train", seed, path, limit)
    ]


def _told(made: Made) -> str:
    """What was made, from what, in which time, and how good it is."""
    data, metrics = made.data, made.metrics
    lines = [
        f"{made.out}, {made.bytes / 1e6:.1f} MB; traces and labels are in {made.work}",
        f"{made.traces} traces of {made.problems} problems: {made.correct / made.traces:.1%} right, "
        f"{made.tokens} tokens; fitted to {data['traces']}, whose mean thought is {data['thought_tokens']:.0f} tokens",
        "seconds: " + ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in made.seconds.items()),
        f"held out: {metrics['held_out_traces']} traces of other problems, {metrics['held_out_tokens']} tokens",
        report(metrics),
        *_expectation(made.expected),
    ]
    return "\n".join(lines)


def _expectation(expected: dict[str, Any] | None) -> Iterable[str]:
    if expected is None:
        return ["what to expect was not measured: no held-out thought is long enough to lose anything at 4x"]
    lines = [
        f"what to expect at {expected['ratio']}x fewer slots than the mean thought, on {expected['traces']} held-out "
        f"thoughts ({expected['tokens']} tokens after an eviction), against the full cache:"
    ]
    for policy, kl in expected["kl"].items():
        changed = expected["changed"][policy]
        lines.append(f"{policy}: mean KL divergence {kl:.4f} nats, {changed:.1%} of the likeliest next tokens changed")
    return lines


def _use(made: Made, model: str, prompt: options.PromptOptions) -> list[str]:
    """Words of a command line that uses the predictor as it was measured."""
    from leanthink.policies.budget import Budget

    words = ["What is 4821 times 377?", "--model", model, "--predictor", made.out]
    if made.data["recipe"]["target"] == "answer":
        words += ["--policy", "dynts"]
    if made.expected is not None:
        budget = Budget.from_record(made.expected["budget"])
        words += ["--budget", str(budget.slots)]
        for name in ("recent_window", "eviction_interval"):
            if getattr(budget, name) != getattr(Budget, name):
                words += [f"--{name.replace('_', '-')}", str(getattr(budget, name))]
    if prompt.system_prompt is not None:
        words += ["--system-prompt", prompt.system_prompt]
    if prompt.chat_template_kwargs is not None:
        words += ["--chat-template-kwargs", prompt.chat_template_kwargs]
    return words if prompt.think_tags is None else [*words, "--think-tags", *prompt.think_tags]
