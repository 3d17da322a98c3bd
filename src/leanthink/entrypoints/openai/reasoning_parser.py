"""Splits growing text into thought and answer, so that what was sent joins to what the completion says."""

from __future__ import annotations

from leanthink.data.think_tags import ThinkTags, begins_with
from leanthink.engine.outputs import Completion, Step

USUAL_TAGS = ThinkTags(open_id=None, close_id=None)


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


class ReasoningParser:
    """The thought and the answer of one choice.

    Args:
        plain: nothing tells the two apart: all is answer.
        starts_in_answer: the prompt closed the thought.
        must_open: a text that does not begin with the opening tag is all answer.
        tags: that tell the two apart.
    """

    def __init__(
        self, *, plain: bool, starts_in_answer: bool, must_open: bool = False, tags: ThinkTags = USUAL_TAGS
    ) -> None:
        self._plain, self._in_answer, self._must_open, self._tags = plain, starts_in_answer, must_open, tags
        self._thought, self._answer = Trimmed(tag=tags.open), Trimmed()
        self._opening: str | None = "" if must_open else None  # until it has become the opening tag, or cannot
        self._closing = ""  # what the closing tag may begin in, until that is complete

    @property
    def is_undecided(self) -> bool:
        """Whether what came so far may still become the opening tag that tells thought from answer."""
        return self._opening is not None

    def in_thought(self, step: Step) -> bool:
        """Whether this token is told as thought; not while that is undecided."""
        return step.in_thought and not self._plain

    def thought_tokens(self, completion: Completion) -> int:
        """How many tokens of a finished choice are told as thought."""
        return 0 if self._is_plain(completion) else completion.thought_tokens

    def push(self, step: Step) -> tuple[str, str]:
        """What a token adds to thought and answer."""
        text = step.text
        if self._opening is not None:
            self._opening += text
            opens = begins_with(self._opening, self._tags.open)
            if opens is None:
                return "", ""
            text, self._opening = self._opening, None
            self._plain = not opens
        if self._plain:
            return "", self._thought.push(text)
        if self._in_answer:
            return "", self._answer.push(text)
        self._closing += text
        if step.in_thought:
            return self._thought.push(self._without_tag()), ""
        before, tag, after = self._closing.rpartition(self._tags.close)
        if not tag:
            return "", ""
        self._in_answer = True
        return self._thought.push(before), self._answer.push(after)

    def _without_tag(self) -> str:
        """What is not held back because a closing tag of several tokens may begin there."""
        longest = len(self._tags.close) - 1 if self._tags.in_text else 0
        sizes = (k for k in range(longest, 0, -1) if self._closing.endswith(self._tags.close[:k]))
        size = len(self._closing) - next(sizes, 0)
        piece, self._closing = self._closing[:size], self._closing[size:]
        return piece

    def rest(self, completion: Completion) -> tuple[str, str]:
        """What is missing at the end."""
        thought, answer = self.whole(completion)
        if self._is_plain(completion):
            return "", self._thought.rest(answer)
        return self._thought.rest(thought), self._answer.rest(answer)

    def whole(self, completion: Completion) -> tuple[str, str]:
        """Thought and answer of a finished choice."""
        plain = self._is_plain(completion)
        return ("", completion.thought) if plain else (completion.thought, completion.answer)

    def _is_plain(self, completion: Completion) -> bool:
        return self._plain or (self._must_open and not self._tags.must_close(completion.text))
