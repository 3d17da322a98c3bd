"""`leanthink compare`: finished evaluations beside each other, with intervals, as tables and as one page."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from leanthink.entrypoints.cli import options
from leanthink.entrypoints.cli.compare_tables import print_tables
from leanthink.entrypoints.cli.help import help_text, option
from leanthink.entrypoints.cli.output import print_json, refuse_existing

EXAMPLES = (
    "leanthink compare runs/tiny",
    "leanthink compare runs/before runs/after --out reports/both --json",
)
Runs = Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders that eval wrote.", show_default=False)]
Out = Annotated[
    Path | None, option("--out", about="Folder for report.html and report.md.", default="first RUN", metavar="FOLDER")
]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare", help=help_text("Compare evaluations with the full cache and with each other.", EXAMPLES))(
        command
    )


def command(runs: Runs, out: Out = None, overwrite: options.Overwrite = False, as_json: options.Json = False) -> None:
    """Read the runs, write both reports, and print their tables: to a terminal as such, into a pipe as Markdown."""
    from leanthink.eval.compare import compare, read_runs
    from leanthink.eval.report_page import MARKDOWN, REPORT, as_markdown, write_page
    from leanthink.utils.svg import check_matplotlib

    check_matplotlib()
    folder = runs[0] if out is None else out
    read = read_runs(runs)
    found = compare(read)
    text = as_markdown(read, found)
    if overwrite or not _is_written(folder / REPORT, folder / MARKDOWN, text):
        for name in (REPORT, MARKDOWN):
            refuse_existing(folder / name, overwrite=overwrite)
        folder.mkdir(parents=True, exist_ok=True)
        write_page(read, found, folder / REPORT)
        (folder / MARKDOWN).write_text(text, encoding="utf-8")
    if as_json:
        comparisons = [
            {
                "benchmark": one.benchmark,
                "entries": [
                    {"label": e.label, "run": e.run, **e.results.configuration.record, **e.metrics.record}
                    for e in one.entries
                ],
                "differences": [{**asdict(d), "significant": d.is_significant} for d in one.differences],
            }
            for one in found
        ]
        print_json({"report": str(folder / REPORT), "markdown": str(folder / MARKDOWN), "comparisons": comparisons})
        return
    if sys.stdout.isatty():
        print_tables(read, found, Console())
    else:
        print(text, end="")
    print(f"\n{folder / REPORT}, {folder / MARKDOWN}")


def _is_written(report: Path, markdown: Path, text: str) -> bool:
    """Whether an earlier call has written the same."""
    return report.exists() and markdown.exists() and markdown.read_text(encoding="utf-8") == text
