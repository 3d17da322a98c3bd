"""`leanthink fit`: fits an importance predictor to labelled traces and reports how well it ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanthink.entrypoints.cli import options
from leanthink.entrypoints.cli.collect import whole_numbers
from leanthink.entrypoints.cli.grouped import add_command, given
from leanthink.entrypoints.cli.help import option
from leanthink.entrypoints.cli.label import Traces
from leanthink.entrypoints.cli.output import print_json, refuse_existing
from leanthink.entrypoints.cli.progress import ProgressBar

if TYPE_CHECKING:
    from leanthink.importance.fit_config import FitConfig

EXAMPLES = (
    "leanthink fit --traces traces.jsonl --labels labels.safetensors --out predictor.safetensors",
    "leanthink fit --traces traces.jsonl --labels labels.safetensors --target answer --out dynts.safetensors",
    "leanthink fit --traces traces.jsonl --labels labels.safetensors --compare old.safetensors --out new.safetensors",
)
LabelsFile = Annotated[Path, option("--labels", about="File that label wrote.", metavar="FILE")]
Out = Annotated[Path, option("--out", about="Safetensors file for the predictor.", metavar="FILE")]
Target = Annotated[
    str | None, option("--target", about="horizon (policy horizon) or answer (policy dynts).", default="horizon")
]
Horizons = Annotated[
    str | None, option("--horizons", about="Which of the labelled ones to fit.", default="those reached")
]
Offsets = Annotated[
    str | None, option("--offsets", about="Tokens seen of each, itself (0) and later ones.", default="0,1,2,4,8,12")
]
Transform = Annotated[str | None, option("--transform", about="Of answer labels: power or scale.", default="power")]
Steps = Annotated[int | None, option("--steps", about="Training steps.", default=6000)]
Batch = Annotated[int | None, option("--batch", about="Tokens of a step.", default=8192)]
LearningRate = Annotated[float | None, option("--lr", about="Learning rate.", default="0.001, answer 0.0005")]
ValShare = Annotated[
    float | None, option("--val-share", about="Share of problems held out to measure on.", default=0.1)
]
TokensPerTrace = Annotated[int | None, option("--tokens-per-trace", about="Random tokens of each.", default="all")]
Granularity = Annotated[
    str | None,
    option("--granularity", about="One index set for the model, each layer or each kv head.", default="the labels'"),
]
Width = Annotated[
    int | None, option("--width", about="Of the first layer.", default="twice the hidden size, at most 1024")
]
Compare = Annotated[
    Path | None,
    option("--compare", about="Another predictor, measured on the same held-out traces.", metavar="FILE"),
]
AllTraces = Annotated[bool, option("--all", about="Fit to wrong traces too.")]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a predictor is fitted, by the names of `FitConfig`; what is left out has its defaults."""

    target: Target = None
    horizons: Horizons = None
    granularity: Granularity = None
    width: Width = None
    steps: Steps = None
    batch: Batch = None
    tokens_per_trace: TokensPerTrace = None

    def make(self, *, seed: int | None, only_correct: bool) -> FitConfig:
        """The config; raises UsageError."""
        from leanthink.importance.fit_config import FitConfig

        found = given(self) | ({} if seed is None else {"seed": seed})
        for name in ("horizons", "offsets"):
            if name in found:
                found[name] = whole_numbers(f"--{name}", found[name])
        return FitConfig(**found, only_correct=only_correct)


@dataclass(frozen=True, kw_only=True)
class AllFitOptions(FitOptions):
    """The same, and what is measured best as it is."""

    offsets: Offsets = None
    transform: Transform = None
    lr: LearningRate = None
    val_share: ValShare = None


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "fit", "Fit an importance predictor; the model stays as it is.", EXAMPLES, command)


def command(
    traces: Traces,
    labels: LabelsFile,
    out: Out,
    model: options.Model = "tiny",
    *,
    fitted_as: AllFitOptions,
    all_traces: AllTraces = False,
    compare: Compare = None,
    seed: options.Seed = None,
    overwrite: options.Overwrite = False,
    where: options.DeviceOptions,
    as_json: options.Json = False,
) -> None:
    """Read traces and labels before the model is loaded, then fit."""
    refuse_existing(out, overwrite=overwrite)
    from leanthink.data.traces.trace import read_traces
    from leanthink.importance.fit import fit
    from leanthink.importance.label_file import read_labels
    from leanthink.models.predictor import read_metadata

    config = fitted_as.make(seed=seed, only_correct=not all_traces)
    found, labelled = read_traces(traces), read_labels(labels)
    if compare is not None:
        read_metadata(compare)  # refuses what is no predictor
    loaded, _ = where.load(model)
    stages = {"read": "traces read", "fit": "training steps"}
    with ProgressBar() as bar:
        fitted = fit(
            loaded,
            found,
            labelled,
            config,
            out_path=out,
            compare=compare,
            progress=lambda stage, done, total: bar.update(stages[stage], done, total),
        )
    if as_json:
        print_json({"data": fitted.data, "metrics": fitted.metrics})
    else:
        print(f"{out}\n{report(fitted.metrics)}")


def report(metrics: Mapping[str, Any]) -> str:
    """Losses, and for each channel how well the predictor ranks held-out traces."""
    lines = [f"train loss {metrics['train_loss']:.5f}"]
    if "held_out_loss" in metrics:
        lines.append(f"held-out loss {metrics['held_out_loss']:.5f} on {metrics['held_out_traces']} traces")
    for name, ranking in metrics.get("ranking", {}).items():
        shown = ", ".join(f"{key} {value:.3f}" for key, value in ranking.items() if key != "traces")
        lines.append(f"{name}: {shown or 'nothing to rank'}")
    if "compared" in metrics:
        lines += ["", _comparison(metrics["compared"])]
    return "\n".join(lines)


def _comparison(found: Mapping[str, Any]) -> str:
    """Both predictors, channel by channel, and how much of the top shares of one the other has."""
    from leanthink.eval.tables import MISSING, aligned

    fresh, other, name = found["fresh"], found["other"], found["file"]
    parts = {"fitted now": fresh["ranking"], name: other["ranking"], "agreement": found["agreement"]}
    keys = ("kendall_tau", "top_20%", "top_30%")
    rows = [
        [channel, whose, *(format(part[channel][key], ".3f") if key in part[channel] else MISSING for key in keys)]
        for channel in fresh["ranking"]
        for whose, part in parts.items()
    ]
    losses = f"held-out loss {fresh['held_out_loss']:.5f} fitted now, {other['held_out_loss']:.5f} {name}"
    return f"{losses}, on the same traces at the same horizons\n{aligned(['', 'predictor', *keys], rows)}"
