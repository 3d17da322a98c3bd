"""`leanthink tasks`: the embedded tasks, listed and sampled."""

from __future__ import annotations

from typing import Annotated

import typer

from leanthink.entrypoints.cli.help import help_text, option
from leanthink.entrypoints.cli.options import Json
from leanthink.entrypoints.cli.output import print_json

LIST_EXAMPLES = ("leanthink tasks list", "leanthink tasks list --json")
SAMPLE_EXAMPLES = (
    "leanthink tasks sample --family multiply --level 4 --count 3",
    "leanthink tasks sample --family ledger --level 5 --count 10 --seed 1 --json",
)

app = typer.Typer(help="List the embedded tasks, or sample problems of them.", rich_markup_mode=None)


@app.command("list", help=help_text("List the families of embedded tasks and their levels.", LIST_EXAMPLES))
def list_families(as_json: Json = False) -> None:
    """Print the families of embedded tasks."""
    from leanthink.data.tasks.registry import FAMILIES, LEVELS

    records = [{"family": name, "levels": LEVELS, "about": family.about} for name, family in FAMILIES.items()]
    if as_json:
        print_json(records)
        return
    for name, family in FAMILIES.items():
        print(f"{name:<10} levels {LEVELS[0]}-{LEVELS[-1]}   {family.about}")


@app.command("sample", help=help_text("Print problems of one family and level, each with its answer.", SAMPLE_EXAMPLES))
def sample(
    family: Annotated[str, option("--family", about="Which kind of problem; see tasks list.", metavar="NAME")],
    level: Annotated[int, option("--level", about="How hard, 1 to 5.")],
    count: Annotated[int, option("--count", about="How many different problems.", default=1)] = 1,
    seed: Annotated[int, option("--seed", about="Same seed, same problems.", default=0)] = 0,
    split: Annotated[str, option("--split", about="held-out or train.", default="held-out")] = "held-out",
    as_json: Json = False,
) -> None:
    """Print sampled problems with their answers."""
    from leanthink.data.tasks import registry

    problems = registry.sample(family, level, count, seed, split)  # type: ignore[arg-type]  # checked there
    fields = ("id", "family", "level", "prompt", "answer")
    if as_json:
        print_json([{name: getattr(problem, name) for name in fields} for problem in problems])
        return
    for problem in problems:
        print(f"{problem.id}\n  {problem.prompt}\n  answer: {problem.answer}")
