"""`leanthink demo`: the embedded reasoner thinking in a bounded cache, and the policies compared."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from leanthink.entrypoints.cli import options
from leanthink.entrypoints.cli.help import help_text, option
from leanthink.entrypoints.cli.output import print_json, refuse_existing, say
from leanthink.entrypoints.cli.progress import ProgressBar

EXAMPLES = ("leanthink demo", "leanthink demo --out demo --overwrite")
DURATION = "up to two minutes on two cores"
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
    from leanthink.entrypoints.demo import Plan, as_table, demo, output_files
    from leanthink.entrypoints.demo_plot import check_matplotlib

    check_matplotlib()
    plan = Plan()
    files = output_files(out, plan)
    for path in files.values():
        refuse_existing(path, overwrite=overwrite)
    model, tokenizer = options.load_model("tiny", device, None)
    say(f"one thought, then {len(plan.policies)} policies on {plan.problems} problems: {DURATION}")
    with ExitStack() as stack:
        bars: list[ProgressBar] = []

        def progress(policy: str, done: int, total: int) -> None:
            if not bars:  # not before the streamed thought has left the terminal
                bars.append(stack.enter_context(ProgressBar()))
            before = plan.policies.index(policy) * total
            bars[0].update(policy, before + done, len(plan.policies) * total)

        rows = demo(model, tokenizer, out, plan=plan, console=Console(stderr=True), progress=progress)
    if as_json:
        print_json(
            {"budget": plan.budget.record, "rows": [asdict(row) for row in rows], "files": [*map(str, files.values())]}
        )
    else:
        Console().print(as_table(rows, plan))
        say(f"wrote {', '.join(map(str, files.values()))}")
