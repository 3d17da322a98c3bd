"""Accounts and transfers: each event changes balances that were last written long ago."""

from __future__ import annotations

import random

from leanthink.data.tasks.problem import Document, Problem, number_of_digits
from leanthink.data.tasks.scratchpad import Scratchpad, Style

NAMES = ("Ann", "Bob", "Cid", "Dan", "Eva", "Fay", "Gus", "Hal")
SHAPE_BY_LEVEL = ((2, 2, 2), (3, 4, 2), (3, 6, 3), (4, 9, 3), (5, 12, 4))  # people, events, digits at most
ASK = (
    "{start}. {events} How much does the richest of them have at the end?",
    "{start}. {events} What is the largest amount at the end?",
)


def make(rng: random.Random, level: int) -> Problem:
    """2 people and 2 events (level 1) up to 5 people and 12 events with 4-digit amounts; nobody falls below zero."""
    num_people, num_events, digits = SHAPE_BY_LEVEL[level - 1]
    names = rng.sample(NAMES, num_people)
    start = {name: number_of_digits(rng, digits) for name in names}
    have = dict(start)
    events: list[tuple[str, str, str, int]] = []
    while len(events) < num_events:
        kind = rng.choice(("gives", "gives", "gets", "pays"))
        who, other = rng.sample(names, 2)
        amount = number_of_digits(rng, rng.randint(max(1, digits - 1), digits))
        if kind != "gets" and amount > have[who]:
            continue
        have[who] += amount if kind == "gets" else -amount
        if kind == "gives":
            have[other] += amount
        events.append((kind, who, other, amount))
    listed = [f"{name} has {amount}" for name, amount in start.items()]
    told = " ".join(f"{i}. {_tell(*event)}." for i, event in enumerate(events, start=1))
    prompt = rng.choice(ASK).format(start=", ".join(listed[:-1]) + f" and {listed[-1]}", events=told)
    answer = str(max(have.values()))
    return Problem(
        family="ledger", level=level, prompt=prompt, answer=answer, key=f"{start}{events}", facts=(start, tuple(events))
    )


def _tell(kind: str, who: str, other: str, amount: int) -> str:
    return f"{who} gives {other} {amount}" if kind == "gives" else f"{who} {kind} {amount}"


def solve(problem: Problem, style: Style, rng: random.Random) -> Document:
    """Event by event; a balance is read where it was last written."""
    start, events = problem.facts
    pad = Scratchpad(style, rng)
    have = dict(start)
    for i, (kind, who, other, amount) in enumerate(events, start=1):
        pad.write(f"{i}. {_tell(kind, who, other, amount)}\n")
        if kind == "gets":
            _change(pad, have, who, amount)
            continue
        _change(pad, have, who, -amount)
        if kind == "gives":
            _change(pad, have, other, amount)
    ends = ", ".join(f"{name} {amount}" for name, amount in have.items())
    most = max(have.values())
    richest = next(name for name, amount in have.items() if amount == most)
    pad.write(f"end: {ends}\nmost {richest} {most}")
    answer = f"At the end: {ends}. {richest} has the most.\n\\boxed{{{most}}}"
    return Document(prompt=problem.prompt, thought=pad.text(), answer=answer)


def _change(pad: Scratchpad, have: dict[str, int], name: str, amount: int) -> None:
    pad.write(f"{name} ")
    if amount >= 0:
        have[name] = pad.add(have[name], amount)
    else:
        have[name] = pad.subtract(
            have[name], min(-amount, have[name])
        )  # less than was asked only after an unfound error
