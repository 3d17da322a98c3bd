"""How far a long command is: lines where there is no terminal, a bar where there is one."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from command_line import on_terminal
from leanthink.entrypoints.cli import progress
from leanthink.entrypoints.cli.progress import ProgressBar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, which the test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_is_that_of_what_is_done_now(clock: list[float]) -> None:
    bar = ProgressBar(400)
    bar.skip("b/full", 200)
    assert bar.line() == "b/full: 200 of 400", "nothing was done now that an estimate could be made of"
    clock[0] += 7
    assert bar.line() == "b/full: 200 of 400, 7 s so far"
    clock[0] -= 7
    for _ in range(20):
        clock[0] += 10
        bar.advance("b/horizon")
    assert bar.line() == "b/horizon: 220 of 400, about 30 min left"
    clock[0] += 10 * 60
    assert bar.left() == "about 20 min left", "it counts down between two units"
    for _ in range(180):
        bar.advance("b/horizon")
    assert bar.line() == "b/horizon: 400 of 400"


def test_a_run_that_goes_on_estimates_by_its_own_units(clock: list[float]) -> None:
    bar = ProgressBar(100)
    clock[0] += 10
    bar.update("traces", 51, 100)
    assert bar.left() == "about 8 min left", "one took ten seconds, and 49 are left"
    bar.update("traces", 60, 100)
    assert bar.left() == "about 40 s left"


def test_another_total_is_another_count(clock: list[float]) -> None:
    bar = ProgressBar()
    bar.update("traces read", 8, 8)
    clock[0] = 1000.0
    bar.update("training steps", 1, 1001)
    clock[0] = 1010.0
    bar.update("training steps", 101, 1001)
    assert bar.line() == "training steps: 101 of 1001, about 2 min left"


def test_fewer_done_is_another_count_of_the_same_total(clock: list[float]) -> None:
    bar = ProgressBar()
    bar.update("traces", 100, 100)
    clock[0] = 1000.0
    bar.update("labels", 1, 100)
    clock[0] = 1009.0
    bar.update("labels", 10, 100)
    assert bar.line() == "labels: 10 of 100, about 2 min left"


def test_where_units_differ_the_share_of_the_work_tells_the_time_left(clock: list[float]) -> None:
    bar = ProgressBar()
    bar.update("parts, roofline", 0, 9, share=0.0)
    assert bar.line() == "parts, roofline: 0 of 9"
    clock[0] = 20.0
    bar.update("parts, cpu", 8, 9, share=0.25)
    assert bar.line() == "parts, cpu: 8 of 9, about 60 s left"


def test_without_a_terminal_a_line_comes_now_and_then_also_while_nothing_is_finished(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "GAP_SECONDS", 0.1)
    with ProgressBar(3) as bar:
        bar.advance("a")
        time.sleep(0.35)
        for _ in range(2):
            bar.advance("a")
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert 2 <= len(lines) <= 4
    assert all(line.startswith("leanthink: a: 1 of 3") for line in lines[:-1])
    assert lines[-1] == "leanthink: a: 3 of 3"


def test_thousands_of_units_are_not_thousands_of_lines(capfd: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(5000) as bar:
        for _ in range(5000):
            bar.advance("a")
    assert capfd.readouterr().err == "leanthink: a: 5000 of 5000\n"


def test_the_lines_of_a_long_command_grow_rarer(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    bar = ProgressBar(10)

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        clock[0] += seconds
        return clock[0] > 3600

    monkeypatch.setattr(bar._stopped, "wait", wait)
    monkeypatch.setattr(progress, "say", lambda text: None)
    bar._tell_now_and_then()
    assert waited[0] == 5
    assert len(waited) < 70, "an hour"


def test_an_end_by_an_error_is_no_end_of_the_work(capfd: pytest.CaptureFixture[str]) -> None:
    with suppress(KeyboardInterrupt), ProgressBar(3) as bar:
        bar.advance("a")
        raise KeyboardInterrupt
    assert capfd.readouterr().err == ""


def test_on_a_terminal_collect_shows_a_bar_and_no_lines_and_a_pipe_gets_its_document_alone(tmp_path: Path) -> None:
    words = ("collect", "--tasks", "sums", "--levels", "1", "--count", "3", "--max-new-tokens", "40")
    done = on_terminal(*words, "--out", tmp_path / "t.jsonl", "--json", piped_out=True)
    assert done.code == 0, done.shown
    assert json.loads(done.out)["written"] == 3
    assert "traces" in done.shown
    assert "3/3" in done.shown
    assert "leanthink:" not in done.shown


def test_on_a_terminal_bench_tells_which_part_it_measures_and_its_lines_stay_data(tmp_path: Path) -> None:
    words = ("bench", "--parts", "roofline,memory", "--steps", "3", "--out", tmp_path / "b")
    done = on_terminal(*words, piped_out=True)
    assert done.code == 0, done.shown
    assert "parts, roofline" in done.shown
    assert "2/2" in done.shown
    assert re.match(r"roofline: .*\nroofline: ", done.out)


def test_without_a_terminal_collect_says_little(tmp_path: Path, inside: Any) -> None:
    words = ("collect", "--tasks", "sums", "--levels", "1", "--count", "20", "--max-new-tokens", "20")
    done = inside(*words, "--out", tmp_path / "t.jsonl")
    assert done.code == 0, done.err
    assert done.err.splitlines()[-1] == "leanthink: traces: 20 of 20"
    assert len(done.err.splitlines()) < 5
    assert done.out.startswith("20 traces in ")
