"""The embedded tasks: deterministic, graded exactly, and never shared between training and held-out problems."""

from __future__ import annotations

import math
import random
import re
import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanthink.data.tasks import bases, countdown, equations, multiply, registry, teacher
from leanthink.data.tasks.problem import Document, Problem
from leanthink.data.tasks.scratchpad import STYLES, Scratchpad, Style, nines, spell
from leanthink.utils.errors import UsageError

FAMILIES = tuple(registry.FAMILIES)
TERSE, PLAIN, CAREFUL, THOROUGH, BRISK = STYLES


def boxed(answer: str) -> str:
    return answer.rsplit("\\boxed{", 1)[1][:-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_problems_and_another_seed_others(family: str) -> None:
    assert registry.sample(family, 3, 5, seed=7) == registry.sample(family, 3, 5, seed=7)
    assert registry.sample(family, 3, 5, seed=7) != registry.sample(family, 3, 5, seed=8)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_and_held_out_problems_never_overlap(family: str) -> None:
    for level in registry.LEVELS:
        trained = {problem.key for problem in registry.sample(family, level, 120, seed=0, split="train")}
        held_out = {problem.key for problem in registry.sample(family, level, 120, seed=0, split="held-out")}
        assert not trained & held_out


def test_the_teacher_only_writes_about_training_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Problem] = []
    original = teacher.write
    monkeypatch.setattr(teacher, "write", lambda problem, *rest: written.append(problem) or original(problem, *rest))
    rng = random.Random(0)
    for _ in range(200):
        teacher.sample_document(rng)
    assert len(written) >= 200
    assert all(problem.split == "train" for problem in written)


def test_reordered_operands_are_the_same_problem() -> None:
    rng = random.Random(0)
    problem = multiply.make(rng, 2)
    x, y = problem.facts
    key = f"{max(x, y)}*{min(x, y)}"
    assert problem.key in (key, f"{min(x, y)}*{max(x, y)}")
    assert Problem(**{**vars(problem), "facts": (y, x), "prompt": "other words"}).digest == problem.digest


@pytest.mark.parametrize("level", registry.LEVELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_who_never_errs_is_always_right(family: str, level: int) -> None:
    rng = random.Random(level)
    for style in (replace(style, error_rate_if_unchecked=0.0) for style in STYLES):
        for problem in registry.sample(family, level, 15, seed=1):
            document = teacher.write(problem, style, rng)
            assert registry.is_correct(problem, boxed(document.answer)), (style.name, document)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "countdown"])
def test_an_error_is_found_by_its_check_and_repaired(family: str) -> None:
    style = replace(THOROUGH, error_rate_if_checked=0.3)
    rng = random.Random(0)
    repairs = 0
    for problem in registry.sample(family, 3, 40, seed=2):
        document = teacher.write(problem, style, rng)
        repairs += document.thought.count("no, again")
        assert registry.is_correct(problem, boxed(document.answer))
    assert repairs > 10


def test_an_error_that_nobody_looks_for_spoils_the_answer() -> None:
    style = replace(PLAIN, error_rate_if_unchecked=1.0)
    wrong = sum(
        not registry.is_correct(problem, boxed(teacher.write(problem, style, random.Random(0)).answer))
        for problem in registry.sample("multiply", 2, 20, seed=3)
    )
    assert wrong >= 18


def test_terse_thoughts_are_much_shorter_than_thorough_ones() -> None:
    for family in FAMILIES:
        problems = registry.sample(family, 4, 20, seed=4)
        terse = sum(len(teacher.write(problem, TERSE, random.Random(0)).thought) for problem in problems)
        thorough = sum(len(teacher.write(problem, THOROUGH, random.Random(0)).thought) for problem in problems)
        assert thorough > 1.4 * terse, family


def test_hard_levels_are_mostly_thought_about_for_over_a_thousand_tokens() -> None:
    lengths = [
        len(teacher.write(problem, THOROUGH, random.Random(0)).thought)
        for family in FAMILIES
        for problem in registry.sample(family, 5, 30, seed=5)
    ]
    assert sum(length > 1000 for length in lengths) > 0.8 * len(lengths)
    assert max(lengths) < 4096


def test_golden_spelling_and_casting_out_nines() -> None:
    assert spell(4821) == "d4 c8 b2 a1"
    assert nines(485) == "4 3 8"
    assert nines(999) == "0 0 0"


def test_golden_written_addition_and_subtraction() -> None:
    pad = Scratchpad(PLAIN, random.Random(0))
    assert pad.add(95, 8) == 103
    assert pad.subtract(103, 8) == 95
    assert pad.text() == (
        "In steps.\n"
        "95+8: b9 a5 + a8, a5+8=13 a3, b9+0+1=10 b0, c1 = c1 b0 a3 = 103\n"
        "103-8: c1 b0 a3 - a8, a3-8=-5 a5, b0-0-1=-1 b9, c1-0-1=0 c0 = b9 a5 = 95\n"
    )


def test_golden_multiplication_thought() -> None:
    problem = Problem(family="multiply", level=1, prompt="", answer="312", key="", facts=(52, 6))
    document = multiply.solve(problem, THOROUGH, random.Random(0))
    assert document.thought == (
        "In steps, checking all.\n52: b5 a2\n6: a6\nnines 5 7\n"
        "times a6: a2*6=12 a2, b5*6+1=31 b1, c3 = c3 b1 a2 check 7*6=6, 3 4 6 ok\nso 312"
    )


def test_the_brisk_style_checks_without_writing_columns() -> None:
    problem = Problem(family="multiply", level=1, prompt="", answer="312", key="", facts=(52, 6))
    document = multiply.solve(problem, BRISK, random.Random(0))
    assert document.thought == (
        "Short, checking all.\n52: b5 a2\n6: a6\nnines 5 7\ntimes a6: c3 b1 a2 check 7*6=6, 3 4 6 ok\nso 312"
    )


def test_only_a_teacher_who_is_told_to_is_brisk() -> None:
    def opening(teacher_config: teacher.TeacherConfig, seed: int) -> str:
        return teacher.sample_document(random.Random(seed), teacher_config).thought.split("\n")[0]

    assert all(opening(teacher.TeacherConfig(), seed) != BRISK.opening for seed in range(200))
    brisk = teacher.TeacherConfig(terse_share=0.0, brisk_share=1.0)
    assert all(opening(brisk, seed) == BRISK.opening for seed in range(20))


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.sampled_from(STYLES), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_pen_agrees_with_arithmetic_when_everything_is_checked(x: int, y: int, style: object, seed: int) -> None:
    pad = Scratchpad(THOROUGH, random.Random(seed))
    big, small = max(x, y), min(x, y)
    assert pad.add(x, y) == x + y
    assert pad.subtract(big, small) == big - small
    assert pad.multiply_digit(x, seed % 8 + 2) == x * (seed % 8 + 2)
    assert pad.divide_digit(x * 7, 7) == x


def test_an_erring_teacher_is_wrong_where_nothing_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    right: dict[str, list[bool]] = {style.name: [] for style in STYLES}

    def write(problem: Problem, style: Style, rng: random.Random) -> Document:
        document = original(problem, style, rng)
        right[style.name].append(registry.is_correct(problem, boxed(document.answer)))
        return document

    original = teacher.write
    monkeypatch.setattr(teacher, "write", write)
    rng = random.Random(0)
    for _ in range(200):
        teacher.sample_document(rng, teacher.TeacherConfig(error_rate_if_unchecked=0.2))
    assert all(right["thorough"])
    assert 0.1 < sum(right["plain"]) / len(right["plain"]) < 0.7


def test_a_teacher_may_err_on_hard_problems_alone() -> None:
    teacher_config = teacher.TeacherConfig(error_rate_if_unchecked=0.2, errors_from_level=4)
    rates = [teacher_config.style_at(PLAIN, level).error_rate_if_unchecked for level in registry.LEVELS]
    assert rates == [PLAIN.error_rate_if_unchecked] * 3 + [0.2] * 2
    assert teacher.TeacherConfig(error_rate_if_unchecked=0.2).style_at(PLAIN, 1).error_rate_if_unchecked == 0.2
    with pytest.raises(UsageError, match="level"):
        teacher.TeacherConfig(errors_from_level=6)


def test_the_config_of_a_teacher_decides_the_shares_of_styles() -> None:
    usual = teacher.TeacherConfig().style_weights("sums", 3)
    assert usual == pytest.approx([0.20, 0.17, 0.18, 0.45, 0])
    assert teacher.TeacherConfig(terse_share=0.6).style_weights("sums", 3) == pytest.approx(
        [0.60, 0.085, 0.09, 0.225, 0]
    )
    brisk = teacher.TeacherConfig(terse_share=0.4, brisk_share=0.2)
    assert brisk.style_weights("sums", 3) == pytest.approx([0.40, 0.085, 0.09, 0.225, 0.2])
    skewed = teacher.TeacherConfig(style_skew=0.5)
    assert skewed.style_weights("sums", 3) == skewed.style_weights("sums", 3)
    logs = [
        math.log(share / plain)
        for family in FAMILIES
        for level in registry.LEVELS
        for share, plain in zip(skewed.style_weights(family, level), usual, strict=True)
        if plain
    ]
    assert 0.4 < statistics.pstdev(logs) < 0.6
    with pytest.raises(UsageError, match="terse_share"):
        teacher.TeacherConfig(terse_share=1.5)
    with pytest.raises(UsageError, match=r"terse_share 0\.7 and brisk_share 0\.4"):
        teacher.TeacherConfig(terse_share=0.7, brisk_share=0.4)
    with pytest.raises(UsageError, match="style_skew"):
        teacher.TeacherConfig(style_skew=-1)


def test_no_error_of_a_checked_division_gets_past_the_nines() -> None:
    style = replace(THOROUGH, error_rate_if_checked=1.0)
    for seed in range(50):  # 105 million by 7: an error in its first remainder is off by 999999, a multiple of nine
        assert Scratchpad(style, random.Random(seed)).divide_digit(105_000_000, 7) == 15_000_000


@given(st.integers(1, 10**9), st.integers(2, 9))
def test_in_base_is_undone_by_int(n: int, base: int) -> None:
    assert int(bases.in_base(n, base), base) == n


def test_countdown_accepts_any_right_expression_and_nothing_else() -> None:
    problem = registry.sample("countdown", 4, 1, seed=0)[0]
    _, target, _ = problem.facts
    assert countdown.check(problem, problem.answer)
    assert countdown.check(problem, f"({problem.answer})")
    assert not countdown.check(problem, str(target))  # numbers unused
    assert not countdown.check(problem, f"{problem.answer}+0")
    assert not countdown.check(problem, problem.answer + "+")
    assert not countdown.check(problem, "__import__('os')")
    assert not countdown.check(problem, "9**9**9")
    assert not countdown.check(problem, "(" * 5000)


def test_equation_solutions_satisfy_every_row() -> None:
    for level in (4, 5):
        for problem in registry.sample("equations", level, 30, seed=0):
            document = equations.solve(problem, THOROUGH, random.Random(0))
            values = [int(v) for v in re.findall(r"[xyz] = (\d+)", document.answer)]
            for row in problem.facts:
                assert sum(a * b for a, b in zip(row[:-1], values, strict=True)) == row[-1]


def test_unknown_family_and_level_name_what_is_allowed() -> None:
    with pytest.raises(UsageError, match="Did you mean 'multiply'"):
        registry.sample("multipy", 1, 1, seed=0)
    with pytest.raises(UsageError, match="unknown level 6: choose one of 1, 2, 3, 4, 5"):
        registry.sample("multiply", 6, 1, seed=0)


def test_asking_for_more_problems_than_there_are_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MAX_TRIES_IN_VAIN", 50)
    with pytest.raises(UsageError, match="fewer than 3000 held-out problems"):
        registry.sample("multiply", 1, 3000, seed=0)
