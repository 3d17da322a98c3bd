"""Compares mathematics by math-verify, one JSON line in, one out; run as a script by `leanthink.eval.judge`.

A process of its own, because sympy can compute for ever or take all memory, and only a process can be ended.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Any

MOST_BYTES = 4 * 2**30


def same(given: str, gold: str, boxed: bool, relative: float, absolute: float) -> bool:
    """Whether both are the same mathematics, or numbers within the tolerances of the gold."""
    from math_verify import parse, verify

    wanted = parse(f"${gold}$", parsing_timeout=None)
    found = parse(f"${given}$" if boxed else given, parsing_timeout=None)
    if verify(wanted, found, timeout_seconds=None):
        return True
    return bool(relative or absolute) and _near(wanted, found, relative, absolute)


def _near(wanted: Sequence[Any], found: Sequence[Any], relative: float, absolute: float) -> bool:
    values = []
    for parsed in (wanted, found):
        number = parsed[0].evalf() if parsed and hasattr(parsed[0], "evalf") else None
        if number is None or not number.is_real or not number.is_finite:
            return False
        values.append(float(number))
    return abs(values[1] - values[0]) <= max(absolute, relative * abs(values[0]))


def main() -> None:
    """Answer until standard input ends; a question that takes longer than its limit ends this process."""
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    import math_verify  # noqa: F401  # sympy takes a while: not at the cost of the first question

    logging.disable(logging.CRITICAL)  # math-verify reports each formula that it cannot read
    print("ready", flush=True)
    for line in sys.stdin:
        signal.alarm(seconds + 1)  # also where the asking process was killed and cannot end this one
        try:
            answer = same(**json.loads(line))
        except Exception:  # whatever sympy cannot do: then the two were not shown to be the same
            answer = False
        signal.alarm(0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
