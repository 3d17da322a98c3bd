"""Where the answer of a text is: after the last thought, in the last boxes, or in what it states."""

from __future__ import annotations

import importlib.util

import pytest

from leanthink.data.grading.answer_extraction import answer_section, given_answer, stated_answer
from leanthink.data.grading.grading import is_correct

needs_math_verify = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="extra eval")

TEXTS = [  # text, gold, whether it is right
    ("The answer is 3/4.", "3/4", True),
    ("The answer is 3/4.", r"\frac34", True),
    ("The answer is 3/4.", "4", False),
    (r"The answer is $\frac{3}{4}$.", "3/4", True),
    (r"The answer is $\frac{3}{4}$.", "4", False),
    ("The answer is 5 1/2.", "5.5", True),
    ("The answer is 1.5e3", "1500", True),
    ("The answer is 1.5e3", "3", False),
    ("The answer is –5.", "-5", True),
    ("The answer is –5.", "5", False),
    ("The answer is −5", "-5", True),
    (r"$x=\boxed{3}$ or $x=\boxed{5}$", "3,5", True),
    (r"$x=\boxed{3}$ or $x=\boxed{5}$", "5,3", True),
    (r"$x=\boxed{3}$ or $x=\boxed{5}$", "5", False),
    (r"\boxed{3} and \boxed{5}", "3,5", True),
    (r"\boxed{3}. Wait, it is \boxed{5}", "5", True),
    (r"\boxed{3}. Wait, it is \boxed{5}", "3,5", False),
    (r"\boxed{3}, no, \boxed{5}", "5", True),
    (r"\boxed{\frac12} or \boxed{0.5}", "1/2", True),
    (r"\boxed{3}, \boxed{5}", "3,5", True),
    (r"\boxed{3} \boxed{5}", "5", True),
    (r"$x=\boxed{1}$, $y=\boxed{2}$", "(1,2)", True),
    (r"The answer is $\sqrt{2}$.", "2", False),
    (r"The answer is $4\sqrt{2}$.", "4", False),
    ("The answer is 2x.", "2", False),
    ("The answer is 4√2", "2", False),
    ("The answer is x²", "2", False),
    (r"So \[x = \frac{\sqrt2}{2}\]", r"\frac{1}{\sqrt2}", True),
    ("The answer is sqrt(2)/2.", r"\frac{1}{\sqrt2}", True),
    ("The final answer is: $(1,2)$", "(1,2)", True),
    ("The answers are $3$ and $5$.", "3,5", True),
    ("The answer is x=3 or x=5.", "3,5", True),
    ("I have $18 and then $20", "20", True),
    ("It costs $18.", "18", True),
    ("#### 72", "72", True),
    ("**Answer:** 72", "72", True),
    (r"**Final Answer**: $\frac{3}{4}$", "0.75", True),
    ("The answer is 18 dollars because 9*2=18, see part 3", "18", True),
    (r"The answer is $n\equiv 1\pmod 4$", r"n \equiv 1 \pmod 4", True),
    ("so there are 12 apples (3 in each of 4 boxes)", "4", True),
    ("a</think>The answer is 3</think>The answer is 4", "4", True),
    (r"a</think>\boxed{3}</think>\boxed{4}", "3", False),
    ("The answer is 1,234.", "1234", True),
    ("The answer is Evelyn.", "Evelyn", True),
    ("The answer is yes", "yes", True),
    ("Thus a = 3 and the total is 33 1/3%", r"33\frac13\%", True),
    ("The probability is 0.25", r"\frac14", True),
    (r"The answer is $5 \frac{1}{2}$", "11/2", True),
    ("The answer is 4.\n\nLet me know if 5 more are needed.", "4", True),
    ("The answer is 4 million.", "4000000", True),
    ("The answer is 4 million people, because of that.", "4000000", True),
    ("so there are 4 million of them", "4", False),
    ("They need 2 dozen", "24", True),
    (r"The answer is \(B\).", "B", True),
    (r"\[ A \]", "A", True),
    (r"The answer is 1.1\%", r"1.1\%", True),
    ("The answer is 22.1cm^{2}", "22.1", True),
]


@needs_math_verify
@pytest.mark.parametrize(("text", "gold", "right"), TEXTS)
def test_a_text_is_right_if_the_answer_that_it_gives_is(text: str, gold: str, right: bool) -> None:
    assert is_correct(text, gold) is right


@pytest.mark.parametrize(
    ("text", "section"),
    [
        ("a</think>b", "b"),
        ("a</think>b</think>c", "c"),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("a</think>", ""),
        ("a", None),
    ],
)
def test_the_answer_follows_the_last_thought(text: str, section: str | None) -> None:
    assert answer_section(text, think_tags=True) == section


@pytest.mark.parametrize(
    ("text", "given"),
    [
        (r"$x=\boxed{3}$ or $x=\boxed{5}$", "3, 5"),
        (r"\boxed{3}, \boxed{5} and \boxed{7}", "3, 5, 7"),
        (r"\boxed{3} \text{ or } \boxed{5}", "3, 5"),
        (r"\[\boxed{3}\] and \[\boxed{5}\]", "3, 5"),
        (r"\boxed{1}. So \boxed{3}, \boxed{5}", "3, 5"),
        (r"\boxed{3}. No, \boxed{5}", "5"),
        (r"\boxed{3}, but \boxed{5}", "5"),
        (r"\boxed{3}\n\n\boxed{5}", "5"),
        (r"\boxed{3} = \boxed{5}", "5"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\frac12} or \boxed{0.5}", r"\frac12"),
    ],
)
def test_boxes_are_one_answer_if_nothing_but_and_stands_between_them(text: str, given: str) -> None:
    assert given_answer(text, "3") == given


@pytest.mark.parametrize(
    ("text", "is_number", "stated"),
    [
        ("The answer is 3/4.", True, "3/4"),
        ("The answer is 18 dollars because 9 * 2 = 18.", True, "18"),
        ("The answer is 9 times 2 = 18.", True, "18"),
        ("The answer is 1.5.", True, "1.5"),
        ("Answer: $x$ is 5", True, "5"),
        ("the total is $1,234 now", True, "1234"),
        (r"so $\frac{3}{4}$ of it", True, r"\frac{3}{4}"),
        (r"$\frac{3}{4}$ of 12 is 9", True, "9"),
        ("it is 5x", True, None),
        ("nothing", True, None),
        (r"The answer is \(a+b\), as \(c=2\).", False, "a+b"),
        (r"As \(c=2\) we get \[a+b\] here.", False, "a+b"),
        ("The answer is $1$ and $2$.", False, "1, 2"),
        ("The answer is a + b.", False, "a + b"),
        ("a + b", False, "a + b"),
    ],
)
def test_a_text_without_a_box_states_its_answer(text: str, is_number: bool, stated: str | None) -> None:
    assert stated_answer(text, is_number=is_number) == stated
