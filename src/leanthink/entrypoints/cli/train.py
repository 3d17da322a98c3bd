"""`leanthink train`: DeepCompress reinforcement learning, from a YAML file, flags, or both; and reports of its runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from leanthink.entrypoints.cli import options
from leanthink.entrypoints.cli.collect import Levels, whole_numbers
from leanthink.entrypoints.cli.grouped import add_command, given
from leanthink.entrypoints.cli.help import option
from leanthink.entrypoints.cli.output import print_json, say
from leanthink.utils.errors import UsageError
from leanthink.utils.file_reading import reading

EXAMPLES = (
    "leanthink train --config examples/deepcompress-tiny.yaml",
    "leanthink train --config examples/deepcompress-tiny.yaml --alpha 0.5 --set max_num_gen_batches=4 --out runs/half",
    "leanthink train --config examples/deepcompress-tiny.yaml --resume",
    "leanthink train --report runs/deepcompress-tiny runs/half",
)
BOOLEAN = re.compile("(?i:true|false)$")
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
DataSet = Annotated[
    str | None,
    option(
        "--dataset",
        about="gsm8k, math, deepmath-103k, dapo-17k, NAME=FOLDER; a file, folder or hub id.",
        metavar="NAME",
    ),
]
OptionalLevels = Annotated[str | None, *Levels.__metadata__]
Count = Annotated[int | None, option("--count", about="Problems for each family and level.", default=64)]
Problems = Annotated[
    Path | None, option("--problems", about="JSONL file with the fields id, problem, answer.", metavar="FILE")
]
Instruction = Annotated[
    str | None,
    option(
        "--instruction",
        about="Text put after each problem.",
        default="that of a public set or gym, else none",
        metavar="TEXT",
    ),
]
MaxSteps = Annotated[int | None, option("--max-steps", about="Optimiser steps.", default="3 epochs")]
NumGenerations = Annotated[int | None, option("--num-generations", about="Responses to each prompt.", default=16)]
TrainBatchSize = Annotated[
    int | None, option("--per-device-train-batch-size", about="Responses of a forward on one device.", default=8)
]
AccumulationSteps = Annotated[
    int | None, option("--gradient-accumulation-steps", about="Forwards of an optimiser step.", default="whole groups")
]
MaxCompletionLength = Annotated[
    int | None,
    option("--max-completion-length", about="Tokens of the longest response.", default=10240, metavar="TOKENS"),
]
LearningRate = Annotated[float | None, option("--learning-rate", about="Learning rate.", default=1e-6)]
LengthRewardMode = Annotated[
    str | None,
    option("--length-reward-mode", about="dual, penalty, bonus or none.", default="dual", metavar="NAME"),
]
Alpha = Annotated[float | None, option("--alpha", about="Largest length reward.", default=0.2)]
EmaDecay = Annotated[float | None, option("--ema-decay", about="Of the average pass ratio.", default=0.99)]
EmaInitialValue = Annotated[
    str | None,
    option("--ema-initial-value", about="Of that average: a number or observed.", default="observed", metavar="RATIO"),
]
AllCorrectWeight = Annotated[
    float | None,
    option(
        "--all-correct-weight",
        about="Ours: how much groups count that are all right; 0 drops them.",
        default="0.15 with the mode dual",
    ),
]
Rollouts = Annotated[
    str | None, option("--rollouts", about="engine, transformers or vllm.", default="engine", metavar="NAME")
]
RolloutPolicy = Annotated[
    str | None, option("--policy", about="What the engine generates under.", default="full", metavar=options.POLICY)
]
LoraR = Annotated[int | None, option("--lora-r", about="Rank of LoRA adapters to train.", default="all weights")]
Temperature = Annotated[float | None, option("--temperature", about="Of the rollouts.", default=1.0)]
Set = Annotated[
    list[str] | None,
    option("--set", about="Any other setting; values as in YAML; may be repeated.", metavar="NAME=VALUE"),
]
Resume = Annotated[bool, option("--resume", about="Go on from the last checkpoint of the folder.")]


@dataclass(frozen=True, kw_only=True)
class Source:
    """The data; another source replaces that of the file of settings, details are put over those of the file."""

    tasks: Tasks = None
    levels: OptionalLevels = None
    count: Count = None
    problems: Problems = None
    dataset: DataSet = None
    instruction: Instruction = None

    def over(self, configured: Any) -> dict[str, Any] | None:
        """The data as these options say, over what is configured; None for none at all. Raises UsageError."""
        if sum(kind is not None for kind in (self.tasks, self.problems, self.dataset)) > 1:
            raise UsageError("give one of --tasks (embedded tasks), --problems (a JSONL file) and --dataset")
        if not isinstance(configured, Mapping | None):
            raise UsageError(f"data={configured!r}: give a mapping, such as {{tasks: [sums]}}")
        source: dict[str, Any] = dict(configured or {})
        if self.tasks is not None:
            source = source if "tasks" in source else {}
            names = [name.strip() for name in self.tasks.split(",")]
            source["tasks"] = "all" if self.tasks == "all" else names
        if self.problems is not None:
            source = {"problems": str(self.problems)}
        if self.dataset is not None:
            source = {"dataset": self.dataset}
        if self.levels is not None:
            source["levels"] = list(whole_numbers("--levels", self.levels))
        details = {"count": self.count, "instruction": self.instruction}
        source |= {name: value for name, value in details.items() if value is not None}
        return source or None


@dataclass(frozen=True, kw_only=True)
class Method:
    """How it is trained, by the names of `DeepCompressConfig`, most of which are TRL's."""

    max_steps: MaxSteps = None
    num_generations: NumGenerations = None
    per_device_train_batch_size: TrainBatchSize = None
    gradient_accumulation_steps: AccumulationSteps = None
    max_completion_length: MaxCompletionLength = None
    temperature: Temperature = None
    learning_rate: LearningRate = None
    length_reward_mode: LengthRewardMode = None
    alpha: Alpha = None
    ema_decay: EmaDecay = None
    ema_initial_value: EmaInitialValue = None
    all_correct_weight: AllCorrectWeight = None
    rollouts: Rollouts = None
    rollout_policy: RolloutPolicy = None
    seed: options.Seed = None

    @property
    def settings(self) -> dict[str, Any]:
        """What was given."""
        found = given(self)
        if self.ema_initial_value is not None:
            found["ema_initial_value"] = _yaml(self.ema_initial_value, "--ema-initial-value")
        return found


@dataclass(frozen=True, kw_only=True)
class Learned:
    """The predictor of the rollouts' policy, whose file may be named in the file of settings."""

    predictor: options.PredictorFile = None
    ignore_predictor_mismatch: options.IgnorePredictorMismatch = False


@dataclass(frozen=True, kw_only=True)
class Run:
    """Which model, and where everything is written."""

    config: Config = None
    model: Model = None
    out: Out = None
    lora_r: LoraR = None
    set_: Set = None
    resume: Resume = False
    overwrite: options.Overwrite = False


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "train", "Train a model to think fewer tokens (DeepCompress).", EXAMPLES, command)


def command(
    context: typer.Context,
    runs: Runs = None,
    report: Report = False,
    *,
    run: Run,
    source: Source,
    prompt: options.PromptOptions,
    method: Method,
    slots: options.BudgetOptions,
    learned: Learned,
    as_json: options.Json = False,
) -> None:
    """Write the report that was asked for; else put the settings together, check them, then train."""
    if report:
        refuse_more(context)
        return _report(runs or [], run.out, as_json=as_json)
    if runs:
        raise UsageError(f"{runs[0]} is read with --report alone; a run that trains is named with --out")
    try:
        import datasets  # noqa: F401
        import peft  # noqa: F401
        import trl  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as error:
        raise UsageError(f"training needs {error.name}: pip install 'leanthink[train]'") from error
    settings = {} if run.config is None else _read(run.config)
    settings |= _settings(run, prompt, learned) | method.settings
    if method.rollout_policy is not None or given(slots):
        settings["rollout_budget"] = _budget(slots, settings)
    data = source.over(settings.get("data"))
    if data is not None:
        settings["data"] = data
    settings |= dict(_assignment(text) for text in run.set_ or ())
    if run.lora_r is not None:
        from leanthink.rl.adapters import with_lora_section

        settings = with_lora_section(settings)  # what the file says of adapters beside rank and alpha stays
        settings["lora"] = {**settings.get("lora", {}), "r": run.lora_r, "alpha": 2 * run.lora_r}
    _train(settings, resume=run.resume, overwrite=run.overwrite, as_json=as_json)


def _settings(run: Run, prompt: options.PromptOptions, learned: Learned) -> dict[str, Any]:
    """What was given of model, prompts and predictor."""
    found = {
        "model": run.model,
        "out": None if run.out is None else str(run.out),
        "system_prompt": prompt.system_prompt,
        "chat_template_kwargs": options.read_kwargs(prompt.chat_template_kwargs),
        "split_special_tokens": prompt.split_special_tokens,
        "think_tags": None if prompt.think_tags is None else list(prompt.think_tags),
        "rollout_predictor": None if learned.predictor is None else str(learned.predictor),
        "ignore_predictor_mismatch": learned.ignore_predictor_mismatch or None,
    }
    return {name: value for name, value in found.items() if value is not None}


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
    from torch import distributed
    from transformers.utils import logging

    from leanthink.rl.run import train

    logging.disable_progress_bar()
    console = Console(stderr=True, highlight=True, soft_wrap=True)
    try:
        found = train(settings, resume=resume, overwrite=overwrite, tell=console.print)
    except KeyboardInterrupt:
        _say_what_is_kept(Path(settings["out"]))
        raise
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()  # a rank that ends after another could abort
    if found is None:
        return
    if as_json:
        print_json(found)
    else:
        print(f"{found['steps']} steps; the model is in {found['final']}")


def _say_what_is_kept(out: Path) -> None:
    """After Ctrl-C, where there is a run."""
    from leanthink.rl.resume import last_whole_checkpoint
    from leanthink.rl.run_files import RUN

    last, _ = last_whole_checkpoint(out)
    if last is not None:
        say(f"the same command with --resume goes on from {last}")
    elif (out / RUN).exists():
        say(f"{out} has no checkpoint yet: --overwrite starts anew, and --set save_steps=N saves every N steps")


def _read(path: Path) -> dict[str, Any]:
    """The settings of a YAML file. Raises UsageError for a file that is not there, or is no mapping."""
    if not path.is_file():
        raise UsageError(f"there is no file of settings at {path}: check the path")
    with reading(path, "file of settings", "save it as text in UTF-8"):
        text = path.read_text(encoding="utf-8")
    settings = _yaml(text, str(path))
    if not isinstance(settings, dict):
        raise UsageError(f"{path} holds no settings: lines such as `alpha: 0.2` were expected")
    return settings


def _budget(slots: options.BudgetOptions, settings: dict[str, Any]) -> dict[str, int] | None:
    """The budget of the flags over that of the file; None for the policy full."""
    from leanthink.policies.budget import REQUEST_KEYS, check_parts

    policy = settings.get("rollout_policy", "full")
    configured = {} if options.is_full(policy) else settings.get("rollout_budget") or {}
    check_parts("rollout_budget", configured)
    usual = options.BudgetOptions(**{key: configured.get(field) for key, field in REQUEST_KEYS.items()})
    made = replace(usual, **given(slots)).make(policy)
    return None if made is None else asdict(made)


def _assignment(text: str) -> tuple[str, Any]:
    """Name and value of NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--set {text!r}: give NAME=VALUE, such as --set max_num_gen_batches=4")
    return name.strip(), _yaml(value, f"--set {text!r}")


def _yaml(text: str, name: str) -> Any:
    """What it says; `no` and `on` are words, as in YAML 1.2. Raises UsageError, by this name, for what is no YAML."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
        pass

    Loader.yaml_implicit_resolvers = {
        first: [(tag, BOOLEAN if tag.endswith(":bool") else pattern) for tag, pattern in pairs]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"{name} is no YAML: {' '.join(str(error).split())}") from error
