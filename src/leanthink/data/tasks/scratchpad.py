"""How the teacher writes arithmetic: place by place, in one of five styles, with checks, errors and repairs.

A number is spelled with one letter per place (a = ones, b = tens, ...): 4821 is `d4 c8 b2 a1`. A letter names a place
wherever it stands, so every step of a written calculation is found by its letter instead of by counting.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

PLACES = "abcdefghijklmnopqrstuvwxyz"
ERROR_RATE_IF_CHECKED = 0.012  # per calculation: found by the check that follows, and repaired
ERROR_RATE_IF_UNCHECKED = 0.0006  # per calculation: nobody finds it, the answer comes out wrong

Calculation = Callable[[bool, bool], tuple[str, int]]  # (spelled, with_error) -> (text, value as written)


@dataclass(frozen=True, kw_only=True)
class Style:
    """How much of a calculation is written down, how often it is checked, and how often it errs."""

    name: str
    opening: str
    spelled: bool
    check_rate: float
    error_rate_if_checked: float = ERROR_RATE_IF_CHECKED
    error_rate_if_unchecked: float = ERROR_RATE_IF_UNCHECKED


STYLES = (
    Style(name="terse", opening="Short.", spelled=False, check_rate=0.0),
    Style(name="plain", opening="In steps.", spelled=True, check_rate=0.0),
    Style(name="careful", opening="In steps, with some checks.", spelled=True, check_rate=0.35),
    Style(name="thorough", opening="In steps, checking all.", spelled=True, check_rate=1.0),
    Style(name="brisk", opening="Short, checking all.", spelled=False, check_rate=1.0),
)


def spell(number: int) -> str:
    """The digits of a number under their place letters, highest first: 305 -> `c3 b0 a5`."""
    digits = str(number)
    top = len(digits) - 1
    return " ".join(f"{PLACES[top - i]}{digit}" for i, digit in enumerate(digits))


def nines(number: int) -> str:
    """The running digit sum modulo nine, highest digit first: 485 -> `4 3 8`; the last is the number modulo nine."""
    total, run = 0, []
    for digit in str(number):
        total = (total + int(digit)) % 9
        run.append(str(total))
    return " ".join(run)


def casting_out(left: str, right_value: int) -> Callable[[int], tuple[str, bool]]:
    """A check by nines: the residue that `left` leads to against the running residue of the value as written."""
    expected = right_value % 9

    def check(value: int) -> tuple[str, bool]:
        return f"{left}={expected}, {nines(value)}", value % 9 == expected

    return check


def with_wrong_digit(value: int) -> int:
    """A wrong value near the right one with the same tens: only its last digit is wrong (and not 0 for 9)."""
    return value - 1 if value % 10 == 9 else value + 1 if value % 10 != 8 else value - 2


def _columns(values: Iterable[tuple[str, int]], first_place: int, error_at: int) -> tuple[list[str], list[int]]:
    """Write one column after the other; `values` yields (left side, value), a value may be negative (a borrow)."""
    texts, digits = [], []
    for i, (left, value) in enumerate(values):
        shown = with_wrong_digit(value) if i == error_at else value
        digits.append(shown % 10)
        texts.append(f"{left}={shown} {PLACES[first_place + i]}{shown % 10}")
    return texts, digits


def _number(digits: list[int]) -> int:
    return int("".join(map(str, reversed(digits))))


def _digit(number: int, place: int) -> int:
    digit: int = number // 10**place % 10
    return digit


class Scratchpad:
    """Writes one thought: collects text, draws what is checked and where an error is made."""

    def __init__(self, style: Style, rng: random.Random) -> None:
        self.style = style
        self.rng = rng
        self._parts: list[str] = [style.opening, "\n"]

    def write(self, text: str) -> None:
        """Append text as it is."""
        self._parts.append(text)

    def text(self) -> str:
        """The whole thought written so far."""
        return "".join(self._parts)

    def checks_now(self) -> bool:
        """Draw: is the next calculation checked?"""
        return self.rng.random() < self.style.check_rate

    def calculate(self, calculation: Calculation, check: Callable[[int], tuple[str, bool]], sep: str = "\n") -> int:
        """Write a calculation, perhaps with an error, perhaps checked and repaired; returns the value as written.

        `check(value)` gives the text of the check and whether the value passes it.
        """
        checked = self.checks_now()
        style = self.style
        with_error = self.rng.random() < (style.error_rate_if_checked if checked else style.error_rate_if_unchecked)
        text, value = calculation(self.style.spelled, with_error)
        self.write(text)
        if checked:
            reason, right = check(value)
            self.write(f" check {reason} {'ok' if right else 'no, again'}")
            if not right:
                self.write(sep)
                text, value = calculation(self.style.spelled, False)
                self.write(text)
        self.write(sep)
        return value

    def add(self, x: int, y: int, sep: str = "\n") -> int:
        """X + y, place by place."""
        by_nines = casting_out(f"{nines(x)}, {nines(y)}, {x % 9}+{y % 9}", x + y)
        return self.calculate(lambda spelled, with_error: self._add(x, y, spelled, with_error), by_nines, sep)

    def subtract(self, x: int, y: int, sep: str = "\n") -> int:
        """X - y with x >= y, place by place."""
        assert x >= y >= 0, (x, y)
        by_nines = casting_out(f"{nines(x)}, {nines(y)}, {x % 9}-{y % 9}", x - y)
        return self.calculate(lambda spelled, with_error: self._subtract(x, y, spelled, with_error), by_nines, sep)

    def multiply_digit(self, x: int, digit: int, sep: str = "\n") -> int:
        """X times one digit, place by place."""

        def calculation(spelled: bool, with_error: bool) -> tuple[str, int]:
            texts, value = multiply_row(x, digit, 0, self.error_column(with_error, len(str(x))))
            steps = f"{spell(x)}, {', '.join(texts)} = " if spelled else ""
            return f"{x}*{digit}: {steps}{spell(value)} = {value}", value

        return self.calculate(calculation, casting_out(f"{nines(x)}, {x % 9}*{digit}", x * digit), sep)

    def divide_digit(self, x: int, digit: int, sep: str = "\n") -> int:
        """X divided by one digit without remainder, by long division."""

        def calculation(spelled: bool, with_error: bool) -> tuple[str, int]:
            quotient, _, steps = long_division(x, digit, spelled, self.error_column(with_error, len(str(x))))
            if (quotient * digit - x) % 9 == 0:  # right, or wrong in a way that no check by nines can find
                quotient, _, steps = long_division(x, digit, spelled, len(str(x)))
            start = f"{spell(x)}, " if spelled else ""
            return f"{x}/{digit}: {start}{steps} = {spell(quotient)} = {quotient}", quotient

        def check(value: int) -> tuple[str, bool]:
            residue = value % 9 * digit % 9
            return f"{nines(value)}, {value % 9}*{digit}={residue}, {nines(x)}", residue == x % 9

        return self.calculate(calculation, check, sep)

    def error_column(self, with_error: bool, num_columns: int) -> int:
        """The column of an error, or one beyond all columns."""
        return self.rng.randrange(num_columns) if with_error else num_columns

    def _add(self, x: int, y: int, spelled: bool, with_error: bool) -> tuple[str, int]:
        num_columns = max(len(str(x)), len(str(y)))
        error_at = self.error_column(with_error, num_columns)
        carry, values = 0, []
        for place in range(num_columns):
            p, q = _digit(x, place), _digit(y, place)
            value = p + q + carry
            values.append((f"{PLACES[place]}{p}+{q}" + ("+1" if carry else ""), value))
            carry = (with_wrong_digit(value) if place == error_at else value) // 10
        texts, digits = _columns(values, 0, error_at)
        if carry:
            texts.append(f"{PLACES[num_columns]}1")
            digits.append(1)
        value = _number(digits)
        steps = f"{spell(x)} + {spell(y)}, {', '.join(texts)} = " if spelled else ""
        return f"{x}+{y}: {steps}{spell(value)} = {value}", value

    def _subtract(self, x: int, y: int, spelled: bool, with_error: bool) -> tuple[str, int]:
        num_columns = len(str(x))
        error_at = self.error_column(with_error, num_columns)
        borrow, values = 0, []
        for place in range(num_columns):
            p, q = _digit(x, place), _digit(y, place)
            value = p - q - borrow
            values.append((f"{PLACES[place]}{p}-{q}" + ("-1" if borrow else ""), value))
            borrow = int(value < 0)
        texts, digits = _columns(values, 0, error_at)
        value = _number(digits)
        steps = f"{spell(x)} - {spell(y)}, {', '.join(texts)} = " if spelled else ""
        return f"{x}-{y}: {steps}{spell(value)} = {value}", value


def multiply_row(x: int, digit: int, first_place: int, error_at: int) -> tuple[list[str], int]:
    """The columns of x times one digit, the ones landing on `first_place`; and the (unshifted) value as written."""
    carry, values = 0, []
    num_columns = len(str(x))
    for place in range(num_columns):
        p = _digit(x, place)
        value = p * digit + carry
        values.append((f"{PLACES[place]}{p}*{digit}" + (f"+{carry}" if carry else ""), value))
        carry = (with_wrong_digit(value) if place == error_at else value) // 10
    texts, digits = _columns(values, first_place, error_at)
    if carry:
        texts.append(f"{PLACES[first_place + num_columns]}{carry}")
        digits.append(carry)
    return texts, _number(digits)


def long_division(x: int, divisor: int, spelled: bool, error_at: int) -> tuple[int, int, str]:
    """Quotient and remainder of x by a small divisor as written, and the columns, such as `d48=6r6 c62=8r6`."""
    digits = str(x)
    rest, quotient, texts = 0, 0, []
    for i, digit in enumerate(digits):
        value = rest * 10 + int(digit)
        q, rest = divmod(value, divisor)
        if i == error_at:
            rest = (rest + 1) % divisor
        quotient = quotient * 10 + q
        place = PLACES[len(digits) - 1 - i]
        texts.append(f"{place}{value}={q}r{rest}" if spelled else f"{place}{q}r{rest}")
    return quotient, rest, " ".join(texts)
