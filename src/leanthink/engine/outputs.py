"""What a finished request hands back, and how its tokens become text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from leanthink.data.think_tags import ThinkTags
from leanthink.data.traces.token_scores import Scores
from leanthink.utils.errors import RequestFailed

FinishReason = Literal["stop", "length"]
TopLogprobs = tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One finished request.

    Attributes:
        text: all that was written, tags included, without the end token and up to the stop string.
        thought: the text before `</think>`, or whatever tag closes thoughts here, stripped; everything where that tag
            never came.
        answer: the text after it, stripped.
        token_ids: every generated token, the end token included.
        prompt_tokens: tokens of the prompt.
        cached_tokens: those of them that were copied from another prompt.
        thought_tokens: generated tokens before `</think>`; before the last token of a tag that is several.
        answer_tokens: generated tokens from that one on.
        finish_reason: "stop" at an end token or stop string, "length" at `max_new_tokens`, at the end of the
            answer's slots or of the context.
        peak_slots: slots held at the fullest moment, prompt included.
        kept_slots: slots held at the end, prompt included.
        slot_steps: the slots held at each decoding step, prompt included, added up over the steps: what the request
            cost in memory times steps. The slot of a step's own token counts, and so do those evicted after it.
        evictions: how many times slots were evicted.
        peak_kv_bytes: bytes of the keys and values in `peak_slots`. Sliding windows hold no slots and are not counted.
        full_kv_bytes: bytes that a full cache would have held at the end in their place.
        reserved_kv_bytes: bytes that were reserved for this request's row.
        logprobs: for each generated token its log-probability; None unless the sampling asked for it.
        top_logprobs: for each generated token the likeliest tokens, as (token id, log-probability), likeliest first.
        evicted_at: for each generated token the number of tokens generated when its slot was evicted, None for a
            slot that stayed; only with record=True, and only for a policy that keeps one set for all layers and heads.
        token_chars: for each generated token the number of characters of `text` that it adds; only with record=True.
        scores: the token scores of the generated tokens; only with record=True and a policy that has them.
    """

    text: str
    thought: str
    answer: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    thought_tokens: int
    answer_tokens: int
    finish_reason: FinishReason
    peak_slots: int
    kept_slots: int
    slot_steps: int
    evictions: int
    peak_kv_bytes: int
    full_kv_bytes: int
    reserved_kv_bytes: int
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[TopLogprobs, ...] | None = None
    evicted_at: tuple[int | None, ...] | None = None
    token_chars: tuple[int, ...] | None = None
    scores: Scores | None = None
    cached_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True)
class Eviction:
    """What one eviction took from a recorded request.

    Attributes:
        positions: of the tokens that lost their slots, ascending; the prompt's come first in the sequence.
        importance: by position, what was predicted of each token that an eviction ranks for the first time: one number
            for each score dimension of the policy, higher is more important; empty for one without a predictor.
    """

    positions: tuple[int, ...]
    importance: Mapping[int, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One token of a streamed request.

    Attributes:
        token_id: the token.
        text: what it adds to the text: "" while a character or a possible stop string is incomplete.
        in_thought: whether it belongs to the thought.
        slots: slots that the request holds now, prompt included.
        full_slots: slots that a full cache would hold now.
        eviction: what was evicted when this token was generated, before it has a slot; only of a recorded request.
        logprob: its log-probability; None unless the sampling asked for it.
        top_logprobs: the likeliest tokens in its place, as (token id, log-probability), likeliest first.
        completion: the whole result, on the last step.
    """

    token_id: int
    text: str
    in_thought: bool
    slots: int
    full_slots: int
    eviction: Eviction | None = None
    logprob: float | None = None
    top_logprobs: TopLogprobs | None = None
    completion: Completion | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What one step brought, by the ids of requests.

    Attributes:
        steps: the new token of each that is streamed.
        finished: the completion of each that finished.
        failed: the error of each that ended without one, such as NaN among its logits; the others go on as if it had
            not been there.
    """

    steps: dict[int, Step] = field(default_factory=dict)
    finished: dict[int, Completion] = field(default_factory=dict)
    failed: dict[int, RequestFailed] = field(default_factory=dict)


def decode(tokenizer: Any, token_ids: Sequence[int], tags: ThinkTags) -> str:
    """Text of these tokens: thought tags as written, all other special tokens left out."""
    hidden = set(tokenizer.all_special_ids) - {tags.open_id, tags.close_id}
    shown = [token for token in token_ids if token not in hidden]
    text: str = tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def truncate_at_stop(text: str, stop: Sequence[str], start: int = 0) -> str:
    """The text before the first stop string in what follows its first `start` characters."""
    found = (text.find(end, start) for end in stop)
    return text[: min((at for at in found if at >= 0), default=len(text))]


class TextStream:
    """Turns one request's growing tokens into pieces of text that join to its whole text."""

    def __init__(self, tokenizer: Any, tags: ThinkTags, stop: tuple[str, ...]) -> None:
        self._tokenizer, self._tags, self._stop = tokenizer, tags, stop
        self._ids: list[int] = []
        self._first, self._ready = 0, 0  # tokens [first, ready) were shown; they are the context of the next ones
        self._held = ""  # decoded, and not yet shown: a stop string may begin here
        self._thought: str | None = None  # the end of what was shown of a thought that no stop string ends

    def push(self, token_id: int, *, last: bool, searched: bool | None = True) -> str:
        """The text that this token completes; the last call gives what is left, cut at a stop string.

        `searched`: False while it belongs to a thought in which no stop string counts; None while nobody knows.
        """
        self._ids.append(token_id)
        shown = decode(self._tokenizer, self._ids[self._first : self._ready], self._tags)
        text = decode(self._tokenizer, self._ids[self._first :], self._tags)
        if last or not text.endswith("\ufffd"):  # the sign of a character whose last bytes are still to come
            self._held += text[len(shown) :]
            self._first, self._ready = self._ready, len(self._ids)
        if searched is None and not last:
            return ""
        if searched is False:
            return self._pass(len(self._held))
        if self._thought is None:
            return self._search(last=last)
        before, tag, _ = (self._thought + self._held).partition(self._tags.close)  # which may have begun before
        if not tag and not last:
            return ""
        thought = self._pass(max(0, len(before + tag) - len(self._thought)))
        self._thought = None
        return thought + self._search(last=last)

    def _pass(self, characters: int) -> str:
        """So much of what is held, shown as it is."""
        piece, self._held = self._held[:characters], self._held[characters:]
        self._thought = ((self._thought or "") + piece)[-len(self._tags.close) :]
        return piece

    def _search(self, *, last: bool) -> str:
        """What can be shown of the text in which stop strings count."""
        if last or any(end in self._held for end in self._stop):
            piece, self._held = truncate_at_stop(self._held, self._stop), ""
            return piece
        starts = (k for end in self._stop for k in range(len(end), 0, -1) if self._held.endswith(end[:k]))
        keep = max(starts, default=0)
        piece, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return piece


def token_chars(tokenizer: Any, token_ids: Sequence[int], text: str, tags: ThinkTags) -> tuple[int, ...]:
    """How many characters of `text` each token adds: 0 for the first bytes of a character, or behind a stop string."""
    stream, left, counts = TextStream(tokenizer, tags, ()), len(text), []
    for index, token in enumerate(token_ids):
        piece = stream.push(token, last=index == len(token_ids) - 1)
        counts.append(min(left, len(piece)))
        left -= counts[-1]
    if counts:
        counts[-1] += left  # bytes that are no text may decode to more signs together than in pieces
    return tuple(counts)
