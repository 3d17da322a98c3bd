"""Grades golds as if they were answers: `python bench/golds.py [--pairs N] FILE.jsonl...`. Leaves with 1 if one fails.

Each gold is graded in a box and in a box with other LaTeX around it, against itself. With `--pairs N` it is graded
against N other golds of its file instead, those that look most like it: none may be taken for equal, and each pair that
is gets printed, to be looked at.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from leanthink.data.grading.answer_normalisation import plain
from leanthink.data.grading.grading import is_correct
from leanthink.data.problems import read_problems

FRACTION, DISPLAYED = re.compile(r"\\frac"), r"\\dfrac"
WAYS: dict[str, Callable[[str], str]] = {
    "boxed": lambda gold: rf"\boxed{{{gold}}}",
    "dressed": lambda gold: rf"Thus \[\boxed{{ \displaystyle {FRACTION.sub(DISPLAYED, gold)} \, }}.\]",
}


def themselves(path: Path) -> tuple[str, list[str]]:
    """How many golds are right about themselves, and those that are not."""
    golds, failed = [(problem.id, problem.answer) for problem in read_problems(path)], []
    right = dict.fromkeys(WAYS, 0)
    for name, gold in golds:
        for way, dress in WAYS.items():
            if is_correct(dress(gold), gold):
                right[way] += 1
            else:
                failed.append(f"{name} {way}: {gold}")
    return ", ".join(f"{way} {count} of {len(golds)}" for way, count in right.items()), failed


def others(path: Path, count: int) -> tuple[str, list[str]]:
    """How many pairs of different golds are taken for equal, and which."""
    golds = {plain(problem.answer): problem.answer for problem in read_problems(path)}
    pairs = list(neighbours(sorted(golds.values()), count))
    equal = [f"{given}  taken for  {gold}" for given, gold in pairs if is_correct(rf"\boxed{{{given}}}", gold)]
    return f"{len(pairs)} pairs of different golds, {len(equal)} taken for equal", equal


def neighbours(golds: list[str], count: int) -> Iterator[tuple[str, str]]:
    """Each gold with `count` others: every pair in both directions, those of the most similar texts."""
    numbers = [gold for gold in golds if re.fullmatch(r"-?\d+", gold)]
    written = [gold for gold in golds if gold not in set(numbers)]
    for kind in (numbers, written):
        for gold in kind:
            for other in difflib.get_close_matches(gold, kind, n=count + 1, cutoff=0.0):
                if other != gold:
                    yield other, gold


def main() -> None:
    """One line a file, then what was graded wrongly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--pairs", type=int, default=0, metavar="N")
    asked = parser.parse_args()
    failed: list[str] = []
    for path in asked.files:
        start = time.perf_counter()
        line, wrong = others(path, asked.pairs) if asked.pairs else themselves(path)
        failed += wrong
        print(f"{path.name}: {line} ({time.perf_counter() - start:.1f} s)", flush=True)
    print(*failed, sep="\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
