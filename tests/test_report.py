"""The numbers and the page of `leanthink train --report`, on records made by hand."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import refused
from leanthink.rl.report import (
    Change,
    Estimate,
    curve,
    difference,
    estimate,
    growth,
    lengths,
    report_run,
    shares,
    smoothed,
    table,
    tenths,
)
from leanthink.rl.report_page import write_page
from leanthink.rl.report_plot import Line, plot_lines
from leanthink.rl.run_files import read_runs
from leanthink.utils.errors import DamagedFile, UsageError
from leanthink.utils.svg import lighter


def group(step: int, right: list[bool | None], thought: list[int], **others: Any) -> dict[str, Any]:
    found = {"step": step, "id": f"problem-{step}", "family": "sums", "level": 1}
    return found | {"right": right, "thought_tokens": thought, "tokens": [n + 10 for n in thought]} | others


GROUPS = [
    group(1, [True, False], [100, 300]),
    group(1, [None, False], [50, 50], id="b", family="bases", level=2),
    group(2, [True, True], [70, 90]),
    group(20, [True, True], [40, 60]),
    group(20, [True, False], [100, 100], id="b", family="bases", level=2),
]
LOG = [
    {"step": 1, "loss": 0.5, "accuracy": 0.25, "simple/accuracy": None, "dynamic_sampling/kept": 0.75},
    {"step": 2, "loss": 0.25, "accuracy": 0.5, "simple/accuracy": 0.5, "dynamic_sampling/kept": None},
    {"step": 2, "eval_accuracy": 0.375},
    {"step": 20, "loss": 0.0, "accuracy": 0.75, "simple/accuracy": None, "dynamic_sampling/kept": 1.0},
]
END = {"step": 20, "train_runtime": 12.5}


def write(folder: Path, log: list[Any], groups: list[Any] | None = None, about: Any = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    if groups is not None:
        (folder / "rollouts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in groups))
    if about is not None:
        (folder / "run.json").write_text(json.dumps(about))
    return folder


def page_of(*folders: Path) -> str:
    path = folders[0].parent / "report.html"
    write_page(read_runs(list(folders)), path)
    return path.read_text(encoding="utf-8")


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_an_estimate_takes_problems_as_what_was_drawn():
    two = [group(1, [True, False], [100, 300]), group(2, [True, True], [100, 100])]
    # mean 3/4; per problem 1 - 1.5 and 2 - 1.5; the standard error is sqrt(2 * (0.25 + 0.25)) / 4 = 0.25
    assert estimate(two, "right") == Estimate(mean=0.75, spread=pytest.approx(1.959964 * 0.25))
    # mean 150; per problem 400 - 300 and 200 - 300; sqrt(2 * 20000) / 4 = 50
    assert estimate(two, "thought_tokens") == Estimate(mean=150, spread=pytest.approx(1.959964 * 50))
    assert estimate([group(1, [True, False], [1, 1], id="a")] * 2, "right") == Estimate(mean=0.5, spread=None)
    assert estimate([group(n, [True, n == 1], [1, 1], id="") for n in (1, 2)], "right").spread is not None


def test_what_was_not_graded_counts_nowhere():
    assert estimate([group(1, [None, True], [1, 1])], "right") == Estimate(mean=1.0, spread=None)
    assert estimate([group(1, [None, None], [1, 1])], "right") == Estimate(mean=None, spread=None)
    assert estimate([], "right") == Estimate(mean=None, spread=None)
    assert (lengths(GROUPS, right=True), lengths(GROUPS, right=False)) == (
        [110, 80, 100, 50, 70, 110],
        [310, 60, 110],
    )


def test_tenths_are_of_the_steps_that_generated():
    of_steps = [group(step, [True], [1]) for step in range(1, 21) for _ in range(2)]
    first, last = tenths(of_steps)
    assert ([g["step"] for g in first], [g["step"] for g in last]) == ([1, 1, 2, 2], [19, 19, 20, 20])
    first, last = tenths([group(step, [True], [1]) for step in (1, 17, 33)])
    assert ([g["step"] for g in first], [g["step"] for g in last]) == ([1], [33])
    assert len(tenths([group(step, [True], [1]) for step in range(11)])[0]) == 2
    assert tenths([]) == ([], [])


def test_a_curve_keeps_what_is_missing_as_missing():
    assert curve(LOG, "simple/accuracy") == [(1, None), (2, 0.5), (20, None)]
    assert curve(LOG, "dropped") == [(1, 0.25), (2, None), (20, 0.0)]
    assert curve(LOG, "eval_accuracy") == [(2, 0.375)]
    assert curve(LOG, "entropy") == []


def test_moving_means_neither_count_nor_fill_gaps():
    assert smoothed([1.0, None, 3.0]) == [1.0, None, 3.0]
    values = [float(i) for i in range(20)]
    assert smoothed(values)[:2] == [0.5, 1.0]
    assert smoothed(values)[-1] == 18.5
    values[5] = None
    assert smoothed(values)[4:7] == [3.5, None, 6.5]


def test_shares_of_bins_have_their_lower_edge_and_the_last_one_both():
    assert shares([0, 9, 10, 19, 20, 21], [0, 10, 20], 8) == [0.25, 0.375]
    assert shares([], [0, 10, 20], 0) == [0.0, 0.0]


def test_differences_carry_both_intervals():
    before, after = Estimate(mean=200.0, spread=30.0), Estimate(mean=100.0, spread=40.0)
    assert difference(before, after) == Estimate(mean=-100.0, spread=50.0)
    # the ratio is 1/2; sqrt((1/2 * 30)^2 + 40^2) / 200
    assert growth(before, after) == Estimate(mean=-0.5, spread=pytest.approx(1825**0.5 / 200))
    single = Estimate(mean=50.0, spread=None)
    assert (difference(before, single), growth(before, single)) == (
        Estimate(mean=-150.0, spread=None),
        Estimate(mean=-0.75, spread=None),
    )
    nothing = Estimate(mean=None, spread=None)
    zero = Estimate(mean=0.0, spread=0.0)
    assert difference(nothing, before) == growth(before, nothing) == growth(zero, before) == nothing


def test_the_table_has_all_groups_then_levels_then_families():
    rows = table(*tenths(GROUPS))
    assert [(row.family, row.level) for row in rows] == [
        *[(None, None), (None, 1), (None, 2)],
        *[("bases", 2), ("sums", 1)],
    ]
    whole = rows[0]
    assert (whole.first.groups, whole.first.responses) == (2, 4)
    assert whole.first.accuracy.mean == pytest.approx(1 / 3)
    assert whole.first.thought_tokens.mean == 125
    assert (whole.last.accuracy.mean, whole.last.thought_tokens.mean) == (0.75, 75)
    assert rows[-1].last.thought_tokens == Estimate(mean=50, spread=None)


def test_without_families_and_levels_there_is_one_row():
    unknown = [group(step, [True], [5], family=None, level=None) for step in (1, 2)]
    assert [(row.family, row.level) for row in table(*tenths(unknown))] == [(None, None)]
    environment = [group(step, [True], [5], level=None) for step in (1, 2)]
    assert [(row.family, row.level) for row in table(*tenths(environment))] == [(None, None), ("sums", None)]


def test_the_numbers_of_a_run(tmp_path):
    about = {"settings": {"max_steps": 40}, "birth": {}}
    (run,) = read_runs([write(tmp_path / "run", LOG, GROUPS, about)])
    report = report_run(run)
    assert (report.name, report.steps, report.planned, report.finished, report.seconds) == ("run", 20, 40, False, None)
    assert (report.first_steps, report.last_steps) == ((1, 1), (20, 20))
    assert report.metrics["accuracy"] == Change(first=0.25, last=0.75)
    assert report.metrics["simple/accuracy"] == Change(first=None, last=None)
    assert report.metrics["eval_accuracy"] == Change(first=0.375, last=0.375)
    assert "entropy" not in report.metrics
    (run,) = read_runs([write(tmp_path / "run", [*LOG, END])])
    report = report_run(run)
    assert (report.finished, report.seconds) == (True, 12.5)


# -- the page --------------------------------------------------------------------------------------------------------


def test_a_missing_value_is_a_gap_and_a_lone_one_a_dot():
    found = [(1, 0.5), (2, None), (3, 0.25), (4, 0.75)]
    svg = plot_lines("title", [Line(0, found, found)], "share", 4)
    paths = re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--run-0\)', svg)
    assert [re.findall("[A-Z]", path) for path in paths] == [["M", "M", "L"]] * 2
    assert len(re.findall(r"<use [^>]*fill: var\(--run-0\)", svg)) == 2
    assert 'aria-label="title"' in svg


def test_a_lighter_drawing_has_the_same_things_in_their_order_and_places():
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="20.5pt">\n'
        '<metadata><name>x</name></metadata><defs><path id="m1" d="M 0 0.04 \nL -1.26 2 \nz\n"/></defs>\n'
        ' <g id="figure_1">\n  <g id="axes_1" clip-path="url(#p)">\n   <g id="line_1"><use xlink:href="#m1" x="1.96" '
        'y="3"/></g>\n  </g>\n  <text x="1.04" transform="rotate(-0 1.04 2)">a &lt; b</text>\n'
        '  <text transform="rotate(-90 1.04 2)"> </text>\n </g>\n</svg>'
    )
    assert lighter(svg) == (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="20.5pt">'
        '<defs><path id="m1" d="M0 0L-1.3 2z" /></defs>'
        '<g clip-path="url(#p)"><use xlink:href="#m1" x="2" y="3" /></g>'
        '<text x="1">a &lt; b</text><text transform="rotate(-90 1.04 2)" /></svg>'
    )


def test_the_page_stands_alone_and_tells_what_there_is(tmp_path):
    about = {"settings": {"max_steps": 40, "alpha": 0.2}, "birth": {"commit": "abc"}}
    page = page_of(write(tmp_path / "run", LOG, GROUPS, about))
    assert not re.search(r"<script|<link|<img|@import|\ssrc=|url\((?!#)|href=\"(?!#)", page)
    assert len(re.findall(r'\sid="(?:figure|axes|patch|line)', page)) == 0
    for title in ("Accuracy", "Held-out problems", "Lengths of responses", "By family and level", "commit", "alpha"):
        assert title in page
    assert "20 of 40, unfinished" in page
    assert "steps 1-1, then 20-20" in page
    assert "Updates: share of tokens that were clipped" not in page
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page
    assert not re.search(r"\bnan\b", page)


def test_what_comes_from_files_is_escaped(tmp_path):
    bad = "<script>alert(1)</script>&{0}"
    groups = [group(1, [True], [5], family=bad), group(2, [True], [5], family="sums")]
    folders = [
        write(tmp_path / name, LOG, groups, {"settings": {bad: {bad: bad}, "rule": name}, "birth": {bad: bad}})
        for name in ("a<script>", "b")
    ]
    for page in (page_of(folders[0]), page_of(*folders)):
        assert "<script" not in page
        assert "&lt;script&gt;alert(1)" in page


def test_several_runs_are_laid_over_each_other(tmp_path):
    first = write(tmp_path / "first", [*LOG, END], GROUPS, {"settings": {"alpha": 0.2, "rule": "dual"}})
    short = [group(step, [True, True], [10, 20]) for step in (1, 5)]
    second = write(tmp_path / "second", [{"step": 5, "loss": 0.0}], short, {"settings": {"alpha": 0.2, "rule": "none"}})
    page = page_of(first, second)
    assert "2 training runs" in page
    assert "var(--run-1)" in page
    heading = page[page.index("<tbody>") : page.index("</tbody>")]
    assert heading.count("<tr>") == 2
    assert "+25.0" in heading  # points: 100 % of the second, 75 % of the first
    assert "-80" in heading  # per cent: 15 thought tokens of the second, 75 of the first
    differs = page[page.index("What differs") : page.index("In all runs")]
    assert "rule" in differs
    assert "alpha" not in differs


def test_a_run_without_rollouts_and_settings_says_so(tmp_path):
    page = page_of(write(tmp_path / "run", LOG))
    assert "There is no rollouts.jsonl to tell." in page
    assert "there is no run.json" in page
    assert "By family and level" not in page


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    folders = [write(tmp_path / arm / "run", LOG) for arm in ("a", "b")]
    assert [run.name for run in read_runs(folders)] == [str(folder) for folder in folders]


def test_a_line_that_is_still_written_is_left_out(tmp_path):
    folder = write(tmp_path / "run", LOG, GROUPS)
    for name in ("log.jsonl", "rollouts.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"step": 21, "lo')
    (run,) = read_runs([folder])
    assert (len(run.log), len(run.groups)) == (len(LOG), len(GROUPS))


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: no line of JSON"),
        ('{"step": 1, "loss": NaN}', "NaN is no JSON"),
        ("[]", "a JSON object was expected"),
        ('{"loss": 1}', "step must be"),
        ('{"step": true}', "step must be"),
        ('{"step": 1, "loss": "low"}', "loss must be a number or null"),
    ],
)
def test_damaged_lines_of_the_log_are_named(tmp_path, line, said):
    folder = write(tmp_path / "run", LOG[:1])
    with (folder / "log.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DamagedFile, match=said):
        read_runs([folder])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"step": -1}, "step must be"),
        ({"right": [True]}, "an entry for each response"),
        ({"tokens": None}, "must be lists"),
        ({"right": [], "tokens": [], "thought_tokens": []}, "must be lists"),
        ({"tokens": [1.5, 2]}, "whole number"),
        ({"right": [1, 0]}, "true, false or null"),
        ({"family": 3}, "family must be text"),
        ({"level": "one"}, "level a whole number"),
    ],
)
def test_damaged_groups_are_named(tmp_path, changes, said):
    folder = write(tmp_path / "run", LOG, [group(1, [True, False], [1, 2]) | changes])
    with pytest.raises(DamagedFile, match=rf"rollouts\.jsonl, line 1: .*{said}"):
        read_runs([folder])


@pytest.mark.parametrize("text", ["{", "[]", '{"settings": []}'])
def test_a_damaged_run_json_is_named(tmp_path, text):
    folder = write(tmp_path / "run", LOG)
    (folder / "run.json").write_text(text)
    with pytest.raises(DamagedFile, match=r"run\.json"):
        read_runs([folder])


def test_more_runs_than_colours_are_refused(tmp_path):
    runs = read_runs([write(tmp_path / str(number), LOG) for number in range(9)])
    with pytest.raises(UsageError, match="at most 8"):
        write_page(runs, tmp_path / "report.html")


def test_a_report_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"leanthink\[eval\]"):
        write_page(read_runs([write(tmp_path / "run", LOG)]), tmp_path / "report.html")


def test_the_command_writes_where_it_says(tmp_path, inside):
    a, b = (write(tmp_path / "runs" / name, LOG, GROUPS) for name in ("a", "b"))
    assert inside("train", "--report", a).out == f"{a / 'report.html'}\n"
    done = inside("train", "--report", a, b, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["report"] == str(tmp_path / "runs" / "report.html")
    assert [run["name"] for run in document["runs"]] == ["a", "b"]
    assert document["runs"][0]["rows"][0]["last"]["thought_tokens"]["mean"] == 75
    c = write(tmp_path / "c", LOG)
    assert inside("train", "--report", a, c, "--out", tmp_path / "new").out == f"{tmp_path / 'new' / 'report.html'}\n"
    refused(inside("train", "--report", a, c), 2, "different folders", "--out")


def test_bad_commands_are_refused_with_the_fix(tmp_path, inside):
    run, empty = write(tmp_path / "run", LOG), tmp_path / "empty"
    empty.mkdir()
    started = write(tmp_path / "started", [])
    refused(inside("train", "--report"), 2, "no folder of a run", "--report runs/a")
    refused(inside("train", "--report", empty), 2, "no log.jsonl", str(empty), "--out")
    refused(inside("train", "--report", started), 2, "no training step yet")
    refused(inside("train", "--report", run, run), 2, "given twice")
    refused(inside("train", "--report", run, "--learning-rate", 1e-5), 2, "leave out --learning-rate")
    refused(inside("train", "--report", run, "--overwrite"), 2, "leave out --overwrite")
    refused(inside("train", run), 2, "with --report alone", "--out")
