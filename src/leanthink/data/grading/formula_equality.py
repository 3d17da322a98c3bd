"""Whether two formulas are equal: closed ones by their value, others by math-verify and by values at a few points.

Imported by the processes of the math-verify pool alone.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from math_verify import verify
from sympy import Eq, Expr, Float, Rational, nan, simplify, solve, zoo

from leanthink.data.grading.answer_normalisation import ROUNDING, Tolerance
from leanthink.data.grading.formulas import read_both

DIGITS = 30
EXACTLY = Fraction(1, 10**20)  # relative: further apart are no two ways of writing one number


def same_formula(given: str, gold: str, tolerance: Tolerance) -> bool:
    """Whether both are the same mathematics, or numbers within the tolerance of the gold."""
    both = read_both(given, gold)
    if both is None:
        return False
    ours, theirs = both
    if isinstance(ours, Eq) != isinstance(theirs, Eq):
        return False
    if isinstance(ours, Eq):
        return _same_equation(ours, theirs)
    if isinstance(ours, Expr) and isinstance(theirs, Expr):
        if not ours.free_symbols and not theirs.free_symbols:
            return _same_number(ours, theirs, tolerance)
        # math-verify knows words in several spellings of one name.
        if not (ours.is_Symbol or theirs.is_Symbol) and not _agree(ours, theirs):
            return False
    return bool(verify(theirs, ours, timeout_seconds=None))


def _same_number(ours: Expr, theirs: Expr, tolerance: Tolerance) -> bool:
    number, wanted = (one.doit().evalf(DIGITS) for one in (ours, theirs))
    if not (_is_finite(number) and _is_finite(wanted)):
        return number == wanted and number not in (zoo, nan)
    away, size = abs(number - wanted), abs(wanted)
    near = max(tolerance.relative, float(ROUNDING if _is_rounded(ours, theirs) else EXACTLY))
    if away > max(tolerance.absolute, near * size):
        return False
    if near == float(EXACTLY) and ours.is_rational and theirs.is_rational:
        return bool((ours - theirs).doit() == 0)
    return True


def _is_rounded(ours: Expr, theirs: Expr) -> bool:
    """Whether a decimal fraction is among them and the gold is no integer: then six digits are enough."""
    return bool(ours.has(Float) or theirs.has(Float)) and theirs.is_integer is not True


def _is_finite(value: Any) -> bool:
    return bool(value.is_number and value.is_finite)


def _agree(ours: Expr, theirs: Expr) -> bool:
    """Whether the values at two points are the same, as far as there are any."""
    names = sorted(ours.free_symbols | theirs.free_symbols, key=str)
    for point in range(2):
        at = {name: Rational(37 + 29 * index + 11 * point, 101) for index, name in enumerate(names)}
        values = [one.subs(at).doit().evalf(DIGITS) for one in (ours, theirs)]
        if all(map(_is_finite, values)) and abs(values[0] - values[1]) > float(ROUNDING) * abs(values[1]):
            return False
    return True


def _same_equation(ours: Eq, theirs: Eq) -> bool:
    """One is a multiple of the other, or both have the same solutions, and at least one."""
    if ours.free_symbols != theirs.free_symbols:
        return False
    left, right = (simplify(one.lhs - one.rhs) for one in (ours, theirs))
    ratio = simplify(left / right)
    if not ratio.free_symbols and _is_finite(ratio.evalf()) and ratio != 0:
        return True
    if not solve(theirs, theirs.free_symbols) or not solve(ours, ours.free_symbols):
        return False
    return bool(verify(theirs, ours, timeout_seconds=None))
