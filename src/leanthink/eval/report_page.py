"""The report of a comparison: one HTML file that loads nothing, and Markdown with the same tables.

The pieces of the page escape what comes from files (`leanthink.utils.markup`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from leanthink.eval.compare import SIGNIFICANT, Comparison, Difference, Entry, FinishedRun
from leanthink.eval.report_plots import Cost, Look, looks, on_front, pareto
from leanthink.eval.tables import (
    COST_HEAD,
    MISSING,
    accuracy_head,
    accuracy_row,
    cost_row,
    markdown,
    matrix,
    percent,
)
from leanthink.utils.markup import figures, heading, page, run_name, section, table, tagged

REPORT, MARKDOWN = "report.html", "report.md"
COSTS: tuple[Cost, ...] = ("peak slots", "KV × steps, GB")
NOTE = (
    "In brackets: 95 % intervals of a bootstrap over problems, all samples of a problem drawn together, the same draws "
    "for both sides of a difference. p: two-sided, of a paired randomisation test over problems; adjusted by Holm's "
    f"rule over all {{count}} differences of this report; bold and * below {SIGNIFICANT:g}."
)
DIFFERENCE_HEAD = ["first", "second", "Pass@1, points", "thought tokens, %", "p", "p adjusted"]


def write_page(runs: Sequence[FinishedRun], comparisons: Sequence[Comparison], path: Path) -> None:
    """Write the page, in place of an earlier one."""
    title = f"Evaluation {runs[0].name}" if len(runs) == 1 else f"Evaluations {', '.join(run.name for run in runs)}"
    style = looks(list(dict.fromkeys(name_of(entry, runs) for one in comparisons for entry in one.entries)))
    body = [heading(title, names=[_name(name, look) for name, look in style.items()])]
    body += [_benchmark(at, one, runs, style) for at, one in enumerate(comparisons)]
    body += [section("How to read it", _note(comparisons) + " " + READING), _settings(runs)]
    path.write_text(page(title, body), encoding="utf-8")


READING = (
    "Pass@k: the share of problems that one of k samples solves, estimated without bias. Maj@k: the share whose most "
    "frequent answer is right. Strict: right, and ended by itself. Slots: kept + interval; the prompt comes on top for "
    "every policy. Peak and kept slots: means over answers, prompt included. KV × steps: bytes of keys and values held "
    "at each decoding step, added up, mean over answers. The thin dashed line joins what no other point beats."
)


def as_markdown(runs: Sequence[FinishedRun], comparisons: Sequence[Comparison]) -> str:
    """The tables as Markdown, with where they come from."""
    lines: list[str] = []
    for one in comparisons:
        samples = [entry.results.samples for entry in one.entries]
        accuracy = [accuracy_row(name_of(e, runs), e.results.configuration, e.metrics, samples) for e in one.entries]
        costs = [cost_row(name_of(e, runs), e.results.configuration, e.metrics) for e in one.entries]
        lines += [f"## {one.benchmark}", "", about(one), ""]
        lines += [*markdown(*matrix([(name_of(e, runs), e.results.configuration, e.metrics) for e in one.entries])), ""]
        lines += [*markdown(accuracy_head(samples), accuracy), "", *markdown(COST_HEAD, costs), ""]
        if one.differences:
            rows = [difference_row(found) for found in one.differences]
            lines += [*markdown(DIFFERENCE_HEAD, rows), ""]
    lines += sources(runs, comparisons)
    return "\n".join(lines) + "\n"


def name_of(entry: Entry, runs: Sequence[FinishedRun]) -> str:
    """A policy, with its run where there are several."""
    policy = entry.results.configuration.policy
    return policy if len(runs) == 1 else f"{entry.run}: {policy}"


def _name(name: str, look: Look) -> Markup:
    return run_name(look.color, name, look.symbol)


def sources(runs: Sequence[FinishedRun], comparisons: Sequence[Comparison]) -> list[str]:
    """How to read the tables, and where each run comes from."""
    return [_note(comparisons), "", *(f"{run.name}: {_provenance(run)}" for run in runs)]


def _note(comparisons: Sequence[Comparison]) -> str:
    return NOTE.format(count=sum(len(one.differences) for one in comparisons))


def about(one: Comparison) -> str:
    """The problems of a comparison in one line."""
    samples = sorted({entry.results.samples for entry in one.entries})
    return f"{one.about['problems']} problems x {', '.join(map(str, samples))}: {one.about['source']}."


def _benchmark(at: int, one: Comparison, runs: Sequence[FinishedRun], style: dict[str, Look]) -> Markup:
    """Plots, both tables and the differences."""
    lines: dict[str, list[Entry]] = {}
    for entry in one.entries:
        lines.setdefault(name_of(entry, runs), []).append(entry)
    drawn = {f"Pass@1 against {kind}": pareto(f"Pass@1 against {kind}, {at + 1}", lines, style, kind) for kind in COSTS}
    samples = [entry.results.samples for entry in one.entries]
    fronts = list(zip(*(on_front(one.entries, kind) for kind in COSTS), strict=True))
    accuracy, costs = [], []
    for entry, wins in zip(one.entries, fronts, strict=True):
        name = name_of(entry, runs)
        colored = _name(name, style[name])
        where = " and ".join(kind.split(",")[0] for kind, won in zip(COSTS, wins, strict=True) if won) or MISSING
        cells = accuracy_row(colored, entry.results.configuration, entry.metrics, samples)
        accuracy.append([*cells, where])
        costs.append(cost_row(colored, entry.results.configuration, entry.metrics))
    overview = matrix(
        [(_name(n, style[n]), e.results.configuration, e.metrics) for n, group in lines.items() for e in group]
    )
    parts = [figures(drawn, large=True), table(*overview)]
    parts += [table([*accuracy_head(samples), "on the front of"], accuracy), table(COST_HEAD, costs)]
    return section(one.benchmark, about(one), *parts, *_differences(one))


def _differences(one: Comparison) -> list[Markup]:
    """Against the full cache at sight, between policies when it is opened."""
    full = [found for found in one.differences if found.second.rpartition(": ")[2] == "full"]
    others = [found for found in one.differences if found not in full]
    parts = []
    for title, chosen in (("Against the full cache", full), ("At equal slots, and from run to run", others)):
        if chosen:
            rows = [_html_difference(found) for found in chosen]
            parts.append(section(title, "", table(DIFFERENCE_HEAD, rows), folded=chosen is others))
    return parts


def _html_difference(found: Difference) -> list[str]:
    cells = difference_row(found)
    return [tagged("b", cell) for cell in cells] if found.is_significant else cells


def difference_row(found: Difference) -> list[str]:
    """A difference under `DIFFERENCE_HEAD`."""
    star = " *" if found.is_significant else ""
    accuracy, longer = percent(found.accuracy, "+.1f"), percent(found.growth, "+.1f")
    return [found.first, found.second, accuracy, longer, f"{found.p:.2g}", f"{found.adjusted:.2g}{star}"]


def _settings(runs: Sequence[FinishedRun]) -> Markup:
    """All settings and provenances."""
    parts = []
    for run in runs:
        facts: dict[str, Any] = {**run.settings}
        for number, provenance in enumerate(run.provenances, start=1):
            facts |= {
                f"{name}, start {number}" if len(run.provenances) > 1 else name: v for name, v in provenance.items()
            }
        rows = [[name, value if isinstance(value, str) else json.dumps(value)] for name, value in facts.items()]
        parts.append(section(run.name, "", table(["setting", "value"], rows, words=True), folded=True))
    return section("Settings and provenance", "", *parts)


def _provenance(run: FinishedRun) -> str:
    last = run.provenances[-1]
    times = f", {len(run.provenances)} starts" if len(run.provenances) > 1 else ""
    versions = ", ".join(f"{name} {last[name]}" for name in ("torch", "transformers", "python"))
    return f"`{last['command']}`, {last['date']}, commit {last['commit']}, {last['hardware']}, {versions}{times}."
