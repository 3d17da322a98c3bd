"""What a problem of the embedded tasks is, and what the teacher writes about one."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["train", "held-out"]
HELD_OUT_SHARE = 8  # one problem in eight is never trained on


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question with one checkable answer.

    `key` names what is asked, whatever the words or the order of operands: problems with one key are the same problem.
    `facts` are the numbers behind the words, for the teacher.
    """

    family: str
    level: int
    prompt: str
    answer: str
    key: str
    facts: Any = field(repr=False, compare=False)

    @property
    def digest(self) -> str:
        """A name for the problem that does not depend on its words, 16 hex digits."""
        return hashlib.sha256(f"{self.family}:{self.key}".encode()).hexdigest()[:16]

    @property
    def id(self) -> str:
        """Unique name, such as `multiply-4-0f3a...`."""
        return f"{self.family}-{self.level}-{self.digest}"

    @property
    def split(self) -> Split:
        """Decided by the digest alone, so that training and held-out problems can never overlap."""
        return "held-out" if int(self.digest, 16) % HELD_OUT_SHARE == 0 else "train"


@dataclass(frozen=True, kw_only=True)
class Document:
    """A worked example: what is asked, what is thought, what is answered."""

    prompt: str
    thought: str
    answer: str


def number_of_digits(rng: random.Random, num_digits: int) -> int:
    """A random number with exactly `num_digits` digits (one digit: 2 to 9, so that it is worth a calculation)."""
    return rng.randint(10 ** (num_digits - 1) if num_digits > 1 else 2, 10**num_digits - 1)
