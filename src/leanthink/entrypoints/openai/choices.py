"""One choice as it is told: the message of a chat, or the text of a plain completion, whole or as it grows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from leanthink.data.think_tags import ThinkTags
from leanthink.engine.outputs import Completion, Step, TextStream, TopLogprobs
from leanthink.engine.request import Request
from leanthink.entrypoints.openai.reasoning_parser import ReasoningParser
from leanthink.entrypoints.openai.token_texts import TokenTexts

Document = dict[str, Any]
THOUGHT = ("reasoning_content", "reasoning")  # the names that clients know it by, the elder first
ANSWER = ("content",)
LEAST_LOGPROB = -9999.0  # JSON has no infinity


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
        self._reasoning = ReasoningParser(
            plain=not tags.closes, starts_in_answer=request.starts_in_answer, must_open=request.must_open, tags=tags
        )
        self._tokens = TokenTexts(tokenizer)
        self._undecided: list[Step] = []  # tokens of which nobody knows yet whether they are thought

    def whole(self, completion: Completion) -> Document:
        """The message."""
        thought, answer = self._reasoning.whole(completion)
        message = {"role": "assistant", "content": answer, **dict.fromkeys(THOUGHT, thought or None)}
        return {"message": message, "logprobs": self._all_logprobs(completion)}

    def _all_logprobs(self, completion: Completion) -> Document | None:
        if completion.logprobs is None or completion.top_logprobs is None:
            return None
        told = zip(completion.token_ids, completion.logprobs, completion.top_logprobs, strict=True)
        entries = [self._entry(*token) for token in told]
        ends = self._reasoning.thought_tokens(completion)
        return {"content": entries[ends:], "reasoning_content": entries[:ends]}

    def opening(self) -> Document:
        """The role."""
        return {"delta": {"role": "assistant", "content": ""}}

    def grown(self, steps: Sequence[Step]) -> list[Document]:
        """At most one chunk of thought and one of answer."""
        pieces = [self._reasoning.push(step) for step in steps]
        texts = ["".join(side) for side in zip(*pieces, strict=True)]
        told, self._undecided = [*self._undecided, *steps], []
        if self._reasoning.is_undecided:
            self._undecided = told
            return []
        chunks = []
        for names, text, in_thought in ((THOUGHT, texts[0], True), (ANSWER, texts[1], False)):
            own = [step for step in told if self._reasoning.in_thought(step) == in_thought and step.logprob is not None]
            if text or own:
                chunks.append({"delta": dict.fromkeys(names, text) if text else {}} | self._logprobs(names[0], own))
        return chunks

    def _logprobs(self, name: str, steps: Sequence[Step]) -> Document:
        told = [(step.token_id, step.logprob, step.top_logprobs or ()) for step in steps if step.logprob is not None]
        return {"logprobs": {name: [self._entry(*token) for token in told]}} if told else {}

    def _entry(self, token_id: int, logprob: float, likeliest: TopLogprobs) -> Document:
        alternatives = [self._pair(other, value) for other, value in likeliest]
        return {**self._pair(token_id, logprob), "top_logprobs": alternatives}

    def _pair(self, token_id: int, logprob: float) -> Document:
        text, utf8, _ = self._tokens[token_id]
        return {
            "token": text,
            "logprob": max(logprob, LEAST_LOGPROB),
            "bytes": None if utf8 is None else list(utf8),
        }

    def rest(self, completion: Completion) -> list[Document]:
        """What was held back of thought and answer."""
        both = zip((THOUGHT, ANSWER), self._reasoning.rest(completion), strict=True)
        chunks = [{"delta": dict.fromkeys(names, text)} for names, text in both if text]
        short = self._logprobs(ANSWER[0], self._undecided)  # a text that ended before it could open a thought
        return [{"delta": {}} | short, *chunks] if short else chunks

    def closing(self) -> Document:
        """Nothing."""
        return {"delta": {}}


class TextChoice(Choice):
    """Text as the model wrote it, thought tags included."""

    def __init__(self, request: Request, tokenizer: Any, tags: ThinkTags) -> None:
        self._tokens, self._sent = TokenTexts(tokenizer), 0
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
        return {
            "tokens": [self._name(token_id) for token_id, _, _ in told],
            "token_logprobs": [max(logprob, LEAST_LOGPROB) for _, logprob, _ in told],
            "top_logprobs": [self._alternatives(likeliest) for _, _, likeliest in told],
            "text_offset": list(offsets),
        }

    def _name(self, token_id: int) -> str:
        """A token's text, or its bytes where they are no text alone."""
        text, utf8, is_whole = self._tokens[token_id]
        return text if is_whole or utf8 is None else f"bytes:{text}"

    def _alternatives(self, likeliest: TopLogprobs) -> dict[str, float]:
        """Log-probabilities by name; of several tokens of one name, all but the likeliest go by their ids."""
        found: dict[str, float] = {}
        for token_id, logprob in likeliest:
            name = self._name(token_id)
            found[f"token_id:{token_id}" if name in found else name] = max(logprob, LEAST_LOGPROB)
        return found

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
