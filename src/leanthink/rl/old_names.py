"""Settings and arguments that were renamed: old names are still taken, and say once what they are called now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from leanthink.utils.deprecated import warn_renamed
from leanthink.utils.errors import UsageError

# The files of a run keep the names of before, so that runs of all versions can be compared and resumed.
NOW = {
    "rule": "length_reward_mode",
    "start": "ema_initial_value",
    "decay": "ema_decay",
    "mastered_weight": "all_correct_weight",
    "keep_mastered": "keep_all_correct",
    "max_rounds": "max_num_gen_batches",
}
IN_FILES = {now: old for old, now in NOW.items()}
P = ParamSpec("P")
R = TypeVar("R")


def current_names(given: Mapping[str, Any], *, tell: bool = True, stacklevel: int = 2) -> dict[str, Any]:
    """The same values under their present names, in the same order.

    Args:
        given: settings or keyword arguments by their names.
        tell: whether an old name is told of; not where it stands in a file of a run.
        stacklevel: as of `warn_renamed`.

    Raises:
        UsageError: a value is given under its old and under its present name.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        now = NOW.get(name, name)
        if now != name and now in given:
            raise UsageError(f"{name} is called {now} now, and both are given: leave {name} out")
        if now != name and tell:
            warn_renamed(name, now, stacklevel=stacklevel + 1)
        found[now] = value
    return found


def taking_old_names(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which takes its keyword arguments under their old names too."""

    @wraps(function)
    def taking(*args: P.args, **kwargs: P.kwargs) -> R:
        renamed: Any = current_names(kwargs)
        return function(*args, **renamed)

    return taking
