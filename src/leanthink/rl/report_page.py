"""The page of `leanthink train --report`: one HTML file with its plots inside, which loads nothing and runs nothing.

The pieces of the page escape what comes from files (`leanthink.utils.markup`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from leanthink.rl.report import (
    DROPPED,
    HELD_OUT,
    METRICS,
    Change,
    Estimate,
    Record,
    Row,
    RunReport,
    Tenth,
    curve,
    difference,
    growth,
    lengths,
    report_run,
    shares,
    tenths,
)
from leanthink.rl.report_plot import (
    Histogram,
    Line,
    Scale,
    plot_lengths,
    plot_lines,
    with_moving_mean,
)
from leanthink.rl.run_files import ROLLOUTS, RUN, RecordedRun
from leanthink.utils.errors import UsageError
from leanthink.utils.markup import figures, heading, page, run_name, section, table, tagged
from leanthink.utils.svg import RUNS, check_matplotlib

Groups = list[Record]
MISSING = "–"
BINS = 24


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A plot over steps: the metric `thin` as it was logged, and bold over it `bold`, or the moving mean of `thin`."""

    title: str
    thin: str
    bold: str | None = None
    scale: Scale = "share"


SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Accuracy": (
        Panel(title="all problems", thin="accuracy"),
        Panel(title="simple problems", thin="simple/accuracy"),
        Panel(title="hard problems", thin="hard/accuracy"),
    ),
    "Thought tokens": (
        Panel(title="all problems", thin="thought_tokens", scale="count"),
        Panel(title="simple problems", thin="simple/thought_tokens", scale="count"),
        Panel(title="hard problems", thin="hard/thought_tokens", scale="count"),
    ),
    "Held-out problems": (
        Panel(title="accuracy", thin=HELD_OUT[0]),
        Panel(title="thought tokens", thin=HELD_OUT[1], scale="count"),
    ),
    "Difficulty": (
        Panel(title="pass ratio: observed, and bold its average", thin="pass_ratio/batch", bold="pass_ratio/average"),
        Panel(title="share of simple problems", thin="share_simple"),
        Panel(title="β, mean over problems", thin="beta", scale="free"),
        Panel(title="length reward of right responses", thin="length_reward", scale="free"),
    ),
    "Groups": (
        Panel(title="all right", thin="groups/all_right"),
        Panel(title="all wrong", thin="groups/all_wrong"),
        Panel(title="dropped by dynamic sampling", thin=DROPPED),
    ),
    "Responses": (
        Panel(title="entropy of a token, nats", thin="entropy", scale="count"),
        Panel(title="self-checks of a thought", thin="self_checks", scale="count"),
        Panel(title="thoughts that were closed", thin="closed"),
        Panel(title="cut off at the longest length", thin="completions/clipped_ratio"),
    ),
    "Updates": (
        Panel(title="loss", thin="loss", scale="free"),
        Panel(title="share of tokens that were clipped", thin="clip_ratio/region_mean", scale="count"),
        Panel(title="reward", thin="reward", scale="free"),
    ),
}


def write_page(runs: Sequence[RecordedRun], path: Path) -> list[RunReport]:
    """Write the page of these runs, in place of an earlier one; returns its numbers.

    Raises:
        UsageError: matplotlib is missing, or there are more runs than colours.
    """
    check_matplotlib()
    if len(runs) > len(RUNS):
        raise UsageError(f"{len(runs)} runs on one page: give at most {len(RUNS)}, or colours could not be told apart")
    reports = [report_run(run) for run in runs]
    title = f"Training run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} training runs"
    body = [_heading(title, reports), *_curves(runs), _length_section(runs), _rows_section(reports)]
    body += [_metrics_section(reports), _settings_section(runs)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(title, body), encoding="utf-8")
    return reports


# -- numbers as text -----------------------------------------------------------------------------------------------


def _shown(found: Estimate, scale: float, style: str) -> str:
    """Mean and spread times `scale`; the spread has no sign."""
    if found.mean is None:
        return MISSING
    spread = "" if found.spread is None else f" ± {format(scale * found.spread, style.lstrip('+'))}"
    return format(scale * found.mean, style) + spread


def _end(tenth: Tenth) -> list[str]:
    """Accuracy in per cent, and thought tokens."""
    return [_shown(tenth.accuracy, 100, ".1f"), _shown(tenth.thought_tokens, 1, ".0f")]


def _change(before: Tenth, after: Tenth) -> list[str]:
    """Of accuracy in points, of thought tokens in per cent."""
    accuracy = difference(before.accuracy, after.accuracy)
    thought = growth(before.thought_tokens, after.thought_tokens)
    return [_shown(accuracy, 100, "+.1f"), _shown(thought, 100, "+.0f")]


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4g}"


def _names(runs: Sequence[RunReport | RecordedRun]) -> list[Markup]:
    """The names of all, each in its colour."""
    return [run_name(index, run.name) for index, run in enumerate(runs)]


# -- the page from top to bottom -----------------------------------------------------------------------------------


def _heading(title: str, reports: Sequence[RunReport]) -> Markup:
    """How far each run came, and what came of it."""
    head = ["run", "steps", "accuracy, %", "thought tokens", "since first tenth: accuracy, points", "thought, %"]
    if len(reports) > 1:
        head += ["to first run: accuracy, points", "thought, %"]
    head += ["held-out accuracy, %", "held-out thought"]
    rows = [[name, *_summary(report, reports)] for name, report in zip(_names(reports), reports, strict=True)]
    note = (
        "Of the responses in training: the last tenth of the steps, what changed since the first, and how it differs "
        "from the first run's last tenth. ± half of a 95 % interval that takes problems, not responses, as what was "
        "drawn; ± 0: they did not differ. Held out: the last tenth of the evaluations."
    )
    names = _names(reports) if len(reports) > 1 else []
    return heading(title, table(head, rows), tagged("p", Markup(note)), names=names)


def _summary(report: RunReport, reports: Sequence[RunReport]) -> list[str]:
    """The cells of one run beside others, of which the first is what it is held against."""
    steps = f"{report.steps}" + (f" of {report.planned}" if report.planned else "")
    first, last = report.rows[0].first, report.rows[0].last
    cells = [steps + ("" if report.finished else ", unfinished"), *_end(last), *_change(first, last)]
    if len(reports) > 1:
        cells += [MISSING] * 2 if report is reports[0] else _change(reports[0].rows[0].last, last)
    held_out = [report.metrics.get(name, Change(first=None, last=None)) for name in HELD_OUT]
    accuracy, thought = (Estimate(mean=found.last, spread=None) for found in held_out)
    return [*cells, _shown(accuracy, 100, ".1f"), _shown(thought, 1, ".0f")]


def _curves(runs: Sequence[RecordedRun]) -> list[Markup]:
    """The sections of plots over steps; what no run has logged is left out."""
    notes = {
        "Accuracy": "Simple problems are those whose group did better than the average (β > 0), hard ones all others; "
        "which those are changes from step to step. Thin: as logged. Bold: moving mean over a tenth of the values.",
        "Difficulty": "The average is what a group's pass ratio is compared with.",
        "Groups": "Shares of the groups that were generated.",
    }
    found = []
    for title, panels in SECTIONS.items():
        drawn = {panel.title: svg for panel in panels if (svg := _panel(f"{title}: {panel.title}", panel, runs))}
        if drawn:
            found.append(section(title, notes.get(title, ""), figures(drawn)))
    return found


def _panel(title: str, panel: Panel, runs: Sequence[RecordedRun]) -> Markup | None:
    """A plot over steps, None if no run has anything for it."""
    lines = []
    for index, run in enumerate(runs):
        thin = curve(run.log, panel.thin)
        bold = [] if panel.bold is None else curve(run.log, panel.bold)
        if any(value is not None for _, value in thin):
            lines.append(with_moving_mean(index, thin) if panel.bold is None else Line(index, thin, bold))
    steps = max(record["step"] for run in runs for record in run.log)
    return plot_lines(title, lines, panel.scale, steps) if lines else None


def _length_section(runs: Sequence[RecordedRun]) -> Markup:
    """How long right and wrong responses were at the start and at the end."""
    parts = [tenths(run.groups) for run in runs]
    longest = max((n for both in parts for groups in both for group in groups for n in group["tokens"]), default=0)
    if not longest:
        return section("Lengths of responses", f"There is no {ROLLOUTS} to tell.")
    edges = [longest * i / BINS for i in range(BINS + 1)]
    histograms = _histograms(parts, edges)
    highest = max(share for several in histograms.values() for one in several for share in one.shares)
    drawn = {
        title: plot_lengths(f"Lengths of responses: {title}", several, edges, highest)
        for title, several in histograms.items()
    }
    styles = " Dashed: first tenth. Solid: last." if len(runs) == 1 else ""
    note = f"Tokens of whole responses, as shares of all graded ones of that tenth of the steps.{styles}"
    return section("Lengths of responses", note, figures(drawn))


def _histograms(parts: Sequence[tuple[Groups, Groups]], edges: Sequence[float]) -> dict[str, list[Histogram]]:
    """By title: both tenths of one run in one plot, of several runs in two."""
    alone = len(parts) == 1
    found: dict[str, list[Histogram]] = {}
    for verdict, right in (("right", True), ("wrong", False)):
        for number, when in enumerate(("first", "last")):
            title = verdict if alone else f"{verdict}, {when} tenth"
            for index, both in enumerate(parts):
                graded = sum(one is not None for group in both[number] for one in group["right"])
                heights = shares(lengths(both[number], right=right), edges, graded)
                dashed = alone and when == "first"
                found.setdefault(title, []).append(Histogram(index, heights, dashed=dashed))
    return found


def _rows_section(reports: Sequence[RunReport]) -> Markup:
    """First tenth against last by family and level; of several runs the ends beside each other before that."""
    told = [(index, report) for index, report in enumerate(reports) if report.first_steps and report.last_steps]
    if not told:
        return Markup("")
    parts = [_beside(reports)] if len(reports) > 1 else []
    for index, report in told:
        when = "steps {}-{}, then {}-{}".format(*(report.first_steps or ()), *(report.last_steps or ()))
        head = ["family", "level", "groups", "first: accuracy, %", "thought tokens", "last: accuracy, %"]
        head += ["thought tokens", "change: points", "thought, %"]
        rows = [_first_to_last(row) for row in report.rows]
        title = Markup(f"{run_name(index, report.name)}: {when}")
        parts.append(section(title, "", table(head, rows), folded=len(reports) > 1))
    note = "Which problems come up differs from tenth to tenth: what was learned shows within a row."
    return section("By family and level", note, *parts)


def _first_to_last(row: Row) -> list[str]:
    first, last = row.first, row.last
    return [*_place(row), f"{first.groups}, {last.groups}", *_end(first), *_end(last), *_change(first, last)]


def _beside(reports: Sequence[RunReport]) -> Markup:
    """The last tenth of every run, by family and level."""
    by_place = [{_place(row): row.last for row in report.rows} for report in reports]
    head: list[str] = ["family", "level"]
    for name in _names(reports):
        head += [Markup(f"{name} accuracy, %"), "thought tokens"]
    rows = []
    for place in dict.fromkeys(place for found in by_place for place in found):
        ends = [_end(found[place]) if place in found else [MISSING] * 2 for found in by_place]
        rows.append([*place, *(cell for end in ends for cell in end)])
    return section("The last tenth of each run", "", table(head, rows))


def _place(row: Row) -> tuple[str, str]:
    return row.family or "all", "all" if row.level is None else str(row.level)


def _metrics_section(reports: Sequence[RunReport]) -> Markup:
    """Every metric over the first and over the last tenth."""
    head = ["metric"]
    for name in _names(reports):
        head += [Markup(f"{name} first"), "last"]
    rows = []
    for metric in METRICS:
        changes = [report.metrics.get(metric) for report in reports]
        if any(changes):
            cells = [(change.first, change.last) if change else (None, None) for change in changes]
            rows.append([metric, *(_number(value) for pair in cells for value in pair)])
    note = "Means over the first and over the last tenth of the lines of the log; those of evaluations over theirs."
    return section("All metrics", note, table(head, rows), folded=True)


def _settings_section(runs: Sequence[RecordedRun]) -> Markup:
    """Settings and provenance: first what differs, then what all runs have in common."""
    about = [{"folder": str(run.folder), **run.provenance, **run.settings} for run in runs]
    names = list(dict.fromkeys(name for one in about for name in one))
    texts = {name: [_setting(one.get(name)) for one in about] for name in names}
    common = {name: found for name, found in texts.items() if len(set(found)) == 1}
    parts = []
    if len(runs) > 1:
        rows = [[name, *found] for name, found in texts.items() if name not in common]
        parts.append(section("What differs", "", table(["setting", *_names(runs)], rows, words=True)))
    title = "In all runs" if len(runs) > 1 else "As given"
    rows = [[name, found[0]] for name, found in common.items()]
    parts.append(section(title, "", table(["setting", "value"], rows, words=True), folded=len(runs) > 1))
    lacking = [run.name for run in runs if not run.settings]
    note = (
        f"Not known of {', '.join(lacking)}: there is no {RUN}." if lacking else "Those left out have their defaults."
    )
    return section("Settings and provenance", note, *parts)


def _setting(value: Any) -> str:
    return MISSING if value is None else value if isinstance(value, str) else json.dumps(value)
