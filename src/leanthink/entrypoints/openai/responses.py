"""What is sent back: OpenAI's documents and the chunks of its streams, for chats and for plain completions."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from leanthink.data.think_tags import ThinkTags
from leanthink.engine.outputs import Completion, Step
from leanthink.engine.request import Request
from leanthink.entrypoints.openai.choices import ChatChoice, Choice, Document, TextChoice
from leanthink.entrypoints.openai.dispatcher import ChoiceUpdate
from leanthink.policies import spec_of

DONE = b"data: [DONE]\n\n"


def usage(requests: Sequence[Request], completions: Mapping[int, Completion], tags: ThinkTags) -> Document:
    """What a request cost: each prompt once, and everything of all choices together, which go by their numbers."""
    done = list(completions.values())
    prompts = {request.prompt_ids for request in requests}
    prompt_tokens, generated = sum(map(len, prompts)), sum(len(completion.token_ids) for completion in done)
    fewest_last = sorted(completions, key=lambda i: -completions[i].cached_tokens)
    cached = {requests[i].prompt_ids: completions[i].cached_tokens for i in fewest_last}  # for all choices of a prompt
    names = ("peak_slots", "kept_slots", "evictions", "peak_kv_bytes", "full_kv_bytes", "reserved_kv_bytes")
    thought = sum(done.thought_tokens for i, done in completions.items() if requests[i].has_thought(done.text, tags))
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": prompt_tokens + generated,
        "prompt_tokens_details": {"cached_tokens": sum(cached.values())},
        "completion_tokens_details": {"reasoning_tokens": thought},
        "kv": {name: sum(getattr(completion, name) for completion in done) for name in names},
    }


def event(document: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


class ResponseBuilder:
    """One HTTP request's answer, as one document or as a stream of chunks.

    Args:
        chat: whether it answers a chat.
        model: as clients know it.
        requests: one for each choice.
        tokenizer, tags: of the engine.
        kv_events: whether chunks tell of positions and evictions.
        with_usage: whether a stream ends with a chunk of usage.
    """

    def __init__(
        self,
        *,
        chat: bool,
        model: str,
        requests: Sequence[Request],
        tokenizer: Any,
        tags: ThinkTags,
        kv_events: bool,
        with_usage: bool,
    ) -> None:
        self._chat, self._requests, self._kv_events, self._with_usage = chat, requests, kv_events, with_usage
        self._tags = tags
        kind = ChatChoice if chat else TextChoice
        self._choices: list[Choice] = [kind(request, tokenizer, tags) for request in requests]
        self._generated = [0] * len(requests)
        self.id = ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12)
        self._head = {"created": int(time.time()), "model": model}
        self.completions: dict[int, Completion] = {}
        self.reasons: dict[int, str] = {}

    @property
    def usage(self) -> Document:
        """Of the choices that have finished."""
        return usage(self._requests, self.completions, self._tags)

    def document(self) -> Document:
        """Everything at once; every choice has finished."""
        choices = [
            {"index": i, **choice.whole(self.completions[i]), "finish_reason": self.reasons[i]}
            for i, choice in enumerate(self._choices)
        ]
        kind = "chat.completion" if self._chat else "text_completion"
        return {"id": self.id, "object": kind, **self._head, "choices": choices, "usage": self.usage}

    def note(self, updates: Iterable[ChoiceUpdate]) -> bool:
        """Take in what has finished; whether all has."""
        for update in updates:
            if update.completion is not None:
                self.completions[update.choice] = update.completion
                self.reasons[update.choice] = update.reason or update.completion.finish_reason
            elif update.reason is not None:
                self.reasons[update.choice] = update.reason
        return len(self.reasons) == len(self._choices)

    def opening(self) -> bytes:
        """What a stream begins with."""
        found = b""
        for i, choice in enumerate(self._choices):
            first, facts = choice.opening(), self._facts(i)
            if first is not None or facts:
                found += self._chunk(i, first or choice.closing(), facts)
        return found

    def chunks(self, updates: Sequence[ChoiceUpdate]) -> bytes:
        """What these updates add to a stream: one chunk for all tokens of a choice, where nothing more is wanted."""
        found = []
        for i in sorted({update.choice for update in updates}):
            own = [update for update in updates if update.choice == i]
            steps = [update.step for update in own if update.step is not None]
            choice = self._choices[i]
            if self._kv_events:
                for step in steps:
                    first, *more = choice.grown([step]) or [choice.closing()]
                    found += [self._chunk(i, first, self._events(i, step)), *(self._chunk(i, part) for part in more)]
            elif steps:
                found += [self._chunk(i, part) for part in choice.grown(steps)]
            if i in self.reasons:
                if i in self.completions:
                    found += [self._chunk(i, part) for part in choice.rest(self.completions[i])]
                found.append(self._chunk(i, choice.closing(), finish_reason=self.reasons[i]))
        return b"".join(found)

    def end(self) -> bytes:
        """What a stream ends with."""
        return (event(self._framed([]) | {"usage": self.usage}) if self._with_usage else b"") + DONE

    def _chunk(
        self, index: int, part: Document, leanthink: Document | None = None, finish_reason: str | None = None
    ) -> bytes:
        framed = self._framed([{"index": index, **part, "finish_reason": finish_reason}])
        if self._with_usage:
            framed["usage"] = None
        if leanthink:
            framed["leanthink"] = {"index": index, **leanthink}
        return event(framed)

    def _framed(self, choices: list[Document]) -> Document:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {"id": self.id, "object": kind, **self._head, "choices": choices}

    def _facts(self, index: int) -> Document | None:
        """What a viewer must know before the first token."""
        if not self._kv_events:
            return None
        request = self._requests[index]
        budget = request.budget
        return {
            "prompt_tokens": len(request.prompt_ids),
            "policy": str(spec_of(request.policy)),
            "budget": None if budget is None else budget.record,
            "horizons": list(request.policy.horizons),
        }

    def _events(self, index: int, step: Step) -> Document:
        """Where a token stands, and what was evicted when it was generated; in the words of a trace."""
        generated, prompt_tokens = self._generated[index], len(self._requests[index].prompt_ids)
        self._generated[index] += 1
        told: Document = {
            "token_id": step.token_id,
            "position": prompt_tokens + generated,
            "text": step.text,
            "in_thought": step.in_thought,
            "slots": step.slots,
            "full_slots": step.full_slots,
        }
        if step.eviction is not None:
            importance = [[position, *scores] for position, scores in step.eviction.importance.items()]
            told["eviction"] = {
                "evicted_at": generated,
                "positions": list(step.eviction.positions),
                "importance": [[position, *(round(score, 4) for score in scores)] for position, *scores in importance],
            }
        return told
