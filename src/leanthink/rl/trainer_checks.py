"""What `DeepCompressTrainer` asks of TRL's version, the data and the chat template before anything is trained."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

from packaging.specifiers import SpecifierSet

from leanthink.data.think_tags import think_tags, thought_is_over
from leanthink.models.prompt import encode_prompt
from leanthink.rl.config import DeepCompressConfig
from leanthink.rl.data import check_answers
from leanthink.utils.errors import LeanThinkWarning, UsageError

TRL = SpecifierSet(">=1.16,<1.17")


def check_version(installed: str | None = None) -> None:
    """Raise UsageError for a TRL whose insides nobody has looked at."""
    found = version("trl") if installed is None else installed
    if found not in TRL:
        raise UsageError(
            f"trl {found} is installed, and DeepCompressTrainer is tested with trl{TRL}: pip install 'trl{TRL}'"
        )


def check_data(dataset: Any, args: DeepCompressConfig) -> None:
    """Raise UsageError for data that cannot be trained on with these settings."""
    if not hasattr(dataset, "__len__"):
        raise UsageError(
            "the training data are a stream: dynamic sampling draws from all of them, give a datasets.Dataset"
        )
    check_answers(dataset)
    if "prompt" not in dataset.column_names:
        raise UsageError(
            f"the data have no column 'prompt', only {', '.join(dataset.column_names)}: see `from_columns`"
        )
    prompts = args.generation_batch_size // args.num_generations
    if len(dataset) < prompts:
        raise UsageError(
            f"{len(dataset)} problems are fewer than the {prompts} prompts of one generation batch: give more, or a "
            "smaller generation batch"
        )


def warn_of_rate(args: DeepCompressConfig, *, adapters: bool) -> None:
    """Warn of a learning rate at which next to nothing is learnt."""
    told = []
    if adapters and args.learning_rate <= DeepCompressConfig.learning_rate:  # the default
        told.append(
            f"learning_rate={args.learning_rate:g} is the published one, of whole models: LoRA hardly learns at it, "
            "try 1e-4"
        )
    if 0 < args.max_steps <= args.warmup_steps:
        told.append(
            f"warmup_steps={args.warmup_steps:g} of max_steps={args.max_steps}: learning_rate is never reached, give "
            f"fewer, such as {args.max_steps // 10}"
        )
    for text in told:
        warnings.warn(text, LeanThinkWarning, stacklevel=2)


def check_evaluation(args: DeepCompressConfig, *, given: bool) -> None:
    """Raise UsageError where there is nothing to evaluate on; warn where what was `given` is never looked at."""
    evaluates = args.eval_strategy != "no" or args.eval_on_start
    if evaluates and not given:
        raise UsageError(
            f"eval_strategy={args.eval_strategy.value}, eval_on_start={args.eval_on_start} without eval_data: give "
            "them, or leave the others out"
        )
    if given and not evaluates and args.process_index == 0:
        told = "eval_data are never looked at: give eval_strategy=steps with eval_steps, or leave them out"
        warnings.warn(told, LeanThinkWarning, stacklevel=2)


def check_template(tokenizer: Any, prompt: Any, args: DeepCompressConfig) -> None:
    """Raise UsageError for a chat template that refuses a prompt or a switch, or after which no thought can close."""
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if args.think_tags and not has_template:
        raise UsageError("the tokenizer has no chat template, and prompts are chats: give one (chat_template)")
    ids = encode_prompt(tokenizer, 0, prompt, args.chat_options) if has_template else []
    if args.think_tags and thought_is_over(tokenizer, ids, think_tags(tokenizer)):
        raise UsageError(
            "the chat template closes the thought before the response begins: leave enable_thinking=False out of "
            "chat_template_kwargs, or give think_tags=False"
        )
