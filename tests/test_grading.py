from __future__ import annotations

import importlib.util
import threading
from fractions import Fraction

import pytest

from leanthink.data.grading import math_verify_pool
from leanthink.data.grading.answer_normalisation import as_number, last_number
from leanthink.data.grading.grading import is_correct, is_solved, last_boxed
from leanthink.data.problems import Problem, from_tasks
from leanthink.data.tasks import registry
from leanthink.utils.errors import UsageError

needs_math_verify = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="extra eval")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{x \right.}", r"\left\{x \right."),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed{5} and then \boxed{12", "5"),
        (r"\boxed{12", None),
        ("", None),
        ("boxed{3}", None),
        (r"\boxed{}", ""),
    ],
)
def test_the_last_complete_box_is_found(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234", Fraction(1234)),
        ("1{,}234", Fraction(1234)),
        ("-0.5", Fraction(-1, 2)),
        (".5", Fraction(1, 2)),
        ("7.", Fraction(7)),
        ("- 3", Fraction(-3)),
        ("\u22123", Fraction(-3)),
        ("3/4", Fraction(3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        (r"\frac34", Fraction(3, 4)),
        (r"\$18.00", Fraction(18)),
        ("$18$", Fraction(18)),
        (r"50\%", Fraction(50)),
        (r"90^\circ", Fraction(90)),
        (r"90^{\circ}", Fraction(90)),
        (r"20\text{ cm}^2", Fraction(20)),
        ("18 dollars", Fraction(18)),
        ("1e5", Fraction(100000)),
        (r"4.5 \times 10^{33}", Fraction(45 * 10**32)),
        (r"-2\cdot10^{-3}", Fraction(-1, 500)),
        ("2 pi", None),
        ("3 or 4", None),
        ("5x", None),
        ("1/0", None),
        (r"\frac{1}{0}", None),
        ("12,34", None),
        (r"5\frac{1}{2}", Fraction(11, 2)),
        ("x", None),
        ("", None),
        ("1 2", None),
        ("1e999999999", None),
    ],
)
def test_only_literal_numbers_are_read_as_numbers(text: str, number: Fraction | None) -> None:
    assert as_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("it is 1,234.", "1234"),
        ("5-3", "3"),
        ("5 - 3 = 2", "2"),
        ("that makes -7", "-7"),
        ("from 2 to $3.50", "3.50"),
        ("$18.", "18"),
        ("#### 72\n", "72"),
        ("(4)-2", "2"),
        ("none", None),
    ],
)
def test_the_last_number_of_a_text_is_read_with_its_sign(text: str, number: str | None) -> None:
    assert last_number(text) == number


def test_only_what_follows_the_thought_is_graded() -> None:
    assert not is_correct(r"maybe \boxed{5}</think>\boxed{6}", "5")
    assert not is_correct("it is 5</think>", "5")


def test_an_unclosed_thought_is_wrong_where_the_model_has_tags() -> None:
    assert not is_correct(r"so \boxed{5}", "5", think_tags=True)
    assert is_correct(r"so \boxed{5}", "5", think_tags=False)


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        (r"\boxed{1234567890123}", "1234567890123", True),
        (r"\boxed{1234567890124}", "1234567890123", False),
        (r"\boxed{1,234}", "1234", True),
        (r"\boxed{0.3333333}", "1/3", True),
        (r"\boxed{0.33}", "1/3", False),
        (r"\boxed{025}", "25", True),
        ("The answer is 18 dollars.", "18", True),
        ("First 18, then 20.", "18", False),
        ("nothing", "18", False),
        (r"It is 18, so \boxed{", "18", True),
        (r"\boxed{}", "18", False),
        (r"5 \boxed{6}", "5", False),
        ("", "5", False),
    ],
)
def test_numeric_golds_need_nothing_installed(
    text: str, gold: str, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(math_verify_pool, "is_available", lambda: False)
    assert is_correct(text, gold) is right


def test_a_problem_with_its_own_check_is_graded_by_it_on_the_box_alone() -> None:
    seen: list[str | None] = []
    problem = Problem(id="a", problem="?", answer="1+2", check=lambda box: seen.append(box) or box == "2+1")
    assert is_solved(problem, r"\boxed{1+2}</think>so \boxed{2+1}", think_tags=True)
    assert not is_solved(problem, r"\boxed{2+1}", think_tags=True)
    assert not is_solved(problem, "</think>2+1", think_tags=True)
    assert seen == ["2+1", None]


def test_a_problem_without_a_check_is_graded_by_its_gold() -> None:
    problem = Problem(id="a", problem="?", answer="3")
    assert is_solved(problem, r"\boxed{3.0}", think_tags=False)
    assert not is_solved(problem, r"\boxed{3.0}", think_tags=True)


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_embedded_tasks_are_solved_by_their_own_answers(family: str) -> None:
    for task, problem in zip(two := registry.sample(family, 1, 2, seed=0), from_tasks(two), strict=True):
        assert (problem.id, problem.problem) == (task.id, task.prompt)
        assert is_solved(problem, f"</think>\\boxed{{{task.answer}}}", think_tags=True)
        assert not is_solved(problem, "</think>\\boxed{-1}", think_tags=True)


@needs_math_verify
@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        (r"\boxed{(3,\pi/2)}", r"\left( 3, \frac{\pi}{2} \right)", True),
        (r"\boxed{(3,\pi/3)}", r"\left( 3, \frac{\pi}{2} \right)", False),
        (r"\boxed{-1-i\sqrt3}", r"-1-\sqrt{3}i", True),
        (r"\boxed{-2, 1}", "1,-2", True),
        (r"\boxed{p-q}", "p - q", True),
        (r"\boxed{q-p}", "p - q", False),
        (r"\boxed{5\frac{1}{2}}", r"\frac{11}{2}", True),
        (r"\boxed{x=5}", "5", True),
        (r"\boxed{f(2) = 5}", "5", True),
        (r"\boxed{\frac{1}{2} + \frac{9}{2} = 5}", "5", True),
        (r"\boxed{x^2 - y^2 = 5}", "5", False),
        (r"\boxed{5x}", "5", False),
        (r"\boxed{\text{(A)}}", "A", True),
        (r"\boxed{\text{B}}", "A", False),
        (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}", True),
        (r"The final answer is $\frac{\sqrt{2}}{2}$.", r"\frac{1}{\sqrt{2}}", True),
        (r"\boxed{}}{garbage\frac{}", r"\sqrt{2}", False),
        (r"\boxed{2^{2^{2^{2^{2^{2^{2}}}}}}}", r"\sqrt{2}", False),
    ],
)
def test_other_golds_are_compared_as_mathematics(text: str, gold: str, right: bool) -> None:
    assert is_correct(text, gold) is right


def test_without_math_verify_a_formula_as_gold_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_verify_pool, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"leanthink\[eval\]"):
        is_correct(r"\boxed{\frac{2}{\sqrt{2}}}", r"\sqrt{2}")


def test_an_empty_gold_is_refused() -> None:
    with pytest.raises(UsageError, match="gold is empty"):
        is_correct("5", " ")


@needs_math_verify
def test_formulas_are_graded_outside_the_main_thread() -> None:
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(is_correct(r"\boxed{\sqrt{8}}", r"2\sqrt{2}")))
    thread.start()
    thread.join()
    assert results == [True]
