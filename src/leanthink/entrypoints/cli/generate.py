"""`leanthink generate`: answers prompts on the bounded cache, streamed as text or as one JSON document."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanthink.entrypoints.cli import options
from leanthink.entrypoints.cli.grouped import add_command
from leanthink.entrypoints.cli.help import option
from leanthink.entrypoints.cli.output import print_json, refuse_existing, say
from leanthink.entrypoints.cli.record import Asked, write_completions
from leanthink.entrypoints.cli.show import show, shows_marks
from leanthink.entrypoints.cli.summary import summary
from leanthink.utils.errors import UsageError

if TYPE_CHECKING:
    from leanthink.engine.outputs import Completion

EXAMPLES = (
    'leanthink generate "What is 4821 times 377?"',
    'leanthink generate "What is 4821 times 377?" --budget 128 --eviction-interval 32 --json',
    'echo "What is 4821 times 377?" | leanthink generate - --policy full',
)
PROMPTS = typer.Argument(
    help="What to ask; several are answered in one batch; - reads one from standard input.", metavar="PROMPT"
)
STREAM = typer.Option(
    "--stream/--no-stream",
    help="Show text as it comes, beside --json on standard error. [on for a single prompt without --json]",
    show_default=False,
)


@dataclass(frozen=True, kw_only=True)
class ModelSampling(options.SamplingOptions):
    """How tokens are picked, where the model may say it; and what ends the output."""

    temperature: options.ModelTemperature = None
    top_p: options.ModelTopP = None
    top_k: options.ModelTopK = None
    min_p: options.ModelMinP = None
    stop: options.Stop = None

    @property
    def knobs(self) -> dict[str, Any]:
        """What was given, by the names of `Sampling`."""
        return super().knobs | ({"stop": tuple(self.stop)} if self.stop else {})


@dataclass(frozen=True, kw_only=True)
class Output:
    """What is shown and written."""

    stream: Annotated[bool | None, STREAM] = None
    trace: Annotated[Path | None, option("--trace", about="Write one trace a line to it.", metavar="FILE")] = None
    overwrite: options.Overwrite = False
    as_json: options.Json = False


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "generate", "Answer prompts with a bounded KV cache.", EXAMPLES, command)


def command(
    prompts: Annotated[list[str], PROMPTS],
    model: options.Model = "tiny",
    policy: options.Policy = None,
    *,
    slots: options.BudgetOptions,
    learned: options.PredictorOptions,
    picked: ModelSampling,
    prompt: options.PromptOptions,
    where: options.DeviceOptions,
    kv_cache_dtype: options.KVCacheDtype = None,
    output: Output,
) -> None:
    """Check everything that can be checked without the model, then load it and answer."""
    questions = _read_prompts(prompts)
    if output.stream and len(questions) > 1:
        raise UsageError("--stream shows one prompt: give a single one, or leave --stream out")
    refuse_existing(output.trace, overwrite=output.overwrite)
    budget = slots.make(policy)
    options.check_kv_cache_dtype(kv_cache_dtype)
    picked.make()  # what is out of range is refused before the model is loaded
    chat = prompt.make()
    loaded, tokenizer = where.load(model, prompt.think_tags)
    from leanthink.engine.request import PolicyMaker
    from leanthink.models.context import context_of
    from leanthink.models.model_sampling import knobs_of
    from leanthink.policies.budget_hints import budget_hints

    sampling = picked.make(loaded)
    if sampling.temperature and picked.temperature is None:
        say(f"sampled as the model's generation config says ({knobs_of(sampling)}); --temperature 0 is greedy")
    maker = PolicyMaker(loaded, tokenizer)
    chosen = maker.make(policy, learned.predictor, ignore_predictor_mismatch=learned.ignore_predictor_mismatch)
    for hint in budget_hints(chosen, budget):
        say(hint)
    asked = Asked(policy=chosen, budget=budget, sampling=sampling, chat=chat, kv_cache_dtype=kv_cache_dtype or "auto")
    completions, shown = _answer(loaded, tokenizer, questions, asked, output)
    if output.trace is not None:
        write_completions(output.trace, completions, questions, tokenizer, asked, model=loaded, model_name=model)
    _print(completions, as_json=output.as_json, shown=shown)
    for completion in completions:
        say(summary(completion, sampling, budget, context_of(loaded.config)))


def _answer(
    model: Any, tokenizer: Any, questions: Sequence[str], asked: Asked, output: Output
) -> tuple[Sequence[Completion], bool]:
    """The completions, and whether they were shown as they came."""
    import leanthink

    choices: dict[str, Any] = {
        "policy": asked.policy,
        "budget": asked.budget,
        "sampling": asked.sampling,
        "kv_cache_dtype": asked.kv_cache_dtype,
        "system_prompt": asked.chat.system_prompt,
        "chat_template_kwargs": asked.chat.chat_template_kwargs,
        "split_special_tokens": asked.chat.split_special_tokens,
    }
    traced = output.trace is not None
    streams = output.stream if output.stream is not None else len(questions) == 1 and not output.as_json
    if not streams:
        return leanthink.generate(model, tokenizer, questions, record=traced, **choices), False
    screen = sys.stderr if output.as_json else sys.stdout
    steps = leanthink.stream(model, tokenizer, questions[0], record=traced or shows_marks(screen), **choices)
    tags = leanthink.think_tags(tokenizer)
    return [show(steps, screen, tag=tags.open if tags.closes and not tags.must_open else None)], True


def _read_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts, with - replaced by what comes in; raises UsageError for one that is empty or a second -."""
    if prompts.count("-") > 1:
        raise UsageError("standard input can be read once: give - once")
    texts = [sys.stdin.read().strip() if prompt == "-" else prompt for prompt in prompts]
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True), start=1):
        if not text.strip():
            where = " (standard input)" if prompt == "-" else ""
            raise UsageError(f"prompt {number}{where} is empty: give some text")
    return texts


def _print(completions: Sequence[Completion], *, as_json: bool, shown: bool) -> None:
    if as_json:
        records = [asdict(completion) for completion in completions]
        print_json(records[0] if len(records) == 1 else records)
    elif not shown:
        print("\n\n".join(completion.text for completion in completions))
