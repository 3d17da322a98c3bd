"""Everything LeanThink raises for its users, and the warning that it gives them.

LeanThinkError
├── UsageError          an argument, option or input file is wrong (CLI exit code 2)
├── UnsupportedModel    a model whose attention the bounded cache cannot serve (exit code 2)
├── PredictorMismatch   an importance predictor fitted for another model (exit code 2)
├── DamagedFile         a file of ours that is truncated or fails its checksum (exit code 1)
├── CannotWrite         a file cannot be written, as where the disk is full (exit code 1)
├── RequestFailed       one request ended without a result; the others of its engine go on (exit code 1)
└── DeviceLost          the device answers no more, and no request can be served (exit code 1)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FIRST, LAST = 1400, 500  # characters of a message that is longer: what is to be done stands at its end


class LeanThinkError(Exception):
    """The root: catch this to catch every error that LeanThink raises on purpose.

    Its text can be printed, whatever it quotes: of a long one both ends are told, of a surrogate pair's half its code.
    """

    def __str__(self) -> str:
        text = super().__str__().encode(errors="backslashreplace").decode()
        return text if len(text) <= FIRST + LAST else f"{text[:FIRST]} [...] {text[-LAST:]}"


class UsageError(LeanThinkError, ValueError):
    """An argument, option or input file is wrong; the message says what is allowed."""


class UnsupportedModel(LeanThinkError):
    """The bounded cache cannot serve this model; the message names the reason."""


class PredictorMismatch(LeanThinkError):
    """An importance predictor was fitted for another model than the one in hand."""


class DamagedFile(LeanThinkError):
    """A file is truncated, fails its checksum or cannot be parsed as what it claims to be."""


class CannotWrite(LeanThinkError):
    """There is no room for a file, no right to write it, or no such folder; what was there before is unharmed."""


class RequestFailed(LeanThinkError):
    """One request ended without a result, as a step raised or brought numbers that are NaN or infinite for it.

    Args:
        request_id: of the request.
        why: what happened; where an exception did, it is the `__cause__`.
    """

    def __init__(self, request_id: int, why: str) -> None:
        super().__init__(request_id, why)  # which pickle gives back
        self.request_id, self.why = request_id, why

    def __str__(self) -> str:
        return f"request {self.request_id} failed: {self.why}"


class DeviceLost(LeanThinkError):
    """The device answers no more: what was on it is gone, and only a new process can use it again."""


class LeanThinkWarning(UserWarning):
    """What was asked for is done, but maybe not as it was meant; the message says what to give instead."""


LONGEST_LIST = 400  # characters; of more names than that only the closest are told


def unknown(kind: str, given: object, allowed: Iterable[object], *, see: str = "") -> UsageError:
    """The error for a name that is not in `allowed`; of many names it tells the closest, and where to `see` all."""
    names = [str(name) for name in allowed]
    told = f"choose one of {', '.join(names)}"
    if len(told) > LONGEST_LIST:
        close = difflib.get_close_matches(str(given), names, n=5, cutoff=0.3)
        told = f"the closest of {len(names)} are {', '.join(close)}" if close else f"none of {len(names)} is like it"
        told += f"; {see}" if see else ""
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UsageError(f"unknown {kind} {given!r}: {told}.{hint}")
