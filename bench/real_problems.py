"""Writes the problem files of bench/real/README.md: `python bench/real_problems.py --out problems`.

fit-gsm8k.jsonl    what predictors are fitted to: problems 1 to 7000 of GSM8K's training set,
fit-gaokao.jsonl   1 to 235 of Gaokao 2023 in English,
fit-olympiad.jsonl 1 to 674 of OlympiadBench,
fit-minerva.jsonl  and Minerva's 272
choose-gsm8k.jsonl what settings of training are chosen on: 7001 to 7400 of GSM8K's training set
gsm8k.jsonl        what is measured on: all of GSM8K's test set
math-500.jsonl     and all of MATH-500
long.jsonl         problems 1 to 300 of GSM8K's test set, to be asked for several attempts in one answer

The data come from the Hugging Face hub, or with --data from a folder with the files of FILES (id, problem, answer).
Ids are set and row, from 1, whatever the source calls them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from leanthink.data.problems import Problem, read_problems
from leanthink.eval.benchmarks import public
from leanthink.utils.errors import UsageError

FILES = {
    "gsm8k-train": "gsm8k_train.jsonl",
    "gaokao-2023-en": "gaokao2023en.jsonl",
    "olympiadbench": "olympiadbench.jsonl",
    "minerva": "minerva_math.jsonl",
    "gsm8k": "gsm8k_test.jsonl",
    "math-500": "math500.jsonl",
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows `first` to `last` of a set, both counted from 1 and included."""

    source: str
    first: int
    last: int

    def of(self, problems: Sequence[Problem]) -> list[Problem]:
        """These problems of the whole set, under ids that tell their rows. Raises UsageError for too few."""
        if len(problems) < self.last:
            raise UsageError(f"{self.source} has {len(problems)} problems, rows {self.first} to {self.last} are needed")
        rows = range(self.first, self.last + 1)
        return [replace(problems[row - 1], id=f"{self.source}-{row}") for row in rows]


FITTED = {
    "fit-gsm8k": Part(source="gsm8k-train", first=1, last=7000),
    "fit-gaokao": Part(source="gaokao-2023-en", first=1, last=235),
    "fit-olympiad": Part(source="olympiadbench", first=1, last=674),
    "fit-minerva": Part(source="minerva", first=1, last=272),
}
MEASURED = {
    "choose-gsm8k": Part(source="gsm8k-train", first=7001, last=7400),
    "gsm8k": Part(source="gsm8k", first=1, last=1319),
    "math-500": Part(source="math-500", first=1, last=500),
    "long": Part(source="gsm8k", first=1, last=300),
}


def main(arguments: Sequence[str]) -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    parser.add_argument("--data", type=Path, default=None, help="folder of the sets as JSONL; default: the hub")
    options = parser.parse_args(arguments)
    try:
        sets = {
            name: public(name).problems if options.data is None else read_problems(options.data / file)
            for name, file in FILES.items()
        }
        parts = {name: part.of(sets[part.source]) for name, part in (FITTED | MEASURED).items()}
        check_apart(parts)
    except UsageError as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, problems in parts.items():
        lines = [json.dumps({"id": p.id, "problem": p.problem, "answer": p.answer}) + "\n" for p in problems]
        (options.out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{options.out / name}.jsonl: {len(problems)} problems, {problems[0].id} to {problems[-1].id}")


def check_apart(parts: Mapping[str, Sequence[Problem]]) -> None:
    """Raise UsageError if a problem that is measured on is also fitted to, whatever its id, case and spaces."""
    fitted = {_text(problem): problem.id for name in FITTED for problem in parts[name]}
    for name in MEASURED:
        for problem in parts[name]:
            if (other := fitted.get(_text(problem))) is not None:
                raise UsageError(
                    f"{problem.id} of {name} is the same problem as {other}, which predictors are fitted to"
                )


def _text(problem: Problem) -> str:
    return " ".join(problem.problem.casefold().split())


if __name__ == "__main__":
    main(sys.argv[1:])
