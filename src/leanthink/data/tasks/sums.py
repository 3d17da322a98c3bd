"""Chains of additions and subtractions, one running total."""

from __future__ import annotations

import random

from leanthink.data.tasks.problem import Document, Problem, number_of_digits
from leanthink.data.tasks.scratchpad import Scratchpad, Style

SHAPE_BY_LEVEL = ((2, 3, 2), (4, 5, 3), (6, 7, 4), (8, 9, 5), (10, 12, 6))  # terms from-to, digits at most
ASK = ("Compute {chain}.", "What is {chain}?", "Work out {chain}.")


def make(rng: random.Random, level: int) -> Problem:
    """2-3 terms of up to 2 digits (level 1) up to 10-12 terms of up to 6 digits; no running total is below zero."""
    low, high, digits = SHAPE_BY_LEVEL[level - 1]
    total = number_of_digits(rng, digits)
    terms = [total]
    for _ in range(rng.randint(low, high) - 1):
        term = number_of_digits(rng, rng.choice((digits, digits, max(2, digits - 1))))
        if rng.random() < 0.5 and term <= total:
            term = -term
        terms.append(term)
        total += term
    chain = str(terms[0]) + "".join(f" {'-' if t < 0 else '+'} {abs(t)}" for t in terms[1:])
    prompt = rng.choice(ASK).format(chain=chain)
    return Problem(family="sums", level=level, prompt=prompt, answer=str(total), key=chain, facts=tuple(terms))


def solve(problem: Problem, style: Style, rng: random.Random) -> Document:
    """One written addition or subtraction for each term."""
    terms = problem.facts
    pad = Scratchpad(style, rng)
    totals = [terms[0]]
    for number, term in enumerate(terms[1:], start=1):
        pad.write(f"{number}. ")
        totals.append(_step(pad, totals[-1], term))
    pad.write(f"so {totals[-1]}")
    middle = len(totals) // 2
    answer = (
        f"After {middle} steps the total is {totals[middle]}, after all {len(terms) - 1} it is {totals[-1]}.\n"
        f"\\boxed{{{totals[-1]}}}"
    )
    return Document(prompt=problem.prompt, thought=pad.text(), answer=answer)


def _step(pad: Scratchpad, total: int, term: int) -> int:
    if term >= 0:
        return pad.add(total, term)
    if total >= -term:
        return pad.subtract(total, -term)
    return 0  # only after an error that nobody found
