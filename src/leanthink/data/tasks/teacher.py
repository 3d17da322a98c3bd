"""What the embedded reasoner learns from: endless worked examples, drawn by seed from the training problems only."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from leanthink.data.tasks.problem import Document, Problem
from leanthink.data.tasks.registry import FAMILIES, LEVELS
from leanthink.data.tasks.scratchpad import ERROR_RATE_IF_UNCHECKED, STYLES, Style
from leanthink.utils.errors import UsageError, unknown

LEVEL_WEIGHTS = (1.0, 1.2, 1.4, 1.8, 2.0)
STYLE_WEIGHTS = (0.20, 0.17, 0.18, 0.45, 0.0)  # as STYLES: terse, plain, ...; greedy decoding is thorough, none brisk
MAX_DOCUMENT_CHARS = 4300


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """How a teacher goes about the styles; the default is the one that the shipped weights have learned from.

    Attributes:
        terse_share: of the documents, how many are terse.
        brisk_share: how many are short and checked; the three styles in steps share the rest in their proportions.
        style_skew: how much the shares differ from one family and level to another: the standard deviation of their
            logarithms, drawn once for all. Without any a style says nothing of its problem, and who learns from it
            chooses without looking: reinforcement learning then changes the style of all problems at once.
        error_rate_if_unchecked: per calculation that nothing checks. Where it is high, checks pay.
        errors_from_level: the first level where that holds; below it errors are as rare as the shipped weights know
            them, so that checks pay where problems are hard, and only there.

    Raises:
        UsageError: a share or a probability outside [0, 1], shares of more than 1, style_skew below 0, or an unknown
            level.
    """

    terse_share: float = STYLE_WEIGHTS[0]
    brisk_share: float = STYLE_WEIGHTS[-1]
    style_skew: float = 0.0
    error_rate_if_unchecked: float = ERROR_RATE_IF_UNCHECKED
    errors_from_level: int = LEVELS[0]

    def __post_init__(self) -> None:
        for name in ("terse_share", "brisk_share", "error_rate_if_unchecked"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must be within 0 and 1, not {getattr(self, name)}")
        if self.terse_share + self.brisk_share > 1:
            raise UsageError(
                f"terse_share {self.terse_share} and brisk_share {self.brisk_share} are more than 1 together: give less"
            )
        if self.style_skew < 0:
            raise UsageError(f"style_skew must be 0 or more, not {self.style_skew}")
        if self.errors_from_level not in LEVELS:
            raise unknown("level", self.errors_from_level, LEVELS)

    def style_weights(self, family: str, level: int) -> list[float]:
        """The share of each style in documents of one family and level; they need not add up to 1."""
        _, *in_steps, _ = STYLE_WEIGHTS
        rest = (1 - self.terse_share - self.brisk_share) / sum(in_steps)
        shares = [self.terse_share, *(weight * rest for weight in in_steps), self.brisk_share]
        dice = random.Random(f"{family} {level}")
        return [share * math.exp(dice.gauss(0, 1) * self.style_skew) for share in shares]

    def style_at(self, style: Style, level: int) -> Style:
        """The style as it is written on a level: how often it errs."""
        if level < self.errors_from_level:
            return style
        return replace(style, error_rate_if_unchecked=self.error_rate_if_unchecked)


def sample_document(rng: random.Random, teacher_config: TeacherConfig = TeacherConfig()) -> Document:
    """One worked training example of any family, level and style."""
    family = rng.choice(tuple(FAMILIES.values()))
    while True:
        problem = family.make(rng, rng.choices(LEVELS, LEVEL_WEIGHTS)[0])
        if problem.split != "train":
            continue
        style = rng.choices(STYLES, teacher_config.style_weights(problem.family, problem.level))[0]
        document = write(problem, teacher_config.style_at(style, problem.level), rng)
        if len(document.prompt) + len(document.thought) + len(document.answer) <= MAX_DOCUMENT_CHARS:
            return document


def write(problem: Problem, style: Style, rng: random.Random) -> Document:
    """The teacher's solution of one problem in one style."""
    return FAMILIES[problem.family].solve(problem, style, rng)
