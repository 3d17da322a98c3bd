"""A streamed text as a terminal shows it: the thought is opened, and what was evicted is struck through."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.text import Text

from leanthink.data.think_tags import begins_with
from leanthink.engine.outputs import Step

EVICTED = "dim strike"


def marks(console: Console) -> bool:
    """Whether marks can be seen: on a terminal, unless NO_COLOR asks for plain text."""
    return console.is_terminal and not console.is_dumb_terminal and not console.no_color


def opening(first_text: str, tag: str) -> str:
    """What to show before a thought that the prompt has opened; nothing where the model writes the tag itself."""
    if not first_text or begins_with(first_text, tag):
        return ""
    return tag if first_text.startswith("\n") else f"{tag}\n"


class MarkedText:
    """The text of one recorded request so far, and which of its tokens are evicted.

    Args:
        tag: opens a thought, and is shown where what is streamed begins inside one; None: it never is.
        marked: whether evicted tokens are struck through.
    """

    def __init__(self, *, tag: str | None, marked: bool) -> None:
        self._tag, self._marked = tag, marked
        self._pieces: list[str] = []  # one for each token
        self._evicted: set[int] = set()  # indices into them
        self._prompt_tokens = 0

    def push(self, step: Step) -> None:
        """Add a token, and note what was evicted for it."""
        if not self._pieces:
            self._prompt_tokens = step.full_slots  # the first token has no slot yet
            self._tag = self._tag if step.in_thought else None
        self._pieces.append(step.text)
        if step.eviction is not None:
            first = self._prompt_tokens
            self._evicted.update(at - first for at in step.eviction.positions if at >= first)

    def show(self) -> Text:
        """All of it."""
        shown = Text(opening("".join(self._pieces), self._tag) if self._tag else "")
        self._append(shown, 0)
        shown.rstrip()
        return shown

    def tail(self, console: Console, lines: int) -> Text:
        """Its last lines, as wide as the terminal."""
        first, room = len(self._pieces), lines * console.width
        while first and room > 0:
            first -= 1
            room -= len(self._pieces[first])
        if first == 0:
            shown = self.show()
        else:
            shown = Text()
            self._append(shown, first)
        return Text("\n").join(shown.wrap(console, console.width)[-lines:])

    def _append(self, shown: Text, first: int) -> None:
        """The tokens from `first` on."""
        for evicted, group in groupby(range(first, len(self._pieces)), key=self._evicted.__contains__):
            style = EVICTED if evicted and self._marked else ""
            shown.append("".join(self._pieces[index] for index in group), style)
