"""Right answers in the many ways that people and models write them."""

from __future__ import annotations

import importlib.util
from fractions import Fraction

import pytest

from leanthink.data.grading.answer_normalisation import as_number
from leanthink.data.grading.grading import is_correct
from leanthink.data.grading.named_results import is_name
from leanthink.data.grading.plain_text import as_latex
from leanthink.data.grading.units import is_unit, same_unit

needs_math_verify = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="extra eval")

SAME = [
    ("3/4", r"\frac{3}{4}"),
    ("5 1/2", r"\frac{11}{2}"),
    ("1.5e3", "1500"),
    ("–5", "-5"),
    ("−5", "-5"),
    (r"\angle ABC = 30^\circ", "30"),
    ("a_{10} = 30", "30"),
    ("P(X=2) = 30", "30"),
    (r"\text{Probability} = \frac14", r"\frac14"),
    (r"\text{Probability} = \frac14", "0.25"),
    ("(x,y)=(1,2)", "(1,2)"),
    (r"\textbf{(B)}\ 12", "12"),
    (r"\textbf{(B)}\ 12", "B"),
    (r"\textbf{(B) }12", "12"),
    (r"\text{(B) }\frac{1}{2}", "0.5"),
    ("(B) 12", "12"),
    (r"\mathrm{(B)}\ 12", "B"),
    ("11 5/6", r"\frac{71}{6}"),
    (r"11\frac{5}{6}", "11 5/6"),
    (r"0.\overline{3}", r"\frac13"),
    (r"0.1\overline{6}", r"\frac16"),
    (r"0.\dot{3}", "1/3"),
    ("0.(3)", "1/3"),
    ("0.333...", "1/3"),
    (r"0.1666\ldots", "1/6"),
    (r"0.\dot{1}4285\dot{7}", "1/7"),
    (r"33\frac{1}{3}\%", r"\frac13"),
    (r"33\frac{1}{3}\%", r"33\frac13"),
    ("√2", r"\sqrt{2}"),
    ("x²", "x^2"),
    ("½", r"\frac12"),
    ("5½", "5.5"),
    ("∞", r"\infty"),
    ("3×10⁵", "300000"),
    ("2π", r"2\pi"),
    ("α+β", r"\alpha+\beta"),
    ("x≤3", r"(-\infty,3]"),
    ("x₁", "x_1"),
    ("∛2", r"\sqrt[3]{2}"),
    ("2·3", "6"),
    ("10⁻³", "0.001"),
    ("√(x+1)", r"\sqrt{x+1}"),
    ("３", "3"),
    (r"\varnothing", r"\emptyset"),
    (r"\{\}", r"\varnothing"),
    ("∅", r"\{\}"),
    ("x <= 3", r"x \le 3"),
    ("x <= 3", r"(-\infty,3]"),
    ("x >= 3", r"[3,\infty)"),
    ("2^{0.5}", r"\sqrt{2}"),
    ("2^{1/2}", r"\sqrt2"),
    (r"4\mathrm{i}", "4i"),
    (r"3+4\mathrm{i}", "3+4i"),
    ("(1+i)^2", "2i"),
    (r"e^{i\pi}", "-1"),
    (r"1-\frac{1}{\mathrm{e}}", "1-e^{-1}"),
    (r"4\sqrt(2)", r"4\sqrt{2}"),
    ("4sqrt(2)", r"4\sqrt{2}"),
    ("452_7", "452_{7}"),
    (r"452_{\text{seven}}", "452_7"),
    (r"n\equiv 3\pmod 4", r"n \equiv 3 \pmod{4}"),
    (r"3 \pmod 4", r"n\equiv 3\pmod 4"),
    (r"x \equiv 3 (\text{mod } 4)", r"3\pmod{4}"),
    (r"\frac{dy}{dx}+1", r"1+\frac{dy}{dx}"),
    ("y'+2y", "2y+y'"),
    (r"\sin 30^\circ", r"\frac12"),
    (r"\mathrm{sin}(x)", r"\sin x"),
    (r"\operatorname{sin}x+1", r"1+\sin x"),
    (r"\pi(R^2-r^2)", r"\pi(R-r)(R+r)"),
    ("y=2x+3", "2x-y+3=0"),
    ("x^2+y^2=4", "4=x^2+y^2"),
    ("10^{-30}", r"1\times10^{-30}"),
    (r"2\mathbf{i}+3\mathbf{j}", "2i+3j"),
    (r"x = \sqrt2 \approx 1.41", r"\sqrt{2}"),
    (r"\sqrt2 \approx 1.41", "1.41"),
    ("f(x)=x^2+1", "x^2+1"),
    (r"S=\{1,2\}", r"\{1,2\}"),
    ("9.8 m/s^2", "9.8"),
    ("20 cm^2", "20"),
    ("5 m", "5"),
    ("60 km/h", "60"),
    (r"60\text{ km/h}", "60"),
    (r"5\text{ square units}", "5"),
    ("5cm", "5"),
    (r"12\text{th}", "12"),
    ("AB=5", "5"),
    ("|AB|=5", "5"),
    (r"\overline{AB}=5", "5"),
    (r"\frac{AB}{CD}=\frac12", "1/2"),
    ("E[X]=3", "3"),
    (r"\mathbb{E}[X]=3", "3"),
    ("f^{-1}(2)=3", "3"),
    (r"\max f = 3", "3"),
    ("S_n = n^2", "n^2"),
    ("x = 3+2 = 5", "5"),
    ("1:2:3", "1:2:3"),
    (r"\sqrt{8}\cdot 2 = 4\sqrt2", r"4\sqrt{2}"),
    (r"x\in\varnothing", r"\emptyset"),
    ("A = 5, B = 6", "5, 6"),
    ("1/2 or 0.5", r"\frac12,\frac12"),
    (r"\text{42}", "42"),
    (r"\textbf{42.0}", "42"),
    (r"\mathbf{42}", "42"),
    (r"\text{3 cm}", "3"),
    (r"\displaystyle 42.0", "42"),
    ("=5", "5"),
    (r"\approx 3.14", "3.14"),
    ("25 percent", "0.25"),
    (r"25\text{ percent}", r"25\%"),
    (r"x<2 \text{ or } x>3", r"(-\infty,2)\cup(3,\infty)"),
    ("x < 2 or x > 3", r"(3,\infty)\cup(-\infty,2)"),
    ("n! = 6", "6"),
    (r"\sin x\cos x", r"\frac{1}{2}\sin 2x"),
    (r"\frac{\sin x}{\cos x}", r"\tan x"),
    ("a^2-b^2", "(a-b)(a+b)"),
    (r"\frac{1}{\sqrt{3}-1}", r"\frac{\sqrt3+1}{2}"),
    ("4 million", "4000000"),
    (r"4.5\text{ million}", "4500000"),
    ("2^{10}-1", "1023"),
    (r"\sqrt{12}+\sqrt{27}", r"5\sqrt{3}"),
    (r"\frac{\sqrt{6}-\sqrt{2}}{4}", r"\sin 15^\circ"),
    (r"3\hat{i}+2\hat{j}", r"3\mathbf{i}+2\mathbf{j}"),
    (r"\ln 8", r"3\ln 2"),
    (r"\log_4 8", r"\frac32"),
    ("1e-3", "10^{-3}"),
    (r"6.02\times10^{23}", "6.02e23"),
    (r"\langle 1,2\rangle", "(1,2)"),
    (r"\left\{\right\}", r"\emptyset"),
    ("B) 12", "12"),
    ("B: 12", "12"),
    (r"\text{(B) 12 m/s}", "12"),
    (r"\text{(B) }12", "(B)"),
    (r"(\text{B})", "B"),
    (r"\frac{3}{2}x+1", "1.5x+1"),
    (r"-\frac{x-1}{2}", r"\frac{1-x}{2}"),
    ("a_1=3", "3"),
    (r"\text{The area is } = 5", "5"),
    (r"k = \pm 2", "2,-2"),
    ("x=1,y=2", "(1,2)"),
    (r"\text{no real solutions}", r"\text{No real solutions}"),
    (r"\arctan\frac{1}{2}", r"\tan^{-1}\frac12"),
    (r"\frac{10}{3}\text{ cm}", "10/3"),
    (r"3\frac{1}{3}\text{ hours}", r"\frac{10}{3}"),
    ("$1{,}234.50$", "1234.5"),
    (r"1\,234\,567", "1234567"),
    (r"-\frac{1}{2}", "-.5"),
    (r"\left[1,2\right)", "[1,2)"),
    ("C_{5}^{2}", r"\binom{5}{2}"),
    (r"{5 \choose 2}", "10"),
    (r"2\cdot3\cdot7", "42"),
    ("6 * 7", "42"),
    ("2**10", "1024"),
    ("(x+1)*(x-1)", "x^2-1"),
    ("5*sqrt(3)", r"5\sqrt3"),
    ("pi/4", r"\frac{\pi}{4}"),
    ("exp(2)", "e^2"),
    ("ln(2)", r"\ln 2"),
    ("3pi", r"3\pi"),
]


@needs_math_verify
@pytest.mark.parametrize(("given", "gold"), SAME)
def test_another_way_of_writing_is_right_and_so_is_the_gold_for_it(given: str, gold: str) -> None:
    assert is_correct(rf"\boxed{{{given}}}", gold)
    assert is_correct(rf"\boxed{{{gold}}}", given)


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("x²+y³", "x^{2}+y^{3}"),
        ("10⁻³", "10^{-3}"),
        ("x₁₂", "x_{12}"),
        ("½", r"\frac{1}{2}"),
        ("√2", r"\sqrt{2}"),
        ("√(x+√(y))", r"\sqrt{x+\sqrt{y}}"),
        ("sqrt(2)", r"\sqrt{2}"),
        (r"\sqrt(2)", r"\sqrt{2}"),
        ("sqrt(2", "sqrt(2"),
        ("sqrt2)", "sqrt2)"),
        ("α", r"\alpha "),
        ("Ω", r"\Omega "),
        ("λ", r"\lambda "),
        ("𝑥", "x"),
        ("３", "3"),
        ("a≤b", r"a\leq b"),
        ("a <= b", r"a \leq  b"),
        ("3–5", "3-5"),
        ("0.3\u0305", r"0.\overline{3}"),
        ("∅", r"\emptyset "),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        ("π", r"\pi "),
        ("2 pi", r"2 \pi "),
        ("spin", "spin"),
    ],
)
def test_plain_text_becomes_latex(text: str, latex: str) -> None:
    assert as_latex(text) == latex
    assert as_latex(latex) == latex


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("11 5/6", Fraction(71, 6)),
        (r"-5\frac{1}{2}", Fraction(-11, 2)),
        (r"5\frac{3}{2}", None),
        (r"0.1\overline{6}", Fraction(1, 6)),
        (r"-1.\overline{27}", Fraction(-14, 11)),
        (r"0.\dot{1}4285\dot{7}", Fraction(1, 7)),
        ("0.(36)", Fraction(4, 11)),
        ("0.333...", Fraction(1, 3)),
        ("0.35...", None),
        ("3 1/2 cm", Fraction(7, 2)),
        (r"4\mathrm{i}", None),
        (r"4\text{e}", None),
        (r"2\text{x}", None),
        (r"2\mathrm{\pi}", None),
        ("9.8 m/s^2", Fraction(49, 5)),
        ("5t", None),
        ("1" * 5000, None),
    ],
)
def test_numbers_are_read_in_every_spelling_and_nothing_else_is(text: str, number: Fraction | None) -> None:
    assert as_number(text) == number


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("x", True),
        ("a_{10}", True),
        (r"\theta", True),
        ("P(X=2)", True),
        ("f^{-1}(2)", True),
        (r"\angle ABC", True),
        ("|AB|", True),
        (r"\text{Area of } ABC", True),
        ("(x, y)", True),
        (r"\frac{AB}{CD}", True),
        (r"\frac{dy}{dx}", True),
        ("x^2", False),
        ("x+y", False),
        ("2x", False),
        ("x(x+1)", False),
        (r"\frac{x}{2}", False),
        (r"\sqrt{x}", False),
        ("3", False),
        ("", False),
    ],
)
def test_a_name_is_told_from_one_side_of_an_equation(text: str, is_one: bool) -> None:
    assert is_name(text) is is_one


@pytest.mark.parametrize(
    ("words", "is_one"),
    [
        (" cm", True),
        ("~km/h", True),
        ("square units", True),
        ("m", True),
        ("i", False),
        ("e", False),
        ("x", False),
        ("or more", False),
        ("if", False),
        ("sin", False),
        ("3 cm", False),
    ],
)
def test_words_that_name_a_unit_are_told_from_others(words: str, is_one: bool) -> None:
    assert is_unit(words) is is_one


@pytest.mark.parametrize(
    ("given", "gold", "same"),
    [
        ("5 cm", r"5\text{ centimeters}", True),
        ("5 cm", "5 m", False),
        (r"20\text{ cm}^2", r"20\text{ square centimeters}", True),
        (r"20\text{ cm}^2", r"20\text{ cm}", False),
        ("5 apples", "5 cm", True),
        ("5", "5 cm", True),
        (r"90^\circ", r"90\text{ degrees}", True),
    ],
)
def test_units_that_are_known_must_be_the_same(given: str, gold: str, same: bool) -> None:
    assert same_unit(given, gold) is same
