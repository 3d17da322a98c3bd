"""How the pages of `--help` are written: one sentence, examples to copy, then the options with their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer


def help_text(sentence: str, examples: Sequence[str]) -> str:
    """The text of a help page; the examples keep their lines."""
    return "\n\n".join([sentence, "\b\n" + "\n".join(f"  {example}" for example in examples)])


def option(*flags: str, about: str, default: object = None, **settings: Any) -> Any:
    """An option whose default stands in brackets at the end of its line.

    Options that stay None when they are not given leave the default to the Python API; `default` then only tells it.
    """
    shown = "" if default is None else f" [{default}]"
    return typer.Option(*flags, help=about + shown, show_default=False, **settings)
