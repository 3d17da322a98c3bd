"""Compares answers with golds, one JSON line in, one out; run by `leanthink.eval.judge`.

A process of its own, because sympy can compute for ever or take all memory, and only a process can be ended.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys

MOST_BYTES = 4 * 2**30


def main() -> None:
    """Answer until standard input ends; a question that takes longer than its limit ends this process."""
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    # sympy takes a while: not at the cost of the first question
    from leanthink.eval.comparison import same_answer
    from leanthink.eval.equality import same_formula
    from leanthink.eval.literals import Tolerance

    logging.disable(logging.CRITICAL)  # math-verify reports each formula that it cannot read
    print("ready", flush=True)
    for line in sys.stdin:
        signal.alarm(seconds + 1)  # also where the asking process was killed and cannot end this one
        try:
            asked = json.loads(line)
            tolerance = Tolerance(relative=asked["relative"], absolute=asked["absolute"])
            answer = same_answer(asked["given"], asked["gold"], tolerance, same_formula)
        except Exception:  # whatever sympy cannot do: then the two were not shown to be the same
            answer = False
        signal.alarm(0)
        print(json.dumps(answer), flush=True)
