"""The command `leanthink`: parses, calls the Python API, and turns its errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, TextIO, cast

import typer

import leanthink
from leanthink.entrypoints.cli import (
    bench,
    collect,
    compare,
    demo,
    evaluate,
    fit,
    generate,
    label,
    plan,
    predictor,
    serve,
    tasks,
    train,
    view,
)
from leanthink.entrypoints.cli.help import help_text
from leanthink.entrypoints.cli.output import say
from leanthink.utils.errors import LeanThinkError, LeanThinkWarning, PredictorMismatch, UnsupportedModel, UsageError

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
EXAMPLES = (
    'leanthink generate "What is 4821 times 377?" --budget 256',
    "leanthink tasks list",
    "leanthink demo --out demo",
)
# Typer has kept click's exceptions in different places; its BadParameter derives from them wherever they are.
ParsingError = cast(type[Exception], typer.BadParameter.__mro__[1])

app = typer.Typer(
    add_completion=False,
    no_args_is_help=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.add_typer(tasks.app, name="tasks")
for command in (generate, serve, plan, predictor, collect, label, fit, evaluate, compare, train, demo, bench, view):
    command.add_to(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(leanthink.__version__)
        raise typer.Exit


@app.callback(
    invoke_without_command=True,
    help=help_text("Run reasoning models that think inside a fixed KV budget.", EXAMPLES),
    epilog="Exit status: 0 done, 1 the run failed, 2 the command was wrong, 130 interrupted.",
)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line, without the program's name; returns the exit code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", LeanThinkWarning)
            warnings.showwarning = _tell
            code = app(list(arguments), prog_name="leanthink", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except ParsingError as error:
        say(_with_hint(error))
        code = WRONG_USAGE
    except LeanThinkError as error:
        say(_one_line(error))
        code = WRONG_USAGE if isinstance(error, UsageError | UnsupportedModel | PredictorMismatch) else FAILED
    except OSError as error:
        say(_one_line(error))
        code = FAILED
    if code == INTERRUPTED:  # also what typer makes of Ctrl-C by itself
        say("interrupted")
    return code if isinstance(code, int) else DONE


def _tell(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings in one line, those of other packages as Python writes them."""
    if issubclass(category, LeanThinkWarning):
        say(str(message))
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=file or sys.stderr)


def _one_line(error: Exception) -> str:
    """Its message; those of libraries that ours quote may have several lines."""
    return " ".join(str(error).split())


def _with_hint(error: Any) -> str:
    """A parsing error's message, and whose help page to read."""
    message: str = error.format_message()
    return message if error.ctx is None else f"{message} See `{error.ctx.command_path} --help`."


def main() -> None:
    """The entry point of the console script."""
    # Threads that spin while they wait cost ten times the run time as soon as another process wants the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # 0 where it is wanted
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries: a pipe would get a line for each of their steps
    sys.exit(run(sys.argv[1:]))
