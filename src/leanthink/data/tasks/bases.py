"""Writing a number in another base: repeated long division, the remainders read backwards at the end."""

from __future__ import annotations

import random

from leanthink.data.tasks.problem import Document, Problem, number_of_digits
from leanthink.data.tasks.scratchpad import PLACES, Scratchpad, Style, long_division, nines, spell

SHAPE_BY_LEVEL = ((2, 3, 2, 9), (3, 4, 3, 9), (5, 5, 3, 9), (6, 7, 3, 9), (8, 9, 3, 7))  # digits from-to, base from-to
ASK = ("Write {n} in base {b}.", "What is {n} in base {b}?", "Convert {n} to base {b}.")


def make(rng: random.Random, level: int) -> Problem:
    """Two or three digits (level 1) up to nine digits (level 5), base 2 to 9."""
    low, high, base_low, base_high = SHAPE_BY_LEVEL[level - 1]
    n, base = number_of_digits(rng, rng.randint(low, high)), rng.randint(base_low, base_high)
    prompt = rng.choice(ASK).format(n=n, b=base)
    return Problem(
        family="bases", level=level, prompt=prompt, answer=in_base(n, base), key=f"{n}@{base}", facts=(n, base)
    )


def in_base(n: int, base: int) -> str:
    """N in the given base, highest digit first."""
    digits = ""
    while n:
        n, rest = divmod(n, base)
        digits = f"{rest}{digits}"
    return digits or "0"


def solve(problem: Problem, style: Style, rng: random.Random) -> Document:
    """Divide, note the remainder under a capital letter, go on with the quotient."""
    n, base = problem.facts
    pad = Scratchpad(style, rng)
    pad.write(f"{n}: {spell(n)}\n")
    rests: list[int] = []
    while n:
        n, rest = _divide(pad, n, base, PLACES[len(rests)].upper())
        rests.append(rest)
    letters = [f"{PLACES[i].upper()}{rest}" for i, rest in enumerate(rests)]
    number = "".join(map(str, reversed(rests)))
    pad.write(f"from the last: {' '.join(reversed(letters))} = {number}")
    answer = (
        f"Dividing by {base} {len(rests)} times leaves {rests[0]} first and {rests[-1]} last, "
        f"which reads {number}.\n\\boxed{{{number}}}"
    )
    return Document(prompt=problem.prompt, thought=pad.text(), answer=answer)


def _divide(pad: Scratchpad, n: int, base: int, letter: str) -> tuple[int, int]:
    """One long division of n; returns quotient and remainder as written."""

    def calculation(spelled: bool, with_error: bool) -> tuple[str, int]:
        quotient, rest, steps = long_division(n, base, spelled, pad.error_column(with_error, len(str(n))))
        left = spell(quotient) if quotient else "0"
        return f"/{base}: {steps}, {letter}{rest} and {left}", quotient * base + rest

    def check(value: int) -> tuple[str, bool]:
        q, rest = divmod(value, base)
        residue = (q % 9 * base + rest) % 9
        return f"{nines(q)}, {q % 9}*{base}+{rest}={residue}, {nines(n)}", residue == n % 9

    return divmod(pad.calculate(calculation, check), base)
