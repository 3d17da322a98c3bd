"""Grading takes no longer for what a model may write by accident: lengths and repetitions of every kind."""

from __future__ import annotations

import importlib.util
import time

import pytest

from leanthink.data.grading import (
    answer_comparison,
    answer_extraction,
    answer_normalisation,
    grading,
    math_verify_pool,
    verdict,
)
from leanthink.data.grading.grading import is_correct, is_solved, vote
from leanthink.data.gym import gym_problems
from leanthink.data.tasks import registry

needs_math_verify = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="extra eval")
COUNT = ",".join(map(str, range(3000)))
BACKWARDS = ",".join(map(str, reversed(range(3000))))
LONG = {  # name: text, gold, whether it is right
    "digits": (r"\boxed{" + "1" * 5000 + "}", "5", False),
    "digits of the gold": (r"\boxed{" + "1" * 5000 + "}", "1" * 5000, True),
    "digits in a fraction": (r"\boxed{\frac{" + "1" * 5000 + "}{3}}", "5", False),
    "boxes that do not end": (r"\boxed{" * 4000, "5", False),
    "boxes in boxes": (r"\boxed{" * 4000 + "5" + "}" * 4000, "5", True),
    "boxes without a brace": (r"\boxed " * 20_000, "5", False),
    "spaces in a box that does not end": (r"\boxed{5" + " " * 10_000, "5", True),
    "spaces in a box": (r"\boxed{5" + " " * 9000 + "}", "5", True),
    "spaces between": (r"\boxed{5" + " " * 9000 + "x}", "5", False),
    "a list backwards": (rf"\boxed{{{BACKWARDS}}}", COUNT, True),
    "another list": (rf"\boxed{{{BACKWARDS}1}}", COUNT, False),
    "more than is compared": (r"\boxed{1" + ",1" * 20_000 + "}", COUNT, False),
    "parentheses": (r"\boxed{" + "(" * 4000 + "5" + ")" * 4000 + "}", "5", False),
    "roots": (r"\boxed{" + "sqrt(" * 1000 + "5" + ")" * 1000 + "}", "5", False),
    "names": (r"\boxed{" + "x=" * 3000 + "5}", "5", True),
    "steps of a calculation": (r"\boxed{" + "(121)=" * 1000 + "(121)}", r"x=1,\sqrt{2}" + "=(121)" * 300, False),
    "powers": (r"\boxed{" + "2^" * 1000 + "2}", r"\sqrt{2}", False),
    "words": (r"\boxed{" + "5 aa" * 2400 + "1}", r"\sqrt{2}", False),
    "a text of numbers": ("5 " * 500_000, "7", False),
    "a text of formulas": ("$x$ " * 100_000, r"\sqrt{2}", False),
    "a text of one number": ("1" * 100_000, "7", False),
    "formulas that do not end": (r"\[" * 50_000, r"\sqrt{2}", False),
    "statements": ("answer is " * 100_000, "7", False),
    "braces": ("{" * 200_000, "7", False),
    "thoughts": ("</think>" * 100_000 + r"\boxed{7}", "7", True),
    "boxes in many boxes": (r"\boxed{" * 70_000 + "5" + "}" * 70_000, "5", True),
    "dollars with spaces": (r"\boxed{5" + "$ " * 9000 + "x}", "7", False),
    "spaces for looks": (r"\boxed{5" + r"\," * 6000 + "x}", "7", False),
    "wide spaces for looks": (r"\boxed{" + r"\quad" * 200_000 + "}", "7", False),
    "unicode digits": (r"\boxed{" + "\u0663" * 5000 + "}", "7", False),
    "lone surrogates": (r"\boxed{" + "\ud800" * 5000 + "}", "7", False),
}


@needs_math_verify
@pytest.mark.parametrize("name", LONG)
def test_a_long_answer_is_graded_in_little_time(name: str) -> None:
    text, gold, right = LONG[name]
    is_correct(r"\boxed{\sqrt{8}}", r"2\sqrt{2}")  # so that a process has started
    start = time.perf_counter()
    assert is_correct(text, gold) is right
    vote(text, gold, think_tags=False)
    assert time.perf_counter() - start < 2


@needs_math_verify
def test_no_answer_is_looked_at_but_where_the_time_limit_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("given_answer", "same_answer", "as_number", "plain"):
        for module in (answer_extraction, answer_comparison, grading, answer_normalisation, verdict):
            monkeypatch.setattr(module, name, _must_not_run, raising=False)
    assert is_correct(r"so \boxed{\frac{1}{2}}", "0.5")
    assert vote(r"so \boxed{5,000}", "5", think_tags=False) == "5000"


def _must_not_run(*_given: object, **_more: object) -> None:
    raise AssertionError("an answer was read in this process")


def test_a_score_of_another_package_that_raises_or_hangs_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("reasoning_gym")
    (problem,) = gym_problems("simple_equations", {}, 1, 0)
    assert is_solved(problem, rf"\boxed{{{problem.answer}}}", think_tags=False)
    assert not is_solved(problem, rf"\boxed{{{'9' * 5000}}}", think_tags=False)
    for name in ("spell_backward", "countdown"):
        (problem,) = gym_problems(name, {}, 1, 0)
        is_solved(problem, r"\boxed{1}", think_tags=False)  # so that a process has made its family
        start = time.perf_counter()
        assert not is_solved(problem, r"\boxed{9**9**9**9}", think_tags=False)
        assert time.perf_counter() - start < math_verify_pool.LIMIT_SECONDS + 2


@pytest.mark.parametrize(
    "answer", ["(" * 300_000, "-" * 300_000 + "1", "1+" * 300_000 + "1", "9" * 300_000, "\0", "\ud800"]
)
def test_an_embedded_task_is_graded_in_little_time(answer: str) -> None:
    (task,) = registry.sample("countdown", 1, 1, seed=0)
    start = time.perf_counter()
    assert not registry.is_correct(task, answer)
    assert time.perf_counter() - start < 0.1
