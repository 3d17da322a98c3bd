"""Writes what `leanthink generate` answered as traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leanthink.engine.outputs import Completion
    from leanthink.models.prompt import ChatOptions


def write_completions(
    path: Path,
    completions: Sequence[Completion],
    prompts: Sequence[str],
    tokenizer: Any,
    *,
    model: Any,
    model_name: str,
    settings: Mapping[str, Any],
    chat: ChatOptions,
) -> None:
    """One trace for each prompt, named prompt-1, prompt-2, ...; nothing is graded. A file that is there is replaced."""
    from leanthink.data.traces.trace import Trace, TraceWriter
    from leanthink.models.fingerprint import fingerprint
    from leanthink.models.prompt import encode_prompt

    budget, sampling = settings["budget"], settings["sampling"]
    identity = fingerprint(model)
    shared = {field.name for field in fields(Trace)} & set(asdict(completions[0]))
    with TraceWriter(path, overwrite=True) as writer:
        for index, (completion, prompt) in enumerate(zip(completions, prompts, strict=True)):
            trace = Trace(
                id=f"prompt-{index + 1}",
                sample=0,
                problem=prompt,
                gold=None,
                model=model_name,
                policy=settings["policy"].name,
                budget=None if budget is None else asdict(budget),
                seed=sampling.seed,
                temperature=sampling.temperature,
                prompt_ids=tuple(encode_prompt(tokenizer, index, prompt, chat)),
                correct=None,
                fingerprint=identity,
                **{name: getattr(completion, name) for name in shared},
            )
            writer.write(trace)
