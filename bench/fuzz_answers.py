"""Target `answers` of bench/fuzz.py: what follows a thought against a gold, before any parser of formulas."""

from __future__ import annotations

import json
import re
from typing import Any

from fuzz_target import Target, promised

from leanthink.data.grading.answer_extraction import answer_section, last_boxed
from leanthink.data.grading.answer_normalisation import EXACT, Tolerance
from leanthink.data.grading.grading import check_gold
from leanthink.data.grading.verdict import MOST_CHARACTERS, verdict
from leanthink.data.tasks import registry
from leanthink.utils.errors import LeanThinkError

PAIRS = (  # golds and answers
    (r"\frac{1}{2}", r"so \boxed{0.5} and \boxed{\dfrac12}"), ("5", "the answer is **5 cm**."),
    ("B", r"\text{(B)} 12"),
    (r"(-\infty, 2] \cup \{3, 4\}", r"\[x \leq 2\] or $x \in \{3, 4\}$"), ("x=1,y=2", "#### (x, y) = (1, 2)"),
    ("1101_2", r"</think>\boxed{1101_{\text{two}}}"), (r"3 \equiv 1 \pmod{2}", r"\fbox{x \equiv 1 (mod 2)}"),
    ("1,234,567", "1.234567 million"), (r"0.1\overline{6}", "0.1(6) = 0.1666..."),
    (r"1 \pm \sqrt{2}", "1±√(2), ½, x²"),
    ("50%", "3:4:5 is 2 square feet, 33 1/3 dollars or 1e5"),
)  # fmt: skip
TOLERANCES = (EXACT, Tolerance(relative=0.01, absolute=0.5))


def target() -> Target:
    """The first line is the gold, the rest the answer."""
    problems = [problem for name in sorted(registry.FAMILIES) for problem in registry.sample(name, 1, 1, 0)]

    def run(data: bytes) -> None:
        gold, _, text = data.decode(errors="surrogateescape").partition("\n")
        section = answer_section(text, think_tags=False)
        assert section is not None
        found = verdict(section, gold, TOLERANCES[len(data) % 2], no_formula)
        assert json.loads(json.dumps(found)) == list(found)
        for problem in problems:
            registry.is_correct(problem, last_boxed(section))
        with promised(LeanThinkError):
            check_gold(gold)
            check_own_answer(gold)

    words = {word for pair in PAIRS for word in re.findall(r"\\?[A-Za-z]+|\\.|\d+|\S", " ".join(pair))}
    return Target(
        run=run,
        seeds=tuple("\n".join(pair).encode() for pair in PAIRS),
        words=(*(word.encode() for word in sorted(words)), b" ", b"\n", b"\xff", "\u0305²⁰ₓ¼\u00a0".encode()),
        most_bytes=4000,  # what takes long takes more of the fuzzer's time than of the limit
    )


def check_own_answer(gold: str) -> None:
    """A gold in a box is right, where the box holds it whole and it is not too long to be graded."""
    box = rf"\boxed{{{gold}}}"
    if last_boxed(box) == gold and len(gold) <= MOST_CHARACTERS and "boxed" not in gold and "fbox" not in gold:
        assert verdict(box, gold, EXACT, no_formula).right, "a gold is not its own answer"


def no_formula(given: Any, gold: Any, tolerance: Any) -> bool:
    """In place of a parser of formulas: nothing is equal."""
    return False
