"""One choice as it is told: the message of a chat, or the text of a plain completion, whole or as it grows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from leanthink.completion import Completion, Step, TextStream, TopLogprobs
from leanthink.request import Request
from leanthink.serve.parts import Parts
from leanthink.tags import ThinkTags

Document = dict[str, Any]


class Tokens:
    """How single tokens are told in log-probabilities."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def text(self, token_id: int) -> str:
        """The token's own text; a piece of a character shows as the replacement sign."""
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def entry(self, token_id: int, logprob: float, likeliest: TopLogprobs = ()) -> Document:
        """One token of a chat's log-probabilities."""
        alternatives = [self._pair(other, value) for other, value in likeliest]
        return {**self._pair(token_id, logprob), "top_logprobs": alternatives}

    def _pair(self, token_id: int, logprob: float) -> Document:
        text = self.text(token_id)
        in_bytes = None if "\ufffd" in text else list(text.encode())
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": in_bytes}


class Choice(Protocol):
    """One choice as one of the two endpoints tells it."""

    @abstractmethod
    def whole(self, completion: Completion) -> Document:
        """The choice of a document, without index and finish reason."""

    @abstractmethod
    def opening(self) -> Document | None:
        """What a stream begins with, if with anything."""

    @abstractmethod
    def grown(self, steps: Sequence[Step]) -> list[Document]:
        """What these tokens add, as chunks."""

    @abstractmethod
    def rest(self, completion: Completion) -> list[Document]:
        """What is missing at the end, as chunks."""

    @abstractmethod
    def closing(self) -> Document:
        """What the last chunk carries beside its finish reason."""


class ChatChoice(Choice):
    """A message: the thought in `reasoning_content`, the answer in `content`."""

    def __init__(self, request: Request, tokenizer: Any, tags: ThinkTags) -> None:
        self._parts = Parts(
            plain=not tags.closes, starts_in_answer=request.starts_in_answer, must_open=request.must_open, tags=tags
        )
        self._tokens = Tokens(tokenizer)

    def whole(self, completion: Completion) -> Document:
        """The message."""
        thought, answer = self._parts.whole(completion)
        message = {"role": "assistant", "content": answer, "reasoning_content": thought or None}
        return {"message": message, "logprobs": self._all_logprobs(completion)}

    def _all_logprobs(self, completion: Completion) -> Document | None:
        if completion.logprobs is None or completion.top_logprobs is None:
            return None
        told = zip(completion.token_ids, completion.logprobs, completion.top_logprobs, strict=True)
        entries = [self._tokens.entry(*token) for token in told]
        ends = completion.thought_tokens
        return {"content": entries[ends:], "reasoning_content": entries[:ends]}

    def opening(self) -> Document:
        """The role."""
        return {"delta": {"role": "assistant", "content": ""}}

    def grown(self, steps: Sequence[Step]) -> list[Document]:
        """At most one chunk of thought and one of answer."""
        pieces = [self._parts.push(step) for step in steps]
        texts = ["".join(side) for side in zip(*pieces, strict=True)]
        chunks = []
        for name, text, in_thought in (("reasoning_content", texts[0], True), ("content", texts[1], False)):
            own = [step for step in steps if step.in_thought == in_thought and step.logprob is not None]
            if text or own:
                chunks.append({"delta": {name: text} if text else {}} | self._logprobs(name, own))
        return chunks

    def _logprobs(self, name: str, steps: Sequence[Step]) -> Document:
        told = [(step.token_id, step.logprob, step.top_logprobs or ()) for step in steps if step.logprob is not None]
        return {"logprobs": {name: [self._tokens.entry(*token) for token in told]}} if told else {}

    def rest(self, completion: Completion) -> list[Document]:
        """What was held back of thought and answer."""
        both = zip(("reasoning_content", "content"), self._parts.rest(completion), strict=True)
        return [{"delta": {name: text}} for name, text in both if text]

    def closing(self) -> Document:
        """Nothing."""
        return {"delta": {}}


class TextChoice(Choice):
    """Text as the model wrote it, thought tags included."""

    def __init__(self, request: Request, tokenizer: Any, tags: ThinkTags) -> None:
        self._tokens, self._sent = Tokens(tokenizer), 0
        self._again = TextStream(tokenizer, tags, request.sampling.stop)

    def whole(self, completion: Completion) -> Document:
        """The text."""
        if completion.logprobs is None or completion.top_logprobs is None:
            return {"text": completion.text, "logprobs": None}
        told = zip(completion.token_ids, completion.logprobs, completion.top_logprobs, strict=True)
        last, offsets = len(completion.token_ids) - 1, [0]
        for place, token in enumerate(completion.token_ids):
            offsets.append(offsets[-1] + len(self._again.push(token, last=place == last)))
        return {"text": completion.text, "logprobs": self._logprobs(list(told), offsets[:-1])}

    def _logprobs(self, told: Sequence[tuple[int, float, TopLogprobs]], offsets: Sequence[int]) -> Document:
        entries = [self._tokens.entry(*token) for token in told]
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [
                {other["token"]: other["logprob"] for other in reversed(entry["top_logprobs"])} for entry in entries
            ],
            "text_offset": list(offsets),
        }

    def opening(self) -> None:
        """Nothing."""

    def grown(self, steps: Sequence[Step]) -> list[Document]:
        """One chunk, if there is text or a log-probability."""
        told, offsets, text = [], [], ""
        for step in steps:
            if step.logprob is not None:
                told.append((step.token_id, step.logprob, step.top_logprobs or ()))
                offsets.append(self._sent + len(text))
            text += step.text
        self._sent += len(text)
        return [{"text": text, "logprobs": self._logprobs(told, offsets) if told else None}] if text or told else []

    def rest(self, completion: Completion) -> list[Document]:
        """What was held back."""
        text = completion.text[self._sent :]
        return [{"text": text, "logprobs": None}] if text else []

    def closing(self) -> Document:
        """No text."""
        return {"text": "", "logprobs": None}
