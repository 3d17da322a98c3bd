"""Where the answer begins in the traces of a model that writes no think tags: at a text, or after a share of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from leanthink.data.think_tags import think_tags
from leanthink.data.traces.trace import Trace
from leanthink.engine.outputs import decode
from leanthink.utils.errors import UsageError

AnswerFrom: TypeAlias = str | float  # a text, or a share of the generated tokens


def as_answer_from(text: str) -> AnswerFrom:
    """What the command line says: a number is a share, all else is a text. Raises like `check_answer_from`."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    return check_answer_from(text if math.isnan(number) else number)


def check_answer_from(given: AnswerFrom) -> AnswerFrom:
    """The text or share itself. Raises UsageError for an empty text, or a share that is not between 0 and 1."""
    if not (given if isinstance(given, str) else 0 < given < 1):
        raise UsageError(
            f"the answer cannot begin from {given!r}: give a text such as \\boxed, or a share of the generated tokens "
            "above 0 and below 1, such as 0.9"
        )
    return given


def with_answers(traces: Sequence[Trace], answer_from: AnswerFrom, tokenizer: Any) -> list[Trace]:
    """The traces with the bound between thought and answer moved; those in which no answer begins are left out.

    Args:
        traces: in which nothing closes the thought: all that is generated is thought.
        answer_from: the answer begins at the last occurrence of this text, with the token that holds the first byte of
            it; or, if a number, after so large a share of the generated tokens, rounded.
        tokenizer: of the model that wrote the traces; not needed for a share.

    Raises:
        UsageError: a trace has an answer of its own, or the text of one is not what this tokenizer makes of its tokens.
    """
    closed = [trace.key for trace in traces if trace.answer_tokens]
    if closed:
        raise UsageError(
            f"{len(closed)} of {len(traces)} traces, the first {closed[0]!r}, have an answer of their own behind a "
            "closed thought: leave out answer_from"
        )
    if isinstance(answer_from, str):
        starts = _starts_of_text(traces, answer_from, tokenizer)
    else:
        starts = [round(answer_from * len(trace.token_ids)) for trace in traces]
    return [
        replace(trace, thought_tokens=start, answer_tokens=len(trace.token_ids) - start)
        for trace, start in zip(traces, starts, strict=True)
        if start < len(trace.token_ids)
    ]


def _starts_of_text(traces: Sequence[Trace], text: str, tokenizer: Any) -> list[int]:
    """How many tokens precede the last occurrence of a text in each trace; all of them where there is none."""
    if tokenizer is None:
        raise UsageError(f"where {text!r} begins among tokens takes the tokenizer: give backend=LoadedModel(...)")
    tags = think_tags(tokenizer)

    def decoded(trace: Trace, tokens: int) -> str:
        return decode(tokenizer, trace.token_ids[:tokens], tags)

    return [_start_of_text(trace, text, partial(decoded, trace)) for trace in traces]


def _start_of_text(trace: Trace, text: str, decoded: Callable[[int], str]) -> int:
    at, tokens = trace.text.rfind(text), len(trace.token_ids)
    if at < 0:
        return tokens
    if not decoded(tokens).startswith(trace.text):  # which ends before a stop string
        raise UsageError(
            f"the text of the trace {trace.key!r} is not what this tokenizer makes of its tokens: give the model that "
            "wrote it"
        )
    return _token_at(decoded, tokens, at)


def _token_at(decoded: Callable[[int], str], tokens: int, at: int) -> int:
    """Index of the token with the first byte of character `at` of a text; `decoded(n)` is what its first n tokens give.

    A character may be several tokens: where the first n end within one, replacement signs stand for it, and what they
    give is no beginning of the text.
    """
    text = decoded(tokens)
    # Beginnings of the text: of at most `at` characters, and of more. In between, `left` are not told yet.
    low, high, left = 0, tokens, range(1, tokens)
    while left:
        half = len(left) // 2
        middle = next((n for n in left[half:] if text.startswith(decoded(n))), None)
        if middle is None:
            left = left[:half]
        elif len(decoded(middle)) <= at:
            low, left = middle, range(middle + 1, left.stop)
        else:
            high, left = middle, left[:half]
    return max(n for n in range(low, high) if n == low or len(decoded(n)) <= at)
