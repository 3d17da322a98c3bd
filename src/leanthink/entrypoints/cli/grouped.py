"""Lets a command take its options in groups: dataclasses, each of whose fields is an option of the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

import typer

from leanthink.entrypoints.cli.help import help_text


def add_command(
    app: typer.Typer, name: str, sentence: str, examples: Sequence[str], function: Callable[..., None]
) -> None:
    """Add a command to the application: its options in groups or one by one."""
    app.command(name, help=help_text(sentence, examples))(ungrouped(function))


def ungrouped(function: Callable[..., None]) -> Callable[..., None]:
    """The function with the fields of its dataclasses as parameters, as typer reads them."""
    hints = get_type_hints(function, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, given in inspect.signature(function).parameters.items():
        if name in groups:
            inner = get_type_hints(groups[name], include_extras=True)
            parameters += [_parameter(it.name, inner[it.name], _default(it)) for it in fields(groups[name])]
        else:
            parameters.append(_parameter(name, hints[name], given.default))

    @wraps(function)
    def flat(**given: Any) -> None:
        made = {
            name: group(**{it.name: given.pop(it.name) for it in fields(group)})  # type: ignore[operator]
            for name, group in groups.items()
        }
        function(**given, **made)

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {one.name: one.annotation for one in parameters}
    return flat


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _default(it: Field[Any]) -> Any:
    return inspect.Parameter.empty if it.default is MISSING else it.default


def given(options: Any) -> dict[str, Any]:
    """What was given of a group, by the names of its fields; options that were left out are None."""
    values = {it.name: getattr(options, it.name) for it in fields(options)}
    return {name: value for name, value in values.items() if value is not None}
