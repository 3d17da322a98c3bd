"""Splits growing text into thought and answer, so that what was sent joins to what the completion says."""

from __future__ import annotations

from leanthink.completion import Completion, Step
from leanthink.load import CLOSE_TAG, OPEN_TAG


class Trimmed:
    """Text without the blanks at its ends: those at its end are held back until something follows."""

    def __init__(self, *, tag: str = "") -> None:
        self.sent = 0  # characters
        self._tag, self._held = tag, ""

    def push(self, text: str) -> str:
        """What can be sent now. A `tag` that the text begins with is dropped, and the blanks around it."""
        self._held += text
        if not self.sent:
            self._held = self._held.lstrip()
            if self._tag and self._tag.startswith(self._held):
                return ""  # what is there may become the tag
            if self._tag and self._held.startswith(self._tag):
                self._held, self._tag = self._held.removeprefix(self._tag).lstrip(), ""
        piece = self._held.rstrip()
        self._held = self._held[len(piece) :]
        self.sent += len(piece)
        return piece

    def rest(self, whole: str) -> str:
        """What is missing of the whole text."""
        return whole[self.sent :]


class Parts:
    """The thought and the answer of one choice.

    Args:
        plain: the tokenizer has no `</think>`, so nothing tells the two apart: all is answer.
        starts_in_answer: the prompt closed the thought.
    """

    def __init__(self, *, plain: bool, starts_in_answer: bool) -> None:
        self._plain, self._in_answer = plain, starts_in_answer
        self._thought, self._answer = Trimmed(tag=OPEN_TAG), Trimmed()
        self._closing = ""  # from the token `</think>` on, until its text is complete

    def push(self, step: Step) -> tuple[str, str]:
        """What a token adds to thought and answer."""
        if self._plain:
            return "", self._thought.push(step.text)
        if self._in_answer:
            return "", self._answer.push(step.text)
        if step.in_thought:
            return self._thought.push(step.text), ""
        self._closing += step.text
        before, tag, after = self._closing.rpartition(CLOSE_TAG)
        if not tag:
            return "", ""
        self._in_answer = True
        return self._thought.push(before), self._answer.push(after)

    def rest(self, completion: Completion) -> tuple[str, str]:
        """What is missing at the end."""
        thought, answer = self.whole(completion)
        if self._plain:
            return "", self._thought.rest(answer)
        return self._thought.rest(thought), self._answer.rest(answer)

    def whole(self, completion: Completion) -> tuple[str, str]:
        """Thought and answer of a finished choice."""
        return ("", completion.thought) if self._plain else (completion.thought, completion.answer)
