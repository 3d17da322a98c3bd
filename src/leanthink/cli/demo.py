"""`leanthink demo`: the embedded reasoner thinking in a bounded cache, and the policies compared."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from leanthink.cli import options
from leanthink.cli.help import help_text, option
from leanthink.cli.output import counter, print_json, refuse_existing, say

EXAMPLES = ("leanthink demo", "leanthink demo --out demo --overwrite")
Out = Annotated[Path, option("--out", about="Folder for traces and picture.", default="demo", metavar="FOLDER")]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo", help=help_text("Watch a thought in a bounded cache, then compare the policies.", EXAMPLES))(
        command
    )


def command(
    out: Out = Path("demo"),
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Check the outputs, load the embedded reasoner and run the demonstration."""
    from leanthink.demo import Plan, as_table, demo, output_files
    from leanthink.demo_plot import check_matplotlib

    check_matplotlib()
    plan = Plan()
    files = output_files(out, plan)
    for path in files.values():
        refuse_existing(path, overwrite=overwrite)
    model, tokenizer = options.load_model("tiny", device, None)
    tell = {policy: counter(f"{policy}: trace", every=plan.count) for policy in plan.policies}
    rows = demo(
        model,
        tokenizer,
        out,
        plan=plan,
        console=Console(stderr=True),
        progress=lambda policy, done, total: tell[policy](done, total),
    )
    if as_json:
        print_json(
            {"budget": asdict(plan.budget), "rows": [asdict(row) for row in rows], "files": [*map(str, files.values())]}
        )
    else:
        Console().print(as_table(rows, plan))
        say(f"wrote {', '.join(map(str, files.values()))}")
