"""Countdown: reach a target from given numbers, by searching in a fixed order, with dead ends."""

from __future__ import annotations

import ast
import operator
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from leanthink.data.tasks.problem import Document, Problem
from leanthink.data.tasks.scratchpad import Scratchpad, Style

SHAPE_BY_LEVEL = (
    (3, "+-", 20),
    (3, "+-", 99),
    (3, "+-*", 50),
    (4, "+-*", 12),
    (4, "+-*", 20),
)  # count, operations, largest
SEARCH_CHARS_BY_LEVEL = ((0, 3600), (0, 3600), (0, 3600), (300, 1800), (1200, 3400))  # from-to, in the plain style
ERROR_RATE_IN_LEAF = 0.0015  # per dead end, in checked styles: taken for the target until the check
MOST_CHARACTERS = 1_000  # of an answer: an expression of a few numbers takes far less
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
ASK = (
    "Use the numbers {numbers}, each exactly once, with {operations} to reach {target}.",
    "Reach {target} from {numbers}, using every number once and only {operations}.",
    "Combine {numbers}, each once, with {operations} so that the result is {target}.",
)
WORDS = {"+-": "+ and -", "+-*": "+, - and *"}


@dataclass(frozen=True)
class Term:
    """A value, the expression that makes it, and the steps of that expression."""

    value: int
    text: str
    steps: tuple[str, ...] = ()


def make(rng: random.Random, level: int) -> Problem:
    """3 numbers with + and - (level 1) up to 4 numbers with +, - and *."""
    count, operations, largest = SHAPE_BY_LEVEL[level - 1]
    low, high = SEARCH_CHARS_BY_LEVEL[level - 1]
    while True:
        numbers = [rng.randint(1, largest) for _ in range(count)]
        target = _some_result(rng, numbers, operations)
        if target < 1 or target > 999 or target in numbers:
            continue
        plain = Scratchpad(_PLAIN, rng)
        solution = _search(plain, [Term(n, str(n)) for n in numbers], target, operations)
        if low <= len(plain.text()) <= high:
            break
    listed = ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
    prompt = rng.choice(ASK).format(numbers=listed, operations=WORDS[operations], target=target)
    assert solution is not None
    return Problem(
        family="countdown",
        level=level,
        prompt=prompt,
        answer=solution.text[1:-1],
        key=f"{sorted(numbers)}{operations}={target}",
        facts=(tuple(numbers), target, operations),
    )


def solve(problem: Problem, style: Style, rng: random.Random) -> Document:
    """Depth first over pairs and operations; each dead end is written down."""
    numbers, target, operations = problem.facts
    pad = Scratchpad(style, rng)
    pad.write(f"target {target}\n")
    found = _search(pad, [Term(n, str(n)) for n in numbers], target, operations)
    assert found is not None
    expression = found.text[1:-1]
    pad.write(f"trail {', '.join(found.steps)}\nso {expression}")
    answer = f"The steps {', '.join(found.steps)} reach the target.\n\\boxed{{{expression}}}"
    return Document(prompt=problem.prompt, thought=pad.text(), answer=answer)


def check(problem: Problem, answer: str) -> bool:
    """Does the expression use every number exactly once, only the allowed operations, and reach the target?"""
    numbers, target, operations = problem.facts
    if len(answer) > MOST_CHARACTERS:
        return False
    try:
        tree = ast.parse(answer.strip(), mode="eval").body
        used: Counter[int] = Counter()
        return _evaluate(tree, operations, used) == target and used == Counter(numbers)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _evaluate(node: ast.expr, operations: str, used: Counter[int]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used[node.value] += 1
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        apply = OPERATORS[type(node.op)]
        if any(OPERATIONS[sign] is apply for sign in operations):
            return int(apply(_evaluate(node.left, operations, used), _evaluate(node.right, operations, used)))
    raise ValueError(f"not an expression of {operations}")


def _combinations(terms: list[Term], operations: str) -> Iterator[tuple[str, Term, list[Term]]]:
    """Every way to combine two terms, in the order of the search: `60+25`, the new term, the list with it in front."""
    for i in range(len(terms)):
        for j in range(i + 1, len(terms)):
            x, y = terms[i], terms[j]
            big, small = (x, y) if x.value >= y.value else (y, x)
            rest = [t for k, t in enumerate(terms) if k not in (i, j)]
            for sign in operations:
                if sign == "*" and not (small.value <= 9 and big.value <= 99):
                    continue  # products of two long numbers are not looked at
                value = int(OPERATIONS[sign](big.value, small.value))
                step = f"{big.value}{sign}{small.value}"
                new = Term(value, f"({big.text}{sign}{small.text})", (*big.steps, *small.steps, f"{step}={value}"))
                yield step, new, [new, *rest]


def _search(pad: Scratchpad, terms: list[Term], target: int, operations: str) -> Term | None:
    """Write the search below `terms`; returns the term that reaches the target."""
    if len(terms) == 2:
        return _leaves(pad, terms, target, operations)
    for step, new, rest in _combinations(terms, operations):
        if len(terms) > 3:
            pad.write(f"[{' '.join(str(t.value) for t in terms)}] ")
        listed = " ".join(str(t.value) for t in rest)
        pad.write(f"{step}={new.value} [{listed}]" + ("\n" if len(rest) > 2 else ""))
        found = _search(pad, rest, target, operations)
        if found is not None:
            return found
    return None


def _leaves(pad: Scratchpad, terms: list[Term], target: int, operations: str) -> Term | None:
    for step, new, _ in _combinations(terms, operations):
        if new.value != target and pad.style.check_rate > 0 and pad.rng.random() < ERROR_RATE_IN_LEAF:
            pad.write(f" {step}={target} check {step}={new.value} no")
            continue
        pad.write(f" {step}={new.value}" if pad.style.spelled else f" {new.value}")
        if new.value == target:
            pad.write(f" check {step}={target} ok\n" if pad.checks_now() else " found\n")
            return new
    pad.write("\n")
    return None


_PLAIN = Style(name="plain", opening="", spelled=True, check_rate=0.0)


def _some_result(rng: random.Random, numbers: list[int], operations: str) -> int:
    terms = [Term(n, str(n)) for n in numbers]
    while len(terms) > 1:
        terms = rng.choice(list(_combinations(terms, operations)))[2]
    return terms[0].value
