"""Target `bodies` of bench/fuzz.py: bodies of both endpoints, up to the requests of the engine."""

from __future__ import annotations

import json
from typing import Any

from fuzz_mutations import JSON_WORDS
from fuzz_target import Target, check_sentence, plain_json, texts

from leanthink.entrypoints.openai.error_responses import APIError
from leanthink.entrypoints.openai.protocol import Asked, ChatBody, TextBody
from leanthink.entrypoints.openai.request_bodies import parse
from leanthink.entrypoints.openai.request_parsing import RequestParser
from leanthink.entrypoints.openai.settings import Settings
from leanthink.models.loading import load
from leanthink.policies.budget import Budget

MESSAGE = {"role": "user", "content": "2 + 2"}
ANSWERED = {"role": "assistant", "content": None, "reasoning": "r", "refusal": "no"}
IN_PARTS = {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "b"}
ASKED = {"model": "tiny", "max_tokens": 5, "seed": 1, "temperature": 0.6, "top_p": 0.9, "stop": ["x"], "n": 1}
DOCUMENTS: tuple[Any, ...] = (
    {**ASKED, "messages": [MESSAGE]},
    {**ASKED, "messages": [MESSAGE, ANSWERED, IN_PARTS], "logprobs": True, "top_logprobs": 2},
    {"model": "tiny", "messages": [MESSAGE], "reasoning_effort": "none", "chat_template_kwargs": {"a": [1]}},
    {"model": "tiny", "messages": [MESSAGE], "stream": True, "stream_options": {"include_usage": True}},
    {**ASKED, "prompt": "a<think>b"},
    {**ASKED, "prompt": ["a", "b"], "policy": "window", "budget": 9, "recent_window": 2, "eviction_interval": 3},
    {**ASKED, "prompt": [1, 2], "logprobs": 2, "kv_events": True, "stream": True, "max_answer_slots": 4},
    {**ASKED, "prompt": [[1, 2], [3]], "user": "u", "tools": [], "response_format": {"type": "text"}},
)
CONTENT_TYPES = (b"application/json; charset=x\0", b"text/plain\0", b"application/x+json; a*=b''c\0")


def target() -> Target:
    """What stands before a NUL is the type of the body."""
    model, tokenizer = load("tiny")
    parser = RequestParser(model, tokenizer, Settings(name="tiny", budget=Budget(slots=64)), largest=2000)
    vocabulary = len(model.get_input_embeddings().weight)

    def run(data: bytes) -> None:
        head, nul, body = data.partition(b"\0")
        content_type, body = (head.decode("latin-1"), body) if nul else ("application/json", data)
        for kind in (ChatBody, TextBody):
            try:
                check(parser, vocabulary, kind, body, content_type)
            except APIError as refusal:
                check_refusal(refusal)

    names = {*ChatBody.model_fields, *TextBody.model_fields, *Asked.neutral}
    words = [json.dumps(name).encode() + b":" for name in sorted(names)]
    return Target(
        run=run,
        seeds=(*texts(DOCUMENTS), *(kind + next(texts(DOCUMENTS[:1])) for kind in CONTENT_TYPES)),
        words=(*words, *CONTENT_TYPES, *JSON_WORDS),
        unpack=plain_json,
    )


def check(
    parser: RequestParser, vocabulary: int, kind: type[ChatBody | TextBody], body: bytes, content_type: str
) -> None:
    """Its requests must fit the engine, and the body must be the same after it was written and read."""
    asked = parse(kind, body, content_type)
    for request in parser.parse(asked):
        assert request.bound <= parser.largest
        assert all(0 <= token < vocabulary for token in request.prompt_ids)
    again = parse(kind, written(asked), "application/json")
    assert written(again) == written(asked), "another body after it was written and read"


def check_refusal(refusal: APIError) -> None:
    """The client is at fault, and told so in a sentence."""
    assert 400 <= refusal.status < 500, refusal.status
    check_sentence(refusal)
    refusal.response()


def written(asked: Asked) -> bytes:
    """A body that asks for the same."""
    plain = asked.model_dump(exclude={"chat_template_kwargs"})  # which holds anything
    return json.dumps(plain, allow_nan=False).encode()
