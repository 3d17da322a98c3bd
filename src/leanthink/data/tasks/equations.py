"""Linear equations and systems of two and three unknowns, by elimination."""

from __future__ import annotations

import random

from leanthink.data.tasks.problem import Document, Problem, number_of_digits
from leanthink.data.tasks.scratchpad import Scratchpad, Style

Row = tuple[int, ...]  # coefficients of the unknowns, then the right-hand side
UNKNOWNS = "xyz"
MAX_COEFFICIENT = 400  # of the last unknown of three, after both eliminations
ASK_ONE = ("Solve {rows} for x.", "Find x: {rows}.", "What is x if {rows}?")
ASK_MANY = ("Solve {rows}. What is {sum}?", "Find {sum} if {rows}.", "Given {rows}, what is {sum}?")


def make(rng: random.Random, level: int) -> Problem:
    """One unknown (levels 1-3), two unknowns (level 4), three unknowns (level 5); solutions are positive integers."""
    if level <= 3:
        return _make_one(rng, level)
    num_unknowns = level - 2
    while True:
        largest_coefficient, largest_solution = (9, 12) if num_unknowns == 2 else (5, 9)
        solution = [rng.randint(1, largest_solution) for _ in range(num_unknowns)]
        rows = []
        for _ in range(num_unknowns):
            coefficients = [rng.randint(1, largest_coefficient) for _ in range(num_unknowns)]
            rows.append((*coefficients, sum(a * b for a, b in zip(coefficients, solution, strict=True))))
        if _is_fit(rows):
            break
    listed = ", ".join(show(row) for row in rows[:-1]) + f" and {show(rows[-1])}"
    prompt = rng.choice(ASK_MANY).format(rows=listed, sum=" + ".join(UNKNOWNS[:num_unknowns]))
    return Problem(
        family="equations",
        level=level,
        prompt=prompt,
        answer=str(sum(solution)),
        key=str(sorted(rows)),
        facts=tuple(rows),
    )


def _make_one(rng: random.Random, level: int) -> Problem:
    """X + b = c, then a x + b = c, then a x + b = d x + c; facts are (a, b, d, c)."""
    digits = level + 1
    x = number_of_digits(rng, rng.randint(max(1, digits - 1), digits))
    a = 1 if level == 1 else rng.randint(2, 9)
    d = rng.randint(1, a - 1) if level == 3 else 0
    b = number_of_digits(rng, digits)
    c = (a - d) * x + b
    left = f"{_times(a, 'x')} + {b}"
    right = f"{_times(d, 'x')} + {c}" if d else str(c)
    prompt = rng.choice(ASK_ONE).format(rows=f"{left} = {right}")
    return Problem(
        family="equations", level=level, prompt=prompt, answer=str(x), key=f"{a},{b},{d},{c}", facts=(a, b, d, c)
    )


def _is_fit(rows: list[Row]) -> bool:
    """Can the method below solve it, with numbers that stay short?"""
    if len(rows) == 2:
        return _eliminated(*rows)[1] != 0
    first, second = _eliminated(rows[0], rows[1]), _eliminated(rows[0], rows[2])
    if first[1] == 0 or second[1] == 0:
        return False
    return 0 < abs(_eliminated(first[1:], second[1:])[1]) <= MAX_COEFFICIENT


def _eliminated(upper: Row, lower: Row) -> Row:
    """Lower * upper[0] - upper * lower[0]: the first unknown is gone."""
    return tuple(q * upper[0] - p * lower[0] for p, q in zip(upper, lower, strict=True))


def _times(coefficient: int, unknown: str) -> str:
    return unknown if coefficient == 1 else f"{coefficient}{unknown}"


def show(row: Row, unknowns: str = "") -> str:
    """A row as an equation, such as `3x - 7y = 85`."""
    names = unknowns or UNKNOWNS[: len(row) - 1]
    text = ""
    for coefficient, name in zip(row[:-1], names, strict=True):
        if coefficient:
            sign = "-" if coefficient < 0 else "+" if text else ""
            text += f" {sign} {_times(abs(coefficient), name)}" if text else f"{sign}{_times(abs(coefficient), name)}"
    return f"{text} = {row[-1]}"


def solve(problem: Problem, style: Style, rng: random.Random) -> Document:
    """Eliminate one unknown after the other, then put the values back."""
    pad = Scratchpad(style, rng)
    if problem.level <= 3:
        return _solve_one(problem, pad)
    rows: list[Row] = list(problem.facts)
    names = UNKNOWNS[: len(rows)]
    for label, row in zip("ABC", rows, strict=False):
        pad.write(f"{label}: {show(row)}\n")
    values = _solve_two(pad, rows, names) if len(rows) == 2 else _solve_three(pad, rows)
    total = values[0]
    for value in values[1:]:
        pad.write(f"{total}+{value}={total + value}\n")
        total += value
    pad.write(f"so {total}")
    listed = " and ".join(f"{name} = {value}" for name, value in zip(names, values, strict=True))
    answer = f"The solution is {listed}, together {total}.\n\\boxed{{{total}}}"
    return Document(prompt=problem.prompt, thought=pad.text(), answer=answer)


def _solve_one(problem: Problem, pad: Scratchpad) -> Document:
    a, b, d, c = problem.facts
    if d:
        pad.write(f"{a}x-{d}x={_times(a - d, 'x')}\n")
    factor = a - d
    pad.write(f"{_times(factor, 'x')} = {c}-{b}\n")
    right = pad.subtract(c, b)
    x = right
    if factor > 1:
        pad.write(f"{factor}x = {right}\n")
        x = pad.divide_digit(right, factor)
    pad.write(f"so {x}")
    steps = f"{_times(factor, 'x')} = {right}"
    return Document(
        prompt=problem.prompt, thought=pad.text(), answer=f"Collecting terms gives {steps}, so x = {x}.\n\\boxed{{{x}}}"
    )


def _product(pad: Scratchpad, x: int, y: int) -> int:
    """X * y: the smaller magnitude is split into its digits; up to two digits by one it is done in the head."""
    big, small = (x, y) if abs(x) >= abs(y) else (y, x)
    sign = -1 if (big < 0) != (small < 0) else 1
    big, small = abs(big), abs(small)
    if small <= 9 and big <= 99:
        pad.write(f"{x}*{y}={sign * big * small}\n")
        return sign * big * small
    value = pad.multiply_digit(big, small % 10) if small % 10 else 0
    for place in range(1, len(str(small))):
        digit = small // 10**place % 10
        if digit:
            value = pad.add(pad.multiply_digit(big, digit) * 10**place, value)
    pad.write(f"{x}*{y}={sign * value}\n")
    return sign * value


def _difference(pad: Scratchpad, x: int, y: int) -> int:
    """X - y for signed numbers: short ones in the head, long ones by their magnitudes."""
    if abs(x) <= 99 and abs(y) <= 99:
        value = x - y
    elif (x < 0) != (y < 0):
        value = pad.add(abs(x), abs(y)) * (-1 if x < 0 else 1)
    else:
        big, small = max(abs(x), abs(y)), min(abs(x), abs(y))
        value = pad.subtract(big, small) * (1 if (x >= y) else -1)
    pad.write(f"{x}-({y})={value}\n")
    return value


def _eliminate(pad: Scratchpad, upper: Row, lower: Row, names: str, labels: str) -> Row:
    """Write lower * upper[0] - upper * lower[0], one coefficient after the other."""
    pad.write(f"{labels[1]}*{upper[0]}-{labels[0]}*{lower[0]}\n")
    result = []
    for p, q in zip(upper[1:], lower[1:], strict=True):
        result.append(_difference(pad, _product(pad, q, upper[0]), _product(pad, p, lower[0])))
    row = tuple(result)
    pad.write(f"{labels[2]}: {show(row, names[1:])}\n")
    return row


def _divide_out(pad: Scratchpad, coefficient: int, right: int, name: str) -> int:
    """The unknown of coefficient * name = right, by counting up multiples."""
    pad.write(f"{name} = {right}/{coefficient}:")
    coefficient, right = abs(coefficient), abs(right)
    multiple, count = 0, 0
    while multiple < right:
        multiple, count = multiple + coefficient, count + 1
        pad.write(f" {count}:{multiple}")
    pad.write(f" {name}={count}\n")
    return count


def _solve_two(pad: Scratchpad, rows: list[Row], names: str, labels: str = "ABD") -> list[int]:
    last = _eliminate(pad, rows[0], rows[1], names, labels)
    y = _divide_out(pad, last[0], last[1], names[1])
    return [_put_back(pad, rows[0], [y], names), y]


def _solve_three(pad: Scratchpad, rows: list[Row]) -> list[int]:
    upper = _eliminate(pad, rows[0], rows[1], UNKNOWNS, "ABD")
    lower = _eliminate(pad, rows[0], rows[2], UNKNOWNS, "ACE")
    y, z = _solve_two(pad, [upper, lower], UNKNOWNS[1:], "DEF")
    return [_put_back(pad, rows[0], [y, z], UNKNOWNS), y, z]


def _put_back(pad: Scratchpad, row: Row, known: list[int], names: str) -> int:
    """The first unknown of a row whose other unknowns are known."""
    pad.write(f"{show(row, names)}\n")
    right = row[-1]
    for coefficient, value in zip(row[1:-1], known, strict=True):
        right = _difference(pad, right, _product(pad, coefficient, value))
    return _divide_out(pad, row[0], right, names[0])
