"""`leanthink compare`: finished evaluations beside each other, with intervals, as one page and as Markdown."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from leanthink.cli import options
from leanthink.cli.help import help_text, option
from leanthink.cli.output import print_json, refuse_existing

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
    """Read the runs, then write both reports."""
    from leanthink.eval.compare import compare, read_runs
    from leanthink.eval.page import MARKDOWN, REPORT, as_markdown, write_page
    from leanthink.page.svg import check_matplotlib

    check_matplotlib()
    folder = runs[0] if out is None else out
    for name in (REPORT, MARKDOWN):
        refuse_existing(folder / name, overwrite=overwrite)
    read = read_runs(runs)
    found = compare(read)
    folder.mkdir(parents=True, exist_ok=True)
    write_page(read, found, folder / REPORT)
    text = as_markdown(read, found)
    (folder / MARKDOWN).write_text(text, encoding="utf-8")
    if as_json:
        comparisons = [
            {
                "benchmark": one.benchmark,
                "entries": [
                    {"label": e.label, "run": e.run, **e.outcomes.cell.record, **e.metrics.record} for e in one.entries
                ],
                "differences": [{**asdict(d), "significant": d.is_significant} for d in one.differences],
            }
            for one in found
        ]
        print_json({"report": str(folder / REPORT), "markdown": str(folder / MARKDOWN), "comparisons": comparisons})
    else:
        print(text, end="")
        print(f"\n{folder / REPORT}, {folder / MARKDOWN}")
