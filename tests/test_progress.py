"""How far a long command is: lines where there is no terminal, a bar where there is one."""

from __future__ import annotations

import sys

import pytest

from leanthink.cli import progress
from leanthink.cli.progress import LINES, ProgressBar


def test_without_a_terminal_there_are_few_lines_and_an_estimate_of_what_is_left(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 100_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with ProgressBar(400) as bar:
        bar.skip("b/full", 200)
        for _ in range(200):
            bar.advance("b/horizon")
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) <= LINES
    assert lines[0] == "leanthink: b/full: 200 of 400", "nothing was done now that an estimate could be made of"
    assert lines[1] == "leanthink: b/horizon: 220 of 400, about 2 min left"
    assert lines[-1] == "leanthink: b/horizon: 400 of 400"


def test_on_a_terminal_there_is_one_bar_and_no_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with ProgressBar(3) as bar:
        for _ in range(3):
            bar.advance("b/full")
    assert "leanthink:" not in capfd.readouterr().err
