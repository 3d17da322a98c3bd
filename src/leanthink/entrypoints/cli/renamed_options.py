"""Options by their names of before: they work, stand in no help page, and say once what they are called now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from typer.core import TyperCommand

from leanthink.utils.deprecated import warn_renamed
from leanthink.utils.errors import UsageError

# Of a command that has the new name, and not the old one for something else.
NEW_NAMES = {
    "--window": "--recent-window",
    "--interval": "--eviction-interval",
    "--answer": "--max-answer-slots",
    "--rows": "--max-num-seqs",
    "--max-rows": "--max-num-seqs",
    "--steps": "--max-steps",
    "--group": "--num-generations",
    "--batch": "--per-device-train-batch-size",
    "--accumulate": "--gradient-accumulation-steps",
    "--max-completion": "--max-completion-length",
    "--lr": "--learning-rate",
    "--lora-rank": "--lora-r",
    "--rule": "--length-reward-mode",
    "--decay": "--ema-decay",
    "--start": "--ema-initial-value",
    "--mastered-weight": "--all-correct-weight",
}


class RenamingCommand(TyperCommand):
    """A command that takes the old names of its options, too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As of any command, once old names are replaced."""
        values = {flag: _values_of(option) for option in self.params for flag in _flags(option)}
        rest: list[str] = super().parse_args(ctx, list(by_new_names(args, values)))
        return rest


def by_new_names(words: Sequence[str], values: Mapping[str, int]) -> Iterator[str]:
    """The words of a command line under the new names of options; what an option takes as its value stays as it is.

    Args:
        words: after the command's name.
        values: of each option that the command has, how many words follow it.

    Raises:
        UsageError: an option is there by both of its names.
    """
    seen: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if word == "--":
            yield from (word, *rest)
            return
        given, equals, value = word.partition("=")
        flag = NEW_NAMES.get(given, given) if given not in values else given
        if flag not in values:  # no option, or none that this command has
            yield word
            continue
        if seen.setdefault(flag, given) != given:
            raise UsageError(f"{given} and {seen[flag]} are one thing: give {flag} alone")
        if flag != given:
            warn_renamed(given, flag)
        yield flag + equals + value
        if not equals:
            yield from islice(rest, values[flag])


def _flags(option: Any) -> list[str]:
    return [flag for flag in (*option.opts, *option.secondary_opts) if flag.startswith("-")]  # no argument's name


def _values_of(option: Any) -> int:
    return 0 if getattr(option, "is_flag", False) or getattr(option, "count", False) else option.nargs
