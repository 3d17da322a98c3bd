"""Shows a streamed text: as it comes into a file or a pipe; on a terminal with marks at what was evicted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from leanthink.engine.outputs import Completion, Step


def shows_marks(where: TextIO) -> bool:
    """Whether the stream shows what was evicted, and so has to be recorded."""
    from leanthink.entrypoints.marked_text import marks

    return marks(Console(file=where))


def show(steps: Iterator[Step], where: TextIO, *, tag: str | None) -> Completion:
    """Write the text of these steps; returns the whole. `tag` opens a thought; None: there may be none."""
    return _marked(steps, Console(file=where), tag) if shows_marks(where) else _plain(steps, where, tag)


def _plain(steps: Iterator[Step], where: TextIO, tag: str | None) -> Completion:
    """Each piece as it comes; on a terminal, where nobody reads it as data, with the tag that the prompt opened."""
    from leanthink.data.think_tags import begins_with
    from leanthink.entrypoints.marked_text import opening

    begun: str | None = None  # of a thought, while that may become the tag
    for index, step in enumerate(steps):
        text = step.text
        if index == 0 and where.isatty() and step.in_thought:
            begun = ""
        if tag is not None and begun is not None:
            begun += text
            if begins_with(begun, tag) is None and step.completion is None:
                continue
            text, begun = opening(begun, tag) + begun, None
        where.write(text)
        where.flush()
        if step.completion is not None:
            where.write("\n")
            return step.completion
    raise AssertionError("the last step carries the completion")


def _marked(steps: Iterator[Step], console: Console, tag: str | None) -> Completion:
    """The last lines while it streams, and the whole text when it ends, also by Ctrl-C."""
    from leanthink.entrypoints.marked_text import EVICTED, MarkedText

    text, evicts = MarkedText(tag=tag, marked=True), False

    def tail() -> Text:
        return text.tail(console, console.height - 1)

    try:
        with Live(console=console, get_renderable=tail, refresh_per_second=10, transient=True):
            for step in steps:
                text.push(step)
                evicts = evicts or step.eviction is not None
                if step.completion is not None:
                    return step.completion
    finally:
        console.print(text.show(), soft_wrap=True)
        if evicts:
            console.print(Text.assemble(("struck through", EVICTED), ": evicted from the cache"))
    raise AssertionError("the last step carries the completion")
