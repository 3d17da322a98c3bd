"""`leanthink generate`: answers prompts on the bounded cache, streamed as text or as one JSON document."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanthink.entrypoints.cli import options
from leanthink.entrypoints.cli.help import help_text, option
from leanthink.entrypoints.cli.output import print_json, refuse_existing, say
from leanthink.entrypoints.cli.show import show, shows_marks
from leanthink.entrypoints.cli.summary import summary
from leanthink.utils.errors import UsageError

if TYPE_CHECKING:
    from leanthink.engine.outputs import Completion

EXAMPLES = (
    'leanthink generate "What is 4821 times 377?"',
    'leanthink generate "What is 4821 times 377?" --budget 128 --interval 32 --json',
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


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("generate", help=help_text("Answer prompts with a bounded KV cache.", EXAMPLES))(command)


def command(
    prompts: Annotated[list[str], PROMPTS],
    model: options.Model = "tiny",
    policy: options.Policy = None,
    budget: options.Slots = None,
    window: options.Window = None,
    interval: options.Interval = None,
    answer: options.Answer = None,
    predictor: options.PredictorFile = None,
    ignore_predictor_mismatch: options.IgnorePredictorMismatch = False,
    temperature: options.ModelTemperature = None,
    top_p: options.ModelTopP = None,
    top_k: options.ModelTopK = None,
    min_p: options.ModelMinP = None,
    max_new_tokens: options.MaxNewTokens = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    system_prompt: options.SystemPrompt = None,
    chat_template_kwargs: options.ChatTemplateKwargs = None,
    split_special_tokens: options.SplitSpecialTokens = None,
    think_tags: options.ThinkTags = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    stream: Annotated[bool | None, STREAM] = None,
    trace: Annotated[Path | None, option("--trace", about="Write one trace a line to it.", metavar="FILE")] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Check everything that can be checked without the model, then load it and answer."""
    questions = _read_prompts(prompts)
    if stream and len(questions) > 1:
        raise UsageError("--stream shows one prompt: give a single one, or leave --stream out")
    refuse_existing(trace, overwrite=overwrite)
    options.check_borrowing(ignore_predictor_mismatch, predictor)
    slots = options.make_budget(policy, slots=budget, window=window, interval=interval, answer=answer)
    knobs: dict[str, Any] = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "stop": tuple(stop) if stop else None,
    }
    options.make_sampling(**knobs)  # what is out of range is refused before the model is loaded
    chat = options.make_chat_options(system_prompt, chat_template_kwargs, split_special_tokens)
    loaded, tokenizer = options.load_model(model, device, dtype, think_tags)
    import leanthink
    from leanthink.engine.request import PolicyMaker
    from leanthink.models.context import context_of
    from leanthink.models.model_sampling import knobs_of
    from leanthink.policies.budget_hints import budget_hints

    sampling = options.make_sampling(loaded, **knobs)
    if sampling.temperature and temperature is None:
        say(f"sampled as the model's generation config says ({knobs_of(sampling)}); --temperature 0 is greedy")
    maker = PolicyMaker(loaded, tokenizer)
    chosen = maker.make(policy, predictor, ignore_predictor_mismatch=ignore_predictor_mismatch)
    for hint in budget_hints(chosen, slots):
        say(hint)
    settings: dict[str, Any] = {
        "policy": chosen,
        "budget": slots,
        "sampling": sampling,
        "system_prompt": chat.system_prompt,
        "chat_template_kwargs": chat.chat_template_kwargs,
        "split_special_tokens": chat.split_special_tokens,
        "record": trace is not None,
    }
    streams = stream if stream is not None else len(questions) == 1 and not as_json
    if streams:
        where = sys.stderr if as_json else sys.stdout
        recorded = settings | {"record": trace is not None or shows_marks(where)}
        steps = leanthink.stream(loaded, tokenizer, questions[0], **recorded)
        tags = leanthink.think_tags(tokenizer)
        completions = [show(steps, where, tag=tags.open if tags.closes and not tags.must_open else None)]
    else:
        completions = leanthink.generate(loaded, tokenizer, questions, **settings)
    if trace is not None:
        from leanthink.entrypoints.cli.record import write_completions

        about = {"model": loaded, "model_name": model, "settings": settings, "chat": chat}
        write_completions(trace, completions, questions, tokenizer, **about)
    _print(completions, as_json=as_json, shown=streams)
    for completion in completions:
        say(summary(completion, sampling, slots, context_of(loaded.config)))


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
