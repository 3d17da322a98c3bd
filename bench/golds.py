"""Grades every gold of files of problems as if it were an answer: `python bench/golds.py FILE.jsonl...`.

Each is graded in a box, and in a box with other LaTeX around it. Leaves with 1 if one is wrong.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from leanthink.eval.grading import is_correct
from leanthink.eval.problems import read_problems

FRACTION, DISPLAYED = re.compile(r"\\frac"), r"\\dfrac"
WAYS: dict[str, Callable[[str], str]] = {
    "boxed": lambda gold: rf"\boxed{{{gold}}}",
    "dressed": lambda gold: rf"Thus \[\boxed{{ \displaystyle {FRACTION.sub(DISPLAYED, gold)} \, }}.\]",
}


def main() -> None:
    """One line a file, then the golds that were graded as wrong."""
    failed: list[str] = []
    for path in map(Path, sys.argv[1:]):
        start, golds = time.perf_counter(), [(p.id, p.answer) for p in read_problems(path)]
        right = dict.fromkeys(WAYS, 0)
        for name, gold in golds:
            for way, dress in WAYS.items():
                if is_correct(dress(gold), gold):
                    right[way] += 1
                else:
                    failed.append(f"{name} {way}: {gold}")
        shares = ", ".join(f"{way} {count} of {len(golds)}" for way, count in right.items())
        print(f"{path.name}: {shares} ({time.perf_counter() - start:.1f} s)")
    print(*failed, sep="\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
