"""The model card of a trained model: from what it was trained, on what, how, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

import leanthink
from leanthink.rl.report import change, curve
from leanthink.utils.provenance import commit

CARD = "README.md"  # what hubs show of a model
PAPER = "arXiv 2510.27419"
RECIPE = (
    *("length_reward_mode", "alpha", "ema_decay", "ema_initial_value", "all_correct_weight", "num_generations"),
    *("max_completion_length", "temperature"),
    *("learning_rate", "warmup_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "rollouts"),
    *("rollout_policy", "rollout_budget", "seed"),
)
NUMBERS = {
    "accuracy": "right, share of responses",
    "thought_tokens": "thought tokens",
    "eval_accuracy": "right, share of held-out responses",
    "eval_thought_tokens": "thought tokens, held out",
}
TEXT = """# {title}

{base}, trained to think in fewer tokens with DeepCompress ({paper}), by `leanthink train` {version} (commit {commit}).

## Use

```bash
leanthink generate "What is 12 + 30?" --model path/to/this/folder
```

It is also a model of transformers: `AutoModelForCausalLM.from_pretrained` reads the folder.

## Training data

{data}

## Recipe

{steps} optimiser steps. Settings:

{recipe}

## Numbers

Means over the first and the last tenth of the logged steps. Those of training are of sampled responses to the problems
that were trained on.

{numbers}

Made with {versions}.
"""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a trained model comes from.

    Attributes:
        base: the model it was trained from, by its name.
        data: the source of the problems, as settings name it; None where nobody told.
        more: further settings of the recipe, such as those of adapters.
    """

    base: str
    data: Mapping[str, Any] | None = None
    more: Mapping[str, Any] | None = None


def public_name(name: str) -> str:
    """A folder or file is named by its last part, NAME=FOLDER by NAME: where it lies is nobody's business."""
    return Path(name).name if Path(name).exists() else name.partition("=")[0]


def model_card(
    origin: Origin, *, settings: Any, problems: int, steps: int, history: list[dict[str, Any]], title: str
) -> str:
    """The card as Markdown, with the head that hubs read.

    Args:
        origin: what was trained.
        settings: with the fields of RECIPE, such as a `DeepCompressConfig`.
        problems: how many were trained on.
        steps: optimiser steps done.
        history: what was logged, an object for each time, with `step`.
        title: the model's name.
    """
    recipe = {name: getattr(settings, name) for name in RECIPE if getattr(settings, name) is not None}
    recipe |= origin.more or {}
    head = ModelCardData(
        base_model=origin.base if _is_hub_id(origin.base) else None,
        datasets=[origin.data["dataset"]] if origin.data and _is_hub_id(str(origin.data.get("dataset", ""))) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["leanthink", "deepcompress", "grpo", "trl"],
    )
    text = TEXT.format(
        title=title,
        base=f"`{origin.base}`",
        paper=PAPER,
        version=leanthink.__version__,
        commit=commit(),
        data=f"{problems} problems{_source(origin.data)}.",
        steps=steps,
        recipe=_table(("setting", "value"), [(name, f"`{value}`") for name, value in recipe.items()]),
        numbers=_numbers(history),
        versions=", ".join(f"{name} {version(name)}" for name in ("trl", "transformers", "torch")),
    )
    return f"---\n{head.to_yaml()}\n---\n\n{text}"


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _source(data: Mapping[str, Any] | None) -> str:
    """The keys of a source of data and their values; of a file its name alone."""
    if data is None:
        return ""
    shown = {name: public_name(value) if name in ("problems", "dataset") else value for name, value in data.items()}
    return ": " + ", ".join(f"{name} `{value}`" for name, value in shown.items())


def _numbers(history: list[dict[str, Any]]) -> str:
    rows = []
    for name, words in NUMBERS.items():
        values = [None if value is None or not math.isfinite(value) else value for _, value in curve(history, name)]
        found = change(values)
        if found.last is not None:
            digits = 0 if "tokens" in name else 3
            shown = ["–" if value is None else f"{value:.{digits}f}" for value in (found.first, found.last)]
            rows.append((words, *shown))
    return _table(("", "first", "last"), rows) if rows else "Nothing was logged."


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
