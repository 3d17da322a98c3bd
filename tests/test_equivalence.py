"""Answers that say the same in other words, and answers that only look as if they did."""

from __future__ import annotations

import importlib.util

import pytest

from leanthink.data.grading.answer_normalisation import Tolerance
from leanthink.data.grading.grading import is_correct

needs_math_verify = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="extra eval")

SAME = [  # content of the box, gold
    # numbers
    ("1,234", "1234"),
    ("1{,}234", "1234"),
    (r"1\,234", "1234"),
    ("58500", "58,500"),
    ("007", "7"),
    ("7.0", "7"),
    ("+7", "7"),
    ("-7.00", "-7"),
    ("\u22127", "-7"),
    ("0.5", r"\frac{1}{2}"),
    (r"\frac12", "0.5"),
    (r"\dfrac{1}{2}", r"\tfrac{1}{2}"),
    ("1/2", r"\cfrac{1}{2}"),
    ("2/4", r"\frac{1}{2}"),
    (r"\frac{-3}{4}", r"-\frac{3}{4}"),
    (r"\frac{3}{-4}", r"-\frac34"),
    ("-1./3", r"-\frac{1}{3}"),
    ("0.333333333", r"\frac13"),
    ("1e3", "1000"),
    (r"1.5 \times 10^{3}", "1500"),
    (r"1.5\cdot10^3", "1500"),
    ("1.5*10^3", "1500"),
    ("1.5e-3", "0.0015"),
    (r"5\frac{1}{2}", r"\frac{11}{2}"),
    ("3.50", "3.5"),
    # units, money, percent
    (r"20\text{ cm}", "20"),
    (r"20 \mathrm{~cm}^{2}", "20"),
    ("20 cm^{2}", "20 cm^{2}"),
    (r"\$18", "18"),
    ("$18.00$", "18"),
    ("18 dollars", "18"),
    (r"90^\circ", "90"),
    (r"90^{\circ}", r"90\text{ degrees}"),
    ("90°", "90"),
    (r"50\%", "50"),
    ("0.5", r"50\%"),
    ("50%", "0.5"),
    (r"12.5\%", r"\frac{1}{8}"),
    (r"5\pi\text{ cm}^2", r"5\pi"),
    (r"10\sqrt{2}\text{ units}", r"10\sqrt2"),
    # formulas
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    (r"2\sqrt{2}", r"\sqrt{8}"),
    (r"\sqrt[3]{8}x", "2x"),
    (r"x^2+2x+1", r"(x+1)^2"),
    ("2x + 3y", "3y+2x"),
    (r"\frac{x}{2}", r"\frac12 x"),
    (r"e^{2\ln 3}", "9"),
    (r"\frac{\pi}{2}", r"0.5\pi"),
    (r"1+i\sqrt{3}", r"1+\sqrt{3}i"),
    (r"\log_2 8", "3"),
    (r"2^{10}", "1024"),
    (r"\binom{5}{2}", "10"),
    ("5!", "120"),
    (r"\sin\frac{\pi}{6}", r"\frac12"),
    ("x=5", "5"),
    (r"x = \frac{3}{2}", "1.5"),
    ("f(2)=5", "5"),
    ("5", "x=5"),
    (r"\left(\frac{1}{2}\right)", r"\frac{1}{2}"),
    (r"\displaystyle\frac{1}{2}", r"\frac{1}{2}"),
    ("p - q", "p-q"),
    (r"\frac{a}{b+c}", r"\frac{a}{c+b}"),
    (r"(n-1)(n+1)", "n^2-1"),
    # several answers, in any order
    ("2, -2", "-2, 2"),
    ("-2,2", "2,-2"),
    (r"2 \text{ or } -2", "-2,2"),
    ("2 or -2", "2, -2"),
    ("2 and -2", "2, -2"),
    (r"2\text{ and }-2", "2,-2"),
    ("1, 2, and 3", "1,2,3"),
    (r"\pm 2", "2,-2"),
    ("2,-2", r"\pm2"),
    (r"1 \pm \sqrt{3}", r"1+\sqrt3, 1-\sqrt3"),
    ("x=2, x=-2", "2,-2"),
    ("x=1 or x=3", "1,3"),
    (r"\{1,2,3\}", r"\{3,2,1\}"),
    (r"\{1,2\}", "1,2"),
    ("1; 2", "2, 1"),
    (r"\frac12, 3", r"3, 0.5"),
    ("100,200", "100, 200"),
    (r"\left\{-1,\,0\right\}", r"\{0,-1\}"),
    # tuples, intervals, inequalities
    ("(1,2)", "(1, 2)"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"),
    (r"(0.5, 2)", r"\left(\frac12, 2\right)"),
    ("(1,2,3)", r"\left(1, 2, 3\right)"),
    ("3, 4", "(3,4)"),
    (r"[1,2)", r"\left[1, 2\right)"),
    (r"x \in [1,2)", "[1,2)"),
    (r"(-\infty, 3)", r"\left(-\infty,3\right)"),
    (r"(3, +\infty)", r"(3,\infty)"),
    (r"1 < x < 2", "(1,2)"),
    (r"1 \le x < 2", "[1,2)"),
    (r"2 > x \geq 1", "[1,2)"),
    ("x > 3", r"(3,\infty)"),
    ("3 < x", r"(3,\infty)"),
    (r"x \leqslant 3", r"(-\infty,3]"),
    (r"[-2, 1)", r"\{x|-2\leq x < 1\}"),
    (r"\{x \mid -2 \le x < 1\}", r"\{x|-2\leq x < 1\}"),
    (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty) \cup (-\infty,1)"),
    (r"(-\infty, 0] \cup [0.5, \infty)", r"(-\infty,0]\cup[\frac{1}{2},\infty)"),
    # words and letters
    (r"\text{Evelyn}", "Evelyn"),
    ("evelyn", r"\text{Evelyn}"),
    (r"\text{yes}", "Yes"),
    (r"\text{(A)}", "A"),
    ("(A)", "A"),
    ("A.", "A"),
    (r"\textbf{(B)}", "B"),
    ("C. 12 m/s", "C"),
    (r"\text{(C) 12 m/s}", "C"),
    ("option D", "D"),
    ("b", "B"),
]
OTHER = [
    # numbers
    ("1,235", "1234"),
    ("7", "-7"),
    ("0.33", r"\frac13"),
    ("3.14", r"\pi"),
    (r"\frac{22}{7}", r"\pi"),
    ("1.0001", "1"),
    ("12345678901234567891", "12345678901234567890"),
    (r"\frac{2}{1}", r"\frac{1}{2}"),
    ("10^3", "100"),
    (r"1.5\times10^{-3}", "1500"),
    (r"5\frac{1}{2}", r"\frac{5}{2}"),
    ("0.05", r"50\%"),
    (r"5\%", "50"),
    ("", "0"),
    (r"\infty", "0"),
    ("none", "0"),
    # formulas
    ("5x", "5"),
    ("x^2 - y^2 = 5", "5"),
    ("q-p", "p-q"),
    (r"\sqrt{2}", "2"),
    (r"2\sqrt{3}", r"3\sqrt{2}"),
    (r"x^2+1", r"(x+1)^2"),
    (r"\frac{a}{b}+c", r"\frac{a}{b+c}"),
    (r"1-i", "1+i"),
    ("x", "y"),
    (r"\frac{1}{0}", "1"),
    # several answers
    ("2", "2,-2"),
    ("2,-2", "2"),
    ("2,2", "2,-2"),
    ("2,3", "2,2"),
    ("1,2,3", "1,2"),
    ("1,2", "1,2,3"),
    (r"\pm 2", "2"),
    (r"\pm 3", "2,-2"),
    (r"\{1,2\}", r"\{1,3\}"),
    ("2 or 3", "2 or -3"),
    ("x=2", "x=2, x=3"),
    # tuples, intervals, inequalities
    ("(2,1)", "(1,2)"),
    ("(1,2)", "[1,2]"),
    ("[1,2)", "(1,2]"),
    ("(1,2)", "(1,2,3)"),
    (r"1 < x < 2", "[1,2]"),
    (r"1 \le x < 2", "(1,2)"),
    ("x > 3", r"(-\infty,3)"),
    ("x > 3", r"[3,\infty)"),
    ("3", "(3, 4)"),
    (r"(-\infty,1)\cup(2,\infty)", r"(-\infty,1]\cup(2,\infty)"),
    (r"(-\infty,1)", r"(-\infty,1)\cup(2,\infty)"),
    # words and letters
    (r"\text{Evelyn}", r"\text{Angela}"),
    ("no", "yes"),
    ("B", "A"),
    ("A, B", "A"),
    ("Apple", "A"),
    ("Because of C", "B"),
    ("(A) 3", "B"),
]


def test_the_table_is_long_enough_to_mean_something() -> None:
    assert len(set(SAME)) == len(SAME)
    assert len(set(OTHER)) == len(OTHER)
    assert len(SAME) + len(OTHER) >= 120


@needs_math_verify
@pytest.mark.parametrize(("given", "gold"), SAME)
def test_other_ways_of_writing_the_gold_are_right(given: str, gold: str) -> None:
    assert is_correct(rf"so it is \boxed{{{given}}}.", gold)


@needs_math_verify
@pytest.mark.parametrize(("given", "gold"), OTHER)
def test_what_is_not_the_gold_is_wrong(given: str, gold: str) -> None:
    assert not is_correct(rf"so it is \boxed{{{given}}}.", gold)


@needs_math_verify
@pytest.mark.parametrize("gold", sorted({gold for _, gold in SAME + OTHER}))
def test_every_gold_is_right_about_itself(gold: str) -> None:
    assert is_correct(rf"\boxed{{{gold}}}", gold)


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("The answer is (C).", "C", True),
        ("**Answer: C**", "C", True),
        ("Answer: $C$", "C", True),
        (r"the correct option is \text{C}", "C", True),
        ("A is wrong. The answer is B.", "B", True),
        ("A is wrong. The answer is B.", "A", False),
        ("The answer is a matter of taste.", "A", False),
        ("I cannot tell.", "C", False),
    ],
)
@needs_math_verify
def test_a_choice_may_be_stated_without_a_box(text: str, gold: str, right: bool) -> None:
    assert is_correct(text, gold) is right


@needs_math_verify
@pytest.mark.parametrize(
    ("given", "gold", "tolerance", "right"),
    [
        ("1.61", "1.6", Tolerance(relative=0.01), True),
        ("1.62", "1.6", Tolerance(relative=0.01), False),
        ("4.53e33", "4.5e33", Tolerance(relative=0.01), True),
        ("-1.6", "1.6", Tolerance(relative=0.01), False),
        ("3.14", r"\pi", Tolerance(relative=0.01), True),
        ("3.0", r"\pi", Tolerance(relative=0.01), False),
        (r"\sqrt{2}", "1.414", Tolerance(relative=0.001), True),
        ("56.1", "56", Tolerance(absolute=0.1), True),
        ("56.2", "56", Tolerance(absolute=0.1), False),
        ("(1.001, 2)", "(1,2)", Tolerance(relative=0.01), True),
        ("100", "101", Tolerance(), False),
    ],
)
def test_numbers_may_differ_by_the_tolerance_and_no_more(
    given: str, gold: str, tolerance: Tolerance, right: bool
) -> None:
    assert is_correct(rf"\boxed{{{given}}}", gold, tolerance=tolerance) is right
