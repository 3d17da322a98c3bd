"""What the embedded reasoner learns from: endless worked examples, drawn by seed from the training problems only."""

from __future__ import annotations

import random
from dataclasses import replace

from leanthink.tiny.pen import SLIP_IF_UNCHECKED, STYLES, Style
from leanthink.tiny.problem import Document, Problem
from leanthink.tiny.tasks import FAMILIES, LEVELS

LEVEL_WEIGHTS = (1.0, 1.2, 1.4, 1.8, 2.0)
STYLE_WEIGHTS = (0.20, 0.17, 0.18, 0.45)  # terse, plain, careful, thorough: greedy decoding is thorough
MAX_DOCUMENT_CHARS = 4300


def sample_document(rng: random.Random, slip_if_unchecked: float = SLIP_IF_UNCHECKED) -> Document:
    """One worked training example of any family, level and style.

    A teacher whose unchecked calculations slip more often gives wrong answers where nothing is checked: who learns from
    it has something to gain from checks, and from slipping less.
    """
    family = rng.choice(tuple(FAMILIES.values()))
    while True:
        problem = family.make(rng, rng.choices(LEVELS, LEVEL_WEIGHTS)[0])
        if problem.split != "train":
            continue
        style = replace(rng.choices(STYLES, STYLE_WEIGHTS)[0], slip_if_unchecked=slip_if_unchecked)
        document = write(problem, style, rng)
        if len(document.prompt) + len(document.thought) + len(document.answer) <= MAX_DOCUMENT_CHARS:
            return document


def write(problem: Problem, style: Style, rng: random.Random) -> Document:
    """The teacher's solution of one problem in one style."""
    return FAMILIES[problem.family].solve(problem, style, rng)
