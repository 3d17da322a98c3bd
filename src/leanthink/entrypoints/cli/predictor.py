"""`leanthink predictor`: from problems to a predictor for a model, and what to expect of it, in one command."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import asdict, replace
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
    check_samples,
    choose,
    whole_numbers,
)
from leanthink.entrypoints.cli.fit import Batch, Steps, Target, TokensPerTrace, Width, report
from leanthink.entrypoints.cli.help import help_text, option
from leanthink.entrypoints.cli.label import AnswerFrom
from leanthink.entrypoints.cli.output import print_json, refuse_existing, say
from leanthink.entrypoints.cli.progress import ProgressBar
from leanthink.utils.errors import UsageError

if TYPE_CHECKING:
    from leanthink.data.problems import Problem
    from leanthink.importance.make_predictor import Made

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
MaxRows = Annotated[
    int | None, option("--max-rows", about="Most traces generated at a time.", default="512 on cuda, 64 on cpu")
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


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    about = "Make a predictor for a model: collect its traces, label them, fit, and measure what to expect."
    app.command("predictor", help=help_text(about, EXAMPLES))(command)


def command(
    out: Out,
    model: options.Model = "tiny",
    problems: Problems = None,
    limit: Limit = None,
    tasks: Tasks = None,
    levels: Levels = "1,2,3,4,5",
    count: Count = 8,
    samples: Samples = 1,
    instruction: Instruction = "",
    system_prompt: options.SystemPrompt = None,
    chat_template_kwargs: options.ChatTemplateKwargs = None,
    split_special_tokens: options.SplitSpecialTokens = None,
    think_tags: options.ThinkTags = None,
    temperature: Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    max_new_tokens: options.MaxNewTokens = None,
    max_rows: MaxRows = None,
    correct_only: CorrectOnly = False,
    target: Target = None,
    horizons: Horizons = None,
    granularity: Granularity = None,
    answer_from: AnswerFrom = None,
    width: Width = None,
    steps: Steps = None,
    batch: Batch = None,
    tokens_per_trace: TokensPerTrace = None,
    seed: options.Seed = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> None:
    """Check everything that can be checked without the model, then load it and go through the stages."""
    from leanthink.importance.answer_start import as_answer_from
    from leanthink.importance.fit_config import FitConfig
    from leanthink.importance.make_predictor import Plan, make_predictor
    from leanthink.importance.work_folder import WorkFolder

    folder = WorkFolder(out)
    for path in (out, folder.traces, folder.labels):
        refuse_existing(path, overwrite=overwrite, resume=resume, resumable=True)
    temperature = TEMPERATURE if temperature is None else temperature
    check_samples(samples, temperature)
    if max_rows is not None and max_rows < 1:
        raise UsageError(f"--max-rows must be 1 or more, got {max_rows}")
    recipe = {
        "target": target,
        "horizons": None if horizons is None else whole_numbers("--horizons", horizons),
        "granularity": granularity,
        "width": width,
        "steps": steps,
        "batch": batch,
        "tokens_per_trace": tokens_per_trace,
        "seed": seed,
    }
    plan = Plan(
        problems=_problems(problems or [], limit, tasks, levels, count, seed or 0),
        model=model,
        fit_config=FitConfig(only_correct=correct_only, **_given(recipe)),
        samples=samples,
        sampling=options.make_sampling(
            temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, max_new_tokens=max_new_tokens, seed=seed
        ),
        instruction=instruction,
        options=options.make_chat_options(system_prompt, chat_template_kwargs, split_special_tokens),
        answer_from=None if answer_from is None else as_answer_from(answer_from),
        max_rows=max_rows,
    )
    if resume:
        folder.check(plan.settings)
    loaded, tokenizer = options.load_model(model, device, dtype, think_tags)
    say(f"traces and labels go to {folder.path}, and stay there")
    try:
        with ProgressBar() as bar:
            made = make_predictor(
                loaded,
                tokenizer,
                plan,
                folder,
                resume=resume,
                overwrite=overwrite,
                progress=lambda stage, done, total: bar.update(STAGES[stage], done, total),
            )
    except KeyboardInterrupt:
        say(f"{folder.found()}; the same command with --resume goes on from there")
        raise
    if as_json:
        print_json(asdict(made))
        return
    print(_told(made))
    print(f"\nleanthink generate {shlex.join(_use(made, model, system_prompt, chat_template_kwargs, think_tags))}")


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _problems(
    files: list[Path], limit: int | None, tasks: str | None, levels: str, count: int, seed: int
) -> list[Problem]:
    """The problems of the options; those of files have the file's name in their ids, as every file begins with 1."""
    if not files or tasks is not None:
        return choose(tasks, levels, count, "train", seed, files[0] if files else None, limit)
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


def _use(
    made: Made,
    model: str,
    system_prompt: str | None,
    chat_template_kwargs: str | None,
    think_tags: tuple[str, str] | None,
) -> list[str]:
    """Words of a command line that uses the predictor as it was measured."""
    from leanthink.policies.budget import Budget

    words = ["What is 4821 times 377?", "--model", model, "--predictor", made.out]
    if made.data["recipe"]["target"] == "answer":
        words += ["--policy", "dynts"]
    if made.expected is not None:
        budget = made.expected["budget"]
        words += ["--budget", str(budget["slots"])]
        for name in ("window", "interval"):
            if budget[name] != getattr(Budget, name):
                words += [f"--{name}", str(budget[name])]
    if system_prompt is not None:
        words += ["--system-prompt", system_prompt]
    if chat_template_kwargs is not None:
        words += ["--chat-template-kwargs", chat_template_kwargs]
    return words if think_tags is None else [*words, "--think-tags", *think_tags]
