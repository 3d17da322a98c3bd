"""The line that `leanthink generate` ends with: what was written, what ended it, and what was held."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leanthink.engine.outputs import Completion
    from leanthink.engine.sampling import Sampling
    from leanthink.policies.budget import Budget


def summary(completion: Completion, sampling: Sampling, budget: Budget | None, context: int) -> str:
    """One line about a completion of a request with this sampling and budget; `context` is the model's, in tokens."""
    full_slots = completion.prompt_tokens + len(completion.token_ids) - 1
    return (
        f"{completion.thought_tokens} tokens of thought, {completion.answer_tokens} of answer"
        f"{_end(completion, sampling, budget, context)}; "
        f"{completion.peak_slots} slots held at most ({_parts(completion, budget)}; "
        f"{completion.peak_kv_bytes / 1e6:.1f} MB), "
        f"{full_slots} with a full cache ({completion.full_kv_bytes / 1e6:.1f} MB)"
    )


def _end(completion: Completion, sampling: Sampling, budget: Budget | None, context: int) -> str:
    """Which bound cut it off; nothing where it ended by itself."""
    if completion.finish_reason == "stop":
        return ""
    if budget is not None and completion.answer_tokens >= budget.max_answer_slots:
        return f", cut off at the {budget.max_answer_slots} slots of the answer (--max-answer-slots)"
    if len(completion.token_ids) >= sampling.max_new_tokens:
        return f", cut off at {sampling.max_new_tokens} tokens (--max-new-tokens)"
    return f", cut off at the model's context of {context} tokens"


def _parts(completion: Completion, budget: Budget | None) -> str:
    """What the most slots held are of: the sum of prompt, thought and answer at that moment.

    They were held either at the end or, where the answer took less than the last eviction freed, in the thought. The
    last token is never fed, so it has no slot.
    """
    held = completion.peak_slots - completion.prompt_tokens
    answer = max(0, completion.answer_tokens - 1) if completion.peak_slots == completion.kept_slots else 0
    thought = f"{held - answer} thought"
    if budget is not None and held - answer == budget.slots + budget.eviction_interval:
        thought = f"{budget.slots} + {budget.eviction_interval} thought"
    return f"{completion.prompt_tokens} prompt + {thought} + {answer} answer"
