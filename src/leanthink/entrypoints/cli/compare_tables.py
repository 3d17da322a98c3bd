"""The tables of `leanthink compare` on a terminal: what fits into its width; the report has the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from leanthink.eval.compare import Comparison, FinishedRun

COSTS = ("policy", "slots", "thought tokens", "longer than full, %", "peak slots", "KV × steps, GB", "tokens/s")


def print_tables(runs: Sequence[FinishedRun], comparisons: Sequence[Comparison], console: Console) -> None:
    """For each benchmark accuracies, costs and differences, those that are significant in bold."""
    from leanthink.eval.report_page import DIFFERENCE_HEAD, about, difference_row, name_of, sources
    from leanthink.eval.tables import COST_HEAD, accuracy_head, accuracy_row, cost_row

    for one in comparisons:
        console.print(Text.assemble((one.benchmark, "bold"), f": {about(one)}"))
        samples = [entry.results.samples for entry in one.entries]
        accuracy = [accuracy_row(name_of(e, runs), e.results.configuration, e.metrics, samples) for e in one.entries]
        console.print(_table(accuracy_head(samples), accuracy))
        chosen = [COST_HEAD.index(name) for name in COSTS]
        costs = [cost_row(name_of(e, runs), e.results.configuration, e.metrics) for e in one.entries]
        console.print(_table(COSTS, [[row[at] for at in chosen] for row in costs]))
        if one.differences:
            bold = [found.is_significant for found in one.differences]
            console.print(_table(DIFFERENCE_HEAD, [difference_row(found) for found in one.differences], bold))
    console.print(*(Text(line) for line in sources(runs, comparisons)), sep="\n")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], bold: Sequence[bool] = ()) -> Table:
    """Words to the left, numbers to the right."""
    words = {"policy", "slots", "first", "second"}
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in head:
        table.add_column(Text(name), justify="left" if name in words else "right", vertical="bottom")
    for at, row in enumerate(rows):
        table.add_row(*map(Text, row), style="bold" if at < len(bold) and bold[at] else None)
    return table
