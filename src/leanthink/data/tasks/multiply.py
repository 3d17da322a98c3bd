"""Long multiplication: one row for each digit, added to a running total."""

from __future__ import annotations

import random

from leanthink.data.tasks.problem import Document, Problem, number_of_digits
from leanthink.data.tasks.scratchpad import (
    PLACES,
    Scratchpad,
    Style,
    casting_out,
    multiply_row,
    nines,
    spell,
    with_wrong_digit,
)

DIGITS_BY_LEVEL = ((2, 3, 1, 1), (2, 3, 2, 2), (3, 4, 3, 3), (4, 5, 4, 5), (6, 7, 6, 7))  # x from-to, y from-to
ASK = ("What is {x} times {y}?", "Multiply {x} by {y}.", "Compute {x} * {y}.")


def make(rng: random.Random, level: int) -> Problem:
    """Two numbers of 2-3 by 1 digits (level 1) up to 6-7 by 6-7 digits (level 5)."""
    x_low, x_high, y_low, y_high = DIGITS_BY_LEVEL[level - 1]
    x = number_of_digits(rng, rng.randint(x_low, x_high))
    y = number_of_digits(rng, rng.randint(y_low, y_high))
    prompt = rng.choice(ASK).format(x=x, y=y)
    low, high = sorted((x, y))
    return Problem(family="multiply", level=level, prompt=prompt, answer=str(x * y), key=f"{low}*{high}", facts=(x, y))


def solve(problem: Problem, style: Style, rng: random.Random) -> Document:
    """Rows and running totals with place letters; checks by nines."""
    x, y = problem.facts
    pad = Scratchpad(style, rng)
    pad.write(f"{x}: {spell(x)}\n{y}: {spell(y)}\n")
    if style.check_rate > 0:
        pad.write(f"nines {nines(x)}\n")
    total, rows = 0, []
    for place, digit in enumerate(int(d) for d in reversed(str(y))):
        if digit == 0:
            pad.write(f"times {PLACES[place]}0: 0\n")
            rows.append(0)
            continue
        row = _row(pad, x, digit, place)
        rows.append(row)
        total = _add_shifted(pad, total, row, place) if total else row * 10**place
    pad.write(f"so {total}")
    answer = (
        f"The first row is {rows[0]}, the last {rows[-1]}; all rows, each one place further left, add up to {total}.\n"
        f"\\boxed{{{total}}}"
    )
    return Document(prompt=problem.prompt, thought=pad.text(), answer=answer)


def _row(pad: Scratchpad, x: int, digit: int, place: int) -> int:
    def calculation(spelled: bool, with_error: bool) -> tuple[str, int]:
        texts, value = multiply_row(x, digit, place, pad.error_column(with_error, len(str(x))))
        steps = f"{', '.join(texts)} = " if spelled else ""
        return f"times {PLACES[place]}{digit}: {steps}{_spell_from(value, place)}", value

    return pad.calculate(calculation, casting_out(f"{x % 9}*{digit}", x * digit))


def _add_shifted(pad: Scratchpad, total: int, row: int, place: int) -> int:
    """Total + row * 10**place, written from `place` upwards: the lower places stay as they are."""
    low = total % 10**place
    high = total // 10**place
    width = max(len(str(high)), len(str(row)))

    def calculation(spelled: bool, with_error: bool) -> tuple[str, int]:
        error_at = pad.error_column(with_error, width)
        texts, value, carry = [], 0, 0
        for i in range(width):
            p, q = high // 10**i % 10, row // 10**i % 10
            column = p + q + carry
            shown = with_wrong_digit(column) if i == error_at else column
            texts.append(
                f"{PLACES[place + i]}{p}+{q}" + ("+1" if carry else "") + f"={shown} {PLACES[place + i]}{shown % 10}"
            )
            value += shown % 10 * 10**i
            carry = column // 10
        if carry:
            texts.append(f"{PLACES[place + width]}1")
            value += 10**width
        value = value * 10**place + low
        steps = f"{', '.join(texts)} = " if spelled else ""
        return f"total: {steps}{spell(value)}", value

    return pad.calculate(calculation, casting_out(f"{nines(total)}, {nines(row)}, {total % 9}+{row % 9}", total + row))


def _spell_from(value: int, place: int) -> str:
    """The digits of value * 10**place without its trailing zeros' places."""
    digits = str(value)
    top = place + len(digits) - 1
    return " ".join(f"{PLACES[top - i]}{digit}" for i, digit in enumerate(digits))
