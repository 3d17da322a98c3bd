"""What the terminal shows of a streamed text: the opened thought, and what was evicted struck through."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from command_line import on_terminal
from leanthink.engine.outputs import Eviction, Step
from leanthink.entrypoints.cli import show as module
from leanthink.entrypoints.marked_text import MarkedText, marks, opening

STRUCK = re.compile(r"\x1b\[2;9m(.*?)\x1b\[0m", re.DOTALL)
PROMPT_TOKENS = 3


def steps(*pieces: str, evicted: dict[int, tuple[int, ...]] | None = None) -> Iterator[Step]:
    """One step for each piece; `evicted` says which positions go when."""
    for index, piece in enumerate(pieces):
        gone = (evicted or {}).get(index)
        completion: Any = object() if index == len(pieces) - 1 else None
        yield Step(
            token_id=0,
            text=piece,
            in_thought=True,
            slots=1,
            full_slots=PROMPT_TOKENS + index,
            eviction=None if gone is None else Eviction(positions=gone, importance={}),
            completion=completion,
        )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def test_what_was_evicted_is_struck_through_and_the_prompts_slots_are_not_counted() -> None:
    text = MarkedText(tag="<think>", marked=True)
    for step in steps("a", "b", "c", "d", evicted={2: (1, 4), 3: (5,)}):
        text.push(step)
    shown = text.show()
    assert shown.plain == "<think>\nabcd"
    assert [(shown.plain[span.start : span.end], str(span.style)) for span in shown.spans] == [("bc", "dim strike")]


@pytest.mark.parametrize(
    ("first", "shown"), [("a", "<think>\n"), ("\na", "<think>"), ("<think>\na", ""), ("\n<think>", "")]
)
def test_a_tag_that_the_model_writes_itself_is_not_opened_twice(first: str, shown: str) -> None:
    assert opening(first, "<think>") == shown


def test_the_tail_is_the_last_lines_as_wide_as_the_terminal() -> None:
    console = Console(file=io.StringIO(), width=10, height=5)
    text = MarkedText(tag="<think>", marked=True)
    for step in steps("0123456789ab\n", "second\n", *"third line is long"):
        text.push(step)
    assert text.tail(console, 3).plain.split("\n") == ["second", "third line", "is long"]
    assert text.tail(console, 50).plain.split("\n")[0] == "<think>"


def test_on_a_terminal_the_whole_text_stays_with_its_marks(terminal: Terminal) -> None:
    assert module.shows_marks(terminal)
    module.show(steps("a", "b", "c\n", evicted={2: (4,)}), terminal, tag="<think>")
    last = terminal.getvalue().rpartition("<think>")[2]
    assert STRUCK.findall(last) == ["b", "struck through"]


def test_a_text_that_is_broken_off_stays_as_far_as_it_came(terminal: Terminal) -> None:
    def broken() -> Iterator[Step]:
        yield from list(steps("first\n", "second\n", "x"))[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        module.show(broken(), terminal, tag="<think>")
    assert terminal.getvalue().endswith("<think>\nfirst\nsecond\n")


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_that_wants_none_gets_no_escape(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert not module.shows_marks(terminal)
    module.show(steps("", "a", "b", evicted={2: (3,)}), terminal, tag="<think>")
    assert terminal.getvalue() == "<think>\nab\n"


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (("[", "THINK", "]", "a"), "[THINK]a"),
        (("[", "T", "a"), "[THINK]\n[Ta"),
        (("\n", "a"), "[THINK]\na"),
        (("",), ""),
    ],
)
def test_a_tag_of_several_tokens_is_not_opened_twice_either(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, pieces: tuple[str, ...], shown: str
) -> None:
    marked = MarkedText(tag="[THINK]", marked=False)
    for step in steps(*pieces):
        marked.push(step)
    monkeypatch.setenv("NO_COLOR", "1")
    module.show(steps(*pieces), terminal, tag="[THINK]")
    assert (marked.show().plain, terminal.getvalue()) == (shown, f"{shown}\n")


def test_a_model_without_tags_opens_nothing(terminal: Terminal) -> None:
    module.show(steps("a", "b"), terminal, tag=None)
    assert "<think>" not in terminal.getvalue()


def test_a_pipe_gets_the_text_alone() -> None:
    pipe = io.StringIO()
    assert not module.shows_marks(pipe)
    module.show(steps("a", "b"), pipe, tag="<think>")
    assert pipe.getvalue() == "ab\n"
    assert not marks(Console(file=pipe))


@pytest.mark.slow
def test_generate_on_a_real_terminal_strikes_through_what_it_forgot() -> None:
    done = on_terminal(
        "generate", "What is 48 times 37?", "--budget", "48", "--recent-window", "16", "--eviction-interval", "16"
    )
    assert done.code == 0, done.shown
    last = done.shown.rpartition("<think>\n")[2]
    assert len(STRUCK.findall(last)) > 10
    plain = re.sub(r"\x1b\[[0-9;]*m", "", last)
    assert "</think>" in plain
    assert plain.count("evicted from the cache") == 1
    assert "tokens of thought" in plain
