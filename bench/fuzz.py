"""Coverage-guided fuzzing of what strangers hand in: `python bench/fuzz.py TARGET [--seconds 600] [--out FOLDER]`.

Targets are bodies (of HTTP requests), lines (traces, records and problems), answers (against golds) and tensors
(predictors and labels). atheris has to be installed beside the package (`pip install atheris`); nothing else needs it.
Every input may raise the errors that are promised and nothing else, may take so many seconds and bytes, and what was
read must be the same once it is written and read again. FOLDER gets the corpus, which a later run goes on from, and one
input for each place where that fails. Inputs worth keeping stand in tests/corpora/TARGET, where a test replays them.
"""

from __future__ import annotations

import argparse
import importlib
import random
import re
import sys
import traceback
from pathlib import Path

from fuzz_mutations import mutated
from fuzz_target import Target, bounded

CORPORA = Path(__file__).parent.parent / "tests" / "corpora"
TARGETS = ("bodies", "lines", "answers", "tensors")  # each `target` of a file fuzz_NAME.py


def target_of(name: str) -> Target:
    """The target of this name. Only now is imported what it fuzzes, which atheris has to see."""
    made: Target = importlib.import_module(f"fuzz_{name}").target()
    return made


def fuzz(name: str, seconds: int, out: Path) -> None:
    """Fuzz one target; ends the process."""
    import atheris

    with atheris.instrument_imports(include=["leanthink"]):
        target = target_of(name)
    corpus, findings = out / "corpus", out / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    kept = [path.read_bytes() for path in sorted((CORPORA / name).glob("*"))]
    for index, seed in enumerate((*target.seeds, *kept)):
        (corpus / f"seed-{index}").write_bytes(seed)
    found: set[str] = set()

    def once(data: bytes) -> None:
        try:
            bounded(target.run, data)
        except Exception as error:
            note(error, data, findings, found)

    def custom_mutator(data: bytes, most: int, seed: int) -> bytes:
        return mutated(data, target, random.Random(seed), lambda given: atheris.Mutate(given, len(given) + 8))[:most]

    options = [f"-max_total_time={seconds}", f"-max_len={target.most_bytes}", "-len_control=0", "-timeout=30",
               "-rss_limit_mb=6000", "-print_final_stats=1", f"-artifact_prefix={findings}/", str(corpus)]  # fmt: skip
    atheris.Setup([sys.argv[0], *options], once, custom_mutator=custom_mutator)
    atheris.Fuzz()


def note(error: Exception, data: bytes, findings: Path, found: set[str]) -> None:
    """Write and tell an input that raised an error, unless one that raised its like at the same place was `found`."""
    at = [frame for frame in traceback.extract_tb(error.__traceback__) if "leanthink" in frame.filename]
    where = f"{at[-1].name}-{at[-1].lineno}" if at else "harness"
    place = re.sub(r"\W", "-", f"{type(error).__name__}-{where}-{str(error)[:12] if not at else ''}")
    if place not in found:
        found.add(place)
        (findings / place).write_bytes(data)
        print(f"FINDING {place}: {' '.join(str(error).split())[:200]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    fuzz(asked.target, asked.seconds, asked.out or Path("fuzz") / asked.target)


if __name__ == "__main__":
    main()
