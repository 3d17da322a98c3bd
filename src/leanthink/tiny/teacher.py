"""What the embedded reasoner learns from: endless worked examples, drawn by seed from the training problems only."""

from __future__ import annotations

import random

from leanthink.tiny.pen import STYLES, Style
from leanthink.tiny.problem import Document, Problem
from leanthink.tiny.tasks import FAMILIES, LEVELS

LEVEL_WEIGHTS = (1.0, 1.2, 1.4, 1.8, 2.0)
STYLE_WEIGHTS = (0.20, 0.17, 0.18, 0.45)  # terse, plain, careful, thorough: greedy decoding is thorough
MAX_DOCUMENT_CHARS = 4300


def sample_document(rng: random.Random) -> Document:
    """One worked training example of any family, level and style."""
    family = rng.choice(tuple(FAMILIES.values()))
    while True:
        problem = family.make(rng, rng.choices(LEVELS, LEVEL_WEIGHTS)[0])
        if problem.split != "train":
            continue
        document = write(problem, rng.choices(STYLES, STYLE_WEIGHTS)[0], rng)
        if len(document.prompt) + len(document.thought) + len(document.answer) <= MAX_DOCUMENT_CHARS:
            return document


def write(problem: Problem, style: Style, rng: random.Random) -> Document:
    """The teacher's solution of one problem in one style."""
    return FAMILIES[problem.family].solve(problem, style, rng)
