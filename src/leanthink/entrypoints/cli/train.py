"""`leanthink train`: DeepCompress reinforcement learning, from a YAML file, flags, or both; and reports of its runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from leanthink.entrypoints.cli import options
from leanthink.entrypoints.cli.collect import Instruction, Levels, whole_numbers
from leanthink.entrypoints.cli.help import help_text, option
from leanthink.entrypoints.cli.output import print_json
from leanthink.utils.errors import UsageError

EXAMPLES = (
    "leanthink train --config examples/deepcompress-tiny.yaml",
    "leanthink train --config examples/deepcompress-tiny.yaml --alpha 0.5 --set max_num_gen_batches=4 --out runs/half",
    "leanthink train --config examples/deepcompress-tiny.yaml --resume",
    "leanthink train --report runs/deepcompress-tiny runs/half",
)
Runs = Annotated[
    list[Path] | None, typer.Argument(metavar="FOLDER", help="Runs to compare, with --report.", show_default=False)
]
Report = Annotated[
    bool, option("--report", about="Write a page with plots of the runs in these folders, and train nothing.")
]
Config = Annotated[Path | None, option("--config", about="YAML file of settings; flags win.", metavar="FILE")]
Model = Annotated[
    str | None,
    option("--model", about="tiny, a folder, a .gguf file or a hub id.", default="tiny", metavar="NAME"),
]
Out = Annotated[Path | None, option("--out", about="Folder of the run, or of the report.", metavar="FOLDER")]
Tasks = Annotated[str | None, option("--tasks", about="Families of embedded tasks, or all.", metavar="A,B,...")]
OptionalLevels = Annotated[str | None, *Levels.__metadata__]
Count = Annotated[int | None, option("--count", about="Problems for each family and level.", default=64)]
Problems = Annotated[
    Path | None, option("--problems", about="JSONL file with the fields id, problem, answer.", metavar="FILE")
]
OptionalInstruction = Annotated[str | None, *Instruction.__metadata__]
Steps = Annotated[int | None, option("--steps", about="Optimiser steps.", default="3 epochs")]
Group = Annotated[int | None, option("--group", about="Responses to each prompt.", default=16)]
Batch = Annotated[int | None, option("--batch", about="Responses of a forward on one device.", default=8)]
Accumulate = Annotated[int | None, option("--accumulate", about="Forwards of an optimiser step.", default=1)]
MaxCompletion = Annotated[
    int | None, option("--max-completion", about="Tokens of the longest response.", default=10240, metavar="TOKENS")
]
LearningRate = Annotated[float | None, option("--lr", about="Learning rate.", default=1e-6)]
Rule = Annotated[str | None, option("--rule", about="dual, penalty, bonus or none.", default="dual", metavar="NAME")]
Alpha = Annotated[float | None, option("--alpha", about="Largest length reward.", default=0.2)]
Decay = Annotated[float | None, option("--decay", about="Of the average pass ratio.", default=0.99)]
Start = Annotated[
    str | None, option("--start", about="Of that average: a number or observed.", default="observed", metavar="RATIO")
]
MasteredWeight = Annotated[
    float | None,
    option(
        "--mastered-weight",
        about="Ours: how much groups count that are all right; 0 drops them.",
        default="0.15 with the rule dual",
    ),
]
Rollouts = Annotated[
    str | None, option("--rollouts", about="engine, transformers or vllm.", default="engine", metavar="NAME")
]
RolloutPolicy = Annotated[
    str | None, option("--policy", about="What the engine generates under.", default="full", metavar="NAME")
]
LoraRank = Annotated[int | None, option("--lora-rank", about="Train LoRA adapters.", default="all weights")]
Temperature = Annotated[float | None, option("--temperature", about="Of the rollouts.", default=1.0)]
Set = Annotated[
    list[str] | None,
    option("--set", about="Any other setting; values as in YAML; may be repeated.", metavar="NAME=VALUE"),
]
Resume = Annotated[bool, option("--resume", about="Go on from the last checkpoint of the folder.")]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train", help=help_text("Train a model to think fewer tokens (DeepCompress).", EXAMPLES))(command)


def command(
    context: typer.Context,
    runs: Runs = None,
    report: Report = False,
    config: Config = None,
    model: Model = None,
    out: Out = None,
    tasks: Tasks = None,
    levels: OptionalLevels = None,
    count: Count = None,
    problems: Problems = None,
    instruction: OptionalInstruction = None,
    system_prompt: options.SystemPrompt = None,
    chat_template_kwargs: options.ChatTemplateKwargs = None,
    split_special_tokens: options.SplitSpecialTokens = None,
    think_tags: options.ThinkTags = None,
    steps: Steps = None,
    group: Group = None,
    batch: Batch = None,
    accumulate: Accumulate = None,
    max_completion: MaxCompletion = None,
    temperature: Temperature = None,
    lr: LearningRate = None,
    rule: Rule = None,
    alpha: Alpha = None,
    decay: Decay = None,
    start: Start = None,
    mastered_weight: MasteredWeight = None,
    rollouts: Rollouts = None,
    policy: RolloutPolicy = None,
    budget: options.Slots = None,
    window: options.Window = None,
    interval: options.Interval = None,
    answer: options.Answer = None,
    predictor: options.PredictorFile = None,
    ignore_predictor_mismatch: options.IgnorePredictorMismatch = False,
    lora_rank: LoraRank = None,
    seed: options.Seed = None,
    set_: Set = None,
    resume: Resume = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write the report that was asked for; else put the settings together, check them, then train."""
    if report:
        refuse_more(context)
        return _report(runs or [], out, as_json=as_json)
    if runs:
        raise UsageError(f"{runs[0]} is read with --report alone; a run that trains is named with --out")
    from leanthink.rl.old_names import current_names

    try:
        import datasets  # noqa: F401
        import peft  # noqa: F401
        import trl  # noqa: F401
        import yaml
    except ImportError as error:
        raise UsageError(f"training needs {error.name}: pip install 'leanthink[train]'") from error
    settings = {} if config is None else current_names(_read(config))  # flags are put over present names
    settings |= {
        name: value
        for name, value in {
            "model": model,
            "out": None if out is None else str(out),
            "max_steps": steps,
            "num_generations": group,
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulate,
            "max_completion_length": max_completion,
            "temperature": temperature,
            "learning_rate": lr,
            "length_reward_mode": rule,
            "alpha": alpha,
            "ema_decay": decay,
            "all_correct_weight": mastered_weight,
            "ema_initial_value": None if start is None else yaml.safe_load(start),
            "system_prompt": system_prompt,
            "chat_template_kwargs": options.read_kwargs(chat_template_kwargs),
            "split_special_tokens": split_special_tokens,
            "think_tags": None if think_tags is None else list(think_tags),
            "rollouts": rollouts,
            "rollout_policy": policy,
            "rollout_predictor": None if predictor is None else str(predictor),
            "ignore_predictor_mismatch": ignore_predictor_mismatch or None,
            "seed": seed,
            "lora": None if lora_rank is None else {"r": lora_rank, "alpha": 2 * lora_rank},
        }.items()
        if value is not None
    }
    slots = {"slots": budget, "window": window, "interval": interval, "answer": answer}
    if policy is not None or any(value is not None for value in slots.values()):
        settings["rollout_budget"] = _budget(slots, settings)
    source = _source(tasks, levels, count, problems, instruction, settings.get("data"))
    if source is not None:
        settings["data"] = source
    settings |= current_names(dict(_assignment(text) for text in set_ or ()))
    _train(settings, resume=resume, overwrite=overwrite, as_json=as_json)


def refuse_more(context: typer.Context) -> None:
    """Raise UsageError for options that a report does not know."""
    allowed = {"runs", "report", "out", "as_json"}
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name not in allowed and source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--report takes folders of runs, --out and --json: leave out {parameter.opts[0]}")


def _report(runs: list[Path], out: Path | None, *, as_json: bool) -> None:
    from leanthink.rl.report_page import write_page
    from leanthink.rl.run_files import REPORT, read_runs

    found = read_runs(runs)
    if out is None:
        parents = {folder.resolve().parent for folder in runs}
        if len(parents) > 1:
            raise UsageError("the runs lie in different folders: say with --out where the report shall be written")
        out = runs[0] if len(runs) == 1 else runs[0].parent
    reports = write_page(found, out / REPORT)
    if as_json:
        print_json({"report": str(out / REPORT), "runs": [asdict(report) for report in reports]})
    else:
        print(out / REPORT)


def _train(settings: dict[str, Any], *, resume: bool, overwrite: bool, as_json: bool) -> None:
    from rich.console import Console
    from transformers.utils import logging

    from leanthink.rl.run import train

    logging.disable_progress_bar()
    console = Console(stderr=True, highlight=True, soft_wrap=True)
    found = train(settings, resume=resume, overwrite=overwrite, tell=console.print)
    if found is None:
        return
    if as_json:
        print_json(found)
    else:
        print(f"{found['steps']} steps; the model is in {found['final']}")


def _read(path: Path) -> dict[str, Any]:
    """The settings of a YAML file. Raises UsageError for a file that is not there, or is no mapping."""
    import yaml

    if not path.is_file():
        raise UsageError(f"there is no file of settings at {path}: check the path")
    try:
        settings = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise UsageError(f"{path} holds no settings: lines such as `alpha: 0.2` were expected")
    return settings


def _source(
    tasks: str | None,
    levels: str | None,
    count: int | None,
    problems: Path | None,
    instruction: str | None,
    configured: Any,
) -> dict[str, Any] | None:
    """Data as the flags say: another source replaces that of the file, its details are put over those of the file."""
    if tasks is not None and problems is not None:
        raise UsageError("give either --tasks (embedded tasks) or --problems (a JSONL file)")
    source: dict[str, Any] = {} if configured is None else dict(configured)
    if tasks is not None:
        source = source if "tasks" in source else {}
        source["tasks"] = "all" if tasks == "all" else [name.strip() for name in tasks.split(",")]
    if problems is not None:
        source = {"problems": str(problems)}
    if levels is not None:
        source["levels"] = list(whole_numbers("--levels", levels))
    details = {"count": count, "instruction": instruction}
    source |= {name: value for name, value in details.items() if value is not None}
    return source or None


def _budget(flags: dict[str, int | None], settings: dict[str, Any]) -> dict[str, int] | None:
    """The budget of the flags over that of the file; None for the policy full."""
    policy = settings.get("rollout_policy", "full")
    configured = {} if policy == "full" else settings.get("rollout_budget") or {}
    parts = {name: configured.get(name) if value is None else value for name, value in flags.items()}
    made = options.make_budget(policy, **parts)
    return None if made is None else asdict(made)


def _assignment(text: str) -> tuple[str, Any]:
    """Name and value of NAME=VALUE."""
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--set {text!r}: give NAME=VALUE, such as --set max_num_gen_batches=4")
    return name.strip(), yaml.safe_load(value)
