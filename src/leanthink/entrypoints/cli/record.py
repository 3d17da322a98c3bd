"""Writes what `leanthink generate` answered as traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leanthink.engine.outputs import Completion
    from leanthink.engine.sampling import Sampling
    from leanthink.models.prompt import ChatOptions
    from leanthink.policies import Policy
    from leanthink.policies.budget import Budget


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What all prompts of a command are answered with."""

    policy: Policy
    budget: Budget | None
    sampling: Sampling
    chat: ChatOptions
    kv_cache_dtype: str = "auto"


def write_completions(
    path: Path,
    completions: Sequence[Completion],
    prompts: Sequence[str],
    tokenizer: Any,
    asked: Asked,
    *,
    model: Any,
    model_name: str,
) -> None:
    """One trace for each prompt, named prompt-1, prompt-2, ...; nothing is graded. A file that is there is replaced."""
    from leanthink.data.traces.trace import Trace, TraceWriter
    from leanthink.models.fingerprint import fingerprint
    from leanthink.models.prompt import encode_prompt
    from leanthink.policies import spec_of

    budget, sampling = asked.budget, asked.sampling
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
                policy=str(spec_of(asked.policy)),
                budget=None if budget is None else budget.record,
                seed=sampling.seed,
                temperature=sampling.temperature,
                prompt_ids=tuple(encode_prompt(tokenizer, index, prompt, asked.chat)),
                correct=None,
                fingerprint=identity,
                **{name: getattr(completion, name) for name in shared},
            )
            writer.write(trace)
