"""Finished runs beside each other: who is compared with whom, the front, the page and its Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from command_line import on_terminal, refused
from leanthink.eval.compare import compare, front, read_runs
from leanthink.eval.report_page import as_markdown, write_page
from leanthink.eval.report_plots import MARKERS, looks, pareto
from leanthink.eval.statistics import holm
from leanthink.utils.errors import DamagedFile, UsageError

BIRTH = {"command": "leanthink eval", "date": "2026-01-01", "commit": "abc", "hardware": "cpu", "python": "3.11",
         "torch": "2.11", "transformers": "5.16"}  # fmt: skip
PROBLEMS = 12


def cell(policy: str, slots: int | None, right: list[int], benchmark: str = "b", **changes: Any) -> dict[str, Any]:
    budget = None if slots is None else {"slots": slots, "window": 8, "interval": 16, "answer": 64}
    ones = [1] * PROBLEMS
    columns = {
        "right": right, "strict": right, "capped": [0] * PROBLEMS, "majority": [float(n > 0) for n in right],
        "thought_tokens": [100 * n for n in ones], "answer_tokens": [10 * n for n in ones],
        "peak_slots": [(slots or 120) + 20] * PROBLEMS, "kept_slots": [(slots or 120)] * PROBLEMS,
        "slot_steps": [50 * (slots or 120)] * PROBLEMS,
    }  # fmt: skip
    columns |= changes
    about = {"benchmark": benchmark, "policy": policy, "budget": budget, "samples": 1, "columns": columns}
    return {**about, "most_slots": (slots or 120) + 20, "bytes_per_slot": 1024.0, "seconds": 2.0}


ALL, NONE = [1] * PROBLEMS, [0] * PROBLEMS
HALF = [1, 0] * (PROBLEMS // 2)
CELLS = [cell("full", None, ALL), cell("horizon", 64, ALL), cell("sinks", 64, HALF), cell("sinks", 32, NONE)]


def write(folder: Path, cells: list[dict[str, Any]], digest: str = "d", **settings: Any) -> Path:
    folder.mkdir(parents=True)
    names = dict.fromkeys(one["benchmark"] for one in cells)
    about = {"source": "made <by> hand", "problems": PROBLEMS, "digest": digest, "ids": [*map(str, range(PROBLEMS))]}
    document = {
        "eval": 1,
        "settings": {"model": "m", "fingerprint": "f", "sampling": {"seed": 0}, "dtype": "float32", **settings},
        "benchmarks": dict.fromkeys(names, about),
        "births": [BIRTH],
        "cells": cells,
    }
    (folder / "result.json").write_text(json.dumps(document))
    return folder


def test_policies_are_compared_with_full_and_at_equal_slots(tmp_path: Path) -> None:
    (found,) = compare(read_runs([write(tmp_path / "a", CELLS)]))
    pairs = {(one.first, one.second): one for one in found.differences}
    assert set(pairs) == {
        ("horizon 64+16", "full"),
        ("sinks 64+16", "full"),
        ("sinks 32+16", "full"),
        ("horizon 64+16", "sinks 64+16"),
    }
    assert pairs["horizon 64+16", "full"].p == 1
    assert pairs["horizon 64+16", "sinks 64+16"].accuracy.value == 0.5
    assert pairs["sinks 64+16", "full"].p == pytest.approx(2 / 2**6, abs=0.003)
    assert pairs["sinks 32+16", "full"].p == pytest.approx(2 / 2**12, abs=0.0003)
    assert {key: one.adjusted for key, one in pairs.items()} == holm({key: one.p for key, one in pairs.items()})
    assert pairs["sinks 32+16", "full"].is_significant
    assert not pairs["sinks 64+16", "full"].is_significant, "0.031 alone, not among four"
    assert pairs["sinks 64+16", "full"].growth.value == 0


def test_runs_are_compared_policy_by_policy_and_a_lone_policy_finds_its_full_in_another_run(tmp_path: Path) -> None:
    longer = [150] * PROBLEMS
    runs = read_runs(
        [
            write(tmp_path / "a", CELLS[:2]),
            write(tmp_path / "b", [cell("horizon", 64, HALF, thought_tokens=longer)]),
            write(tmp_path / "c", [cell("horizon", 64, HALF)], fingerprint="another"),
        ]
    )
    (found,) = compare(runs)
    assert [entry.label for entry in found.entries] == ["a: full", "a: horizon 64+16", "b: horizon 64+16",
                                                        "c: horizon 64+16"]  # fmt: skip
    growths = [entry.metrics.growth for entry in found.entries]
    assert growths[2] is not None
    assert growths[2].value == pytest.approx(0.5)
    assert growths[3] is None, "another model has no full cache here"
    pairs = {(one.first, one.second) for one in found.differences}
    assert ("a: horizon 64+16", "b: horizon 64+16") in pairs
    assert ("b: horizon 64+16", "a: full") not in pairs
    assert len(pairs) == 4


def test_different_problems_under_one_name_are_refused(tmp_path: Path) -> None:
    runs = read_runs([write(tmp_path / "a", CELLS), write(tmp_path / "b", CELLS, digest="other")])
    with pytest.raises(UsageError, match="different problems under the name b"):
        compare(runs)


def test_the_front_by_hand() -> None:
    assert front([(1, 0.5), (2, 0.9), (3, 0.8), (2, 0.7), (4, 0.9)]) == [True, True, False, False, False]
    assert front([(1, 0.5), (1, 0.5)]) == [True, True]
    assert front([]) == []


def test_folders_that_are_no_finished_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run to compare"):
        read_runs([])
    with pytest.raises(UsageError, match="is no run of"):
        read_runs([tmp_path])
    run = write(tmp_path / "a", CELLS)
    with pytest.raises(UsageError, match="given twice"):
        read_runs([run, run])
    (run / "result.json").write_text("{}")
    with pytest.raises(DamagedFile, match="cannot be read"):
        read_runs([run])
    (run / "result.json").unlink()
    (run / "records.jsonl").touch()
    with pytest.raises(UsageError, match="is not finished"):
        read_runs([run])


def test_the_page_stands_alone_and_escapes_what_comes_from_files(tmp_path: Path) -> None:
    cells = [*CELLS, cell("full", None, ALL, benchmark="<other>")]
    runs = read_runs([write(tmp_path / "a", cells)])
    found = compare(runs)
    write_page(runs, found, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "made <by> hand" not in page
    assert "made &lt;by&gt; hand" in page
    assert "<h2>&lt;other&gt;</h2>" in page
    assert page.count("<svg") == 4
    assert not re.search(r"""(?:src|href)=["'](?!#)""", page)
    assert not re.search(r"<script|@import|url\((?!#)", page)
    assert "prefers-color-scheme: dark" in page
    assert "<b>sinks 32+16</b>" in page
    assert "<b>sinks 64+16</b>" not in page
    assert all(word in page for word in BIRTH.values())
    write_page(runs, found, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == page


def test_the_markdown_says_the_same(tmp_path: Path) -> None:
    runs = read_runs([write(tmp_path / "a", CELLS)])
    text = as_markdown(runs, compare(runs))
    assert "| horizon | 64+16 | 100.0 [100.0, 100.0] | 100.0 [100.0, 100.0] | 0.0 |" in text
    assert (
        "| sinks | 32+16 | 100 [100, 100] | +0.0 [+0.0, +0.0] | 10 | 32 | 52 | 52 | 0.05 | 0.00 | – | 2 | 660 |" in text
    )
    assert re.search(r"\| sinks 32\+16 \| full \| -100\.0 \[-100\.0, -100\.0\] .* \*\s\|", text)
    assert "over all 4 differences" in text
    assert "a: `leanthink eval`, 2026-01-01, commit abc, cpu, torch 2.11, transformers 5.16, python 3.11." in text


def test_sixty_policies_look_different() -> None:
    found = looks([str(number) for number in range(60)])
    assert len(set(found.values())) == 60
    assert {look.symbol for look in found.values()} == set(MARKERS.values())


def test_the_command_writes_both_reports_and_never_over_others(inside: Any, tmp_path: Path) -> None:
    run, out = write(tmp_path / "a", CELLS), tmp_path / "both"
    done = inside("compare", run, "--json", "--out", out)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["report"] == str(out / "report.html")
    assert (out / "report.md").read_text().startswith("## b\n")
    assert [one["label"] for one in told["comparisons"][0]["entries"]][:2] == ["full", "horizon 64+16"]
    assert [one["significant"] for one in told["comparisons"][0]["differences"]].count(True) == 1
    other = write(tmp_path / "other", CELLS[:2])
    before = (out / "report.md").read_text()
    refused(inside("compare", other, "--out", out), 2, "report.html exists", "--overwrite")
    assert (out / "report.md").read_text() == before
    assert inside("compare", other, "--out", out, "--overwrite").code == 0
    assert (out / "report.md").read_text() != before
    refused(inside("compare", tmp_path / "none"), 2, "is no run of `leanthink eval`")


def test_a_second_run_prints_again(inside: Any, tmp_path: Path) -> None:
    run = write(tmp_path / "a", CELLS)
    first = inside("compare", run)
    assert first.code == 0, first.err
    assert first.out.startswith("## b\n")
    again = inside("compare", run)
    assert (again.code, again.out, again.err) == (0, first.out, first.err)


def test_a_terminal_gets_tables_and_a_pipe_markdown(tmp_path: Path) -> None:
    run = write(tmp_path / "a", CELLS)
    shown = on_terminal("compare", run)
    assert shown.code == 0, shown.shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.shown)
    assert "|" not in plain
    assert "##" not in plain
    assert re.search(r"policy +slots +Pass@1, %", plain)
    assert re.search(r"horizon +64\+16 +100\.0 \[100\.0, 100\.0\]", plain)
    assert max(map(len, plain.splitlines()[:-1])) <= 100
    piped = on_terminal("compare", run, piped_out=True)
    assert piped.out.startswith("## b\n")
    assert "\x1b" not in piped.out


def test_an_axis_of_per_cent_ends_at_100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[float, float]] = []

    def drawn(title: str, draw: Callable[[Any], None], size: Any) -> str:
        axes = Figure().subplots()
        draw(axes)
        limits.append(axes.get_ylim())
        return ""

    monkeypatch.setattr("leanthink.eval.report_plots.plot", drawn)
    (found,) = compare(read_runs([write(tmp_path / "a", CELLS)]))
    pareto("title", {"all": found.entries}, looks(["all"]), "peak slots")
    assert limits == [(0.0, 100.0)]


ROOT = Path(__file__).parent.parent
COMMITTED = sorted((ROOT / "bench" / "results").glob("eval-*"))


@pytest.mark.parametrize("folder", COMMITTED, ids=[folder.name for folder in COMMITTED])
def test_committed_reports_are_what_their_results_say(folder: Path, tmp_path: Path) -> None:
    runs = read_runs([folder])
    found = compare(runs)
    assert as_markdown(runs, found) == (folder / "report.md").read_text(), "run make report"
    write_page(runs, found, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") > 0
    for one in runs[0].results:
        assert str(one.configuration.policy) in page
