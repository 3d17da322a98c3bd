"""Wrong answers that a parser takes for the gold, because it leaves out what it cannot read."""

from __future__ import annotations

import importlib.util

import pytest

from leanthink.eval.grading import is_correct

pytestmark = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="extra eval")

DIFFERENT = [
    (r"4\mathrm{i}", "4"),
    (r"4+\mathrm{i}", "4"),
    (r"4\sqrt(2)", "4"),
    (r"3\mathrm{i}", "3"),
    (r"1+\frac{1}{\mathrm{e}}", r"1-\frac{1}{\mathrm{e}}"),
    ("452_7", "452_6"),
    (r"n\equiv 3\pmod 4", r"n\equiv 1\pmod 4"),
    ("10^{-30}", "10^{-31}"),
    (r"\frac{dx}{dy}", r"\frac{dy}{dx}"),
    (r"4\text{i}", "4"),
    (r"4\mathbf{i}", "4"),
    (r"4\operatorname{i}", "4"),
    (r"4\imath", "4"),
    ("4i", "4"),
    (r"\mathrm{e}", "1"),
    (r"2\mathrm{e}", "2"),
    (r"2\mathrm{\pi}", "2"),
    (r"1+\mathrm{e}^{2}", r"1+\mathrm{e}^{3}"),
    (r"3+4\mathrm{i}", r"3-4\mathrm{i}"),
    (r"4\sqrt(2)", r"4\sqrt(3)"),
    (r"4\sqrt 2", "4"),
    ("4sqrt(2)", "4"),
    ("4√2", "4"),
    (r"\sin(30)x", r"\sin(60)x"),
    (r"2\operatorname{sinc}(x)", "2"),
    (r"\operatorname{Si}(x)+1", r"\operatorname{Ci}(x)+1"),
    ("452_{7}", "452_{6}"),
    (r"452_{\text{seven}}", "452_6"),
    ("1101_2", "1101_3"),
    ("452_7+1", "452_6+1"),
    (r"\frac{452_7}{2}", r"\frac{452_6}{2}"),
    (r"3 \pmod{4}", r"3\pmod{5}"),
    (r"n \equiv 3 \mod 4", r"n\equiv 1 \mod 4"),
    (r"x \equiv 2 \pmod{5}", "2"),
    (r"n\equiv 1,3 \pmod 8", r"n \equiv 1,5 \pmod 8"),
    ("1e-30", "1e-31"),
    (r"2\cdot 10^{-30}", "10^{-30}"),
    ("10^{-30}", "0"),
    ("10^{-30}x", "10^{-31}x"),
    (r"\pi\cdot10^{-20}", r"2\pi\cdot10^{-20}"),
    ("2^{-100}", "2^{-101}"),
    ("f'(x)", "f(x)"),
    ("f''(x)", "f'(x)"),
    ("y'+2y", "2y'+y"),
    (r"f^{\prime}(x)", "f(x)"),
    (r"\frac{d^2y}{dx^2}", r"\frac{d^2x}{dy^2}"),
    (r"\frac{\partial f}{\partial x}", r"\frac{\partial f}{\partial y}"),
    (r"\frac{dy}{dx}", "0"),
    (r"\int f\,dx", r"\int x\,df"),
    ("A^T", "A"),
    ("A^{T}B", "AB"),
    (r"\pi(R^2-r^2)", "0"),
    ("R-r", "0"),
    ("3!!", "720"),
    ("x^2+1=0", "x^2+2=0"),
    (r"x^2+y^2=\sqrt{2}", r"\sqrt{2}"),
    ("5t", "5"),
    ("2h", "2"),
    (r"2\pi h", r"2\pi"),
    (r"5\text{ cm}", r"5\text{ m}"),
    ("5 cm", "5 m"),
    (r"20\text{ cm}^2", r"20\text{ cm}^3"),
    ("1:2:3", "1:6"),
    ("1:2:3", "1:3:2"),
    (r"x\mapsto 2x", r"x\mapsto 2y"),
    (r"2\begin{cases}1\\2\end{cases}", "2"),
    (r"0.\overline{3}", "0.3"),
    (r"0.\overline{36}", r"0.\overline{63}"),
    (r"33\frac{1}{3}\%", r"34\frac13\%"),
    ("11 5/6", "11"),
    ("11 5/6", "5/6"),
    ("2^{0.5}", "2"),
    ("x <= 3", "x < 3"),
    ("x <= 3", "x >= 3"),
    (r"\varnothing", "0"),
    (r"\{\}", r"\{0\}"),
    ("(x,y)=(1,2)", "(2,1)"),
    (r"\textbf{(B)}\ 12", "13"),
    (r"\textbf{(B)}\ 12", "C"),
    ("√2", "2"),
    ("x²", "x³"),
    ("½", "¼"),
    ("∞", "-∞"),
    ("3×10⁵", "3×10⁴"),
    (r"\angle ABC = 30^\circ", "40"),
    ("a_{10} = 30", "10"),
    ("P(X=2) = 30", "2"),
    ("x^2 - y^2 = 5", "5"),
    ("x(x+1)=6", "6"),
    ("2x=6", "6"),
    (r"\frac{x}{2}=3", "3"),
    (r"\log_2 3", r"\log_3 2"),
    (r"\bar{z}", "z"),
    ("|z|", "z"),
    (r"\overline{z}+1", "z+1"),
    ("n!", "n"),
    (r"\binom{5}{2}", r"\frac{5}{2}"),
    (r"\vec{a}", "a"),
    (r"\lfloor x \rfloor", "x"),
    (r"\Re(z)", "z"),
    ("x_1", "x_2"),
    ("x_{1}+x_{2}", "x_1-x_2"),
    (r"\sin^{-1}x", r"\frac{1}{\sin x}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
    (r"\sqrt{2}", "1.41"),
    (r"2\text{ or }3", "2"),
    (r"\text{ at least }5", "4"),
    (r"4\mathrm{j}", "4"),
    (r"\infty", r"-\infty"),
    ("x=2", "y=2"),
    (r"\text{if } x>0", "x>0"),
    (r"4\,\mathrm{sin}\,x", "4"),
    (r"2\text{ mod }3", "2"),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_differs_in_something_that_is_not_parsed_is_wrong_either_way(one: str, other: str) -> None:
    assert not is_correct(rf"\boxed{{{one}}}", other)
    assert not is_correct(rf"\boxed{{{other}}}", one)


@pytest.mark.parametrize("text", sorted({text for pair in DIFFERENT for text in pair}))
def test_each_of_them_is_right_about_itself(text: str) -> None:
    assert is_correct(rf"so $\boxed{{ {text} }}$.", text)


def test_digits_answer_a_problem_that_asks_for_a_base_and_digits_of_a_base_no_other() -> None:
    assert is_correct(r"\boxed{2516}", "2516_8")
    assert not is_correct(r"\boxed{2516_8}", "2516")
    assert not is_correct(r"\boxed{1358}", "2516_8")
