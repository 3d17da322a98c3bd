"""Where benchmarks come from: public data sets by name, JSONL files, the embedded tasks, families of reasoning-gym."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from leanthink.data.grading.answer_normalisation import EXACT, Tolerance
from leanthink.data.gym import gym_problems
from leanthink.data.problems import STEP_BY_STEP, from_tasks, read_problems
from leanthink.data.public_datasets import PUBLIC, read_public
from leanthink.data.tasks import registry
from leanthink.data.tasks.problem import Split
from leanthink.eval.configurations import Benchmark
from leanthink.utils.errors import unknown


def public(name: str, where: str | Path | None = None) -> Benchmark:
    """A public data set by its name, in any case, from the hub or from a copy of its repository in a folder.

    Raises:
        UsageError: an unknown name, no `datasets`, a set that cannot be had, or one with other columns.
    """
    name = name.lower()
    if name not in PUBLIC:
        raise unknown("benchmark", name, PUBLIC)
    known = PUBLIC[name]
    problems = tuple(read_public(name, known, where))
    told = " ".join(filter(None, (str(where or known.hub_id), known.config, known.split)))
    return Benchmark(name=name, source=told, problems=problems, instruction=known.instruction)


def from_file(path: Path, tolerance: Tolerance = EXACT) -> Benchmark:
    """A JSONL file with the fields id, problem, answer; raises like `read_problems`."""
    problems = tuple(replace(problem, tolerance=tolerance) for problem in read_problems(path))
    return Benchmark(name=path.stem, source=path.name, problems=problems, instruction=STEP_BY_STEP)


def from_families(
    families: Sequence[str], levels: Sequence[int], count: int, seed: int, split: Split = "held-out"
) -> Benchmark:
    """`count` embedded tasks of each family and level; raises like `leanthink.data.tasks.registry.sample`."""
    chosen = [
        task for family in families for level in levels for task in registry.sample(family, level, count, seed, split)
    ]
    told = f"{count} {split} of each of {', '.join(families)}; levels {', '.join(map(str, levels))}; seed {seed}"
    return Benchmark(name="tasks", source=told, problems=tuple(from_tasks(chosen)))


def from_gym(family: str, count: int, seed: int) -> Benchmark:
    """`count` entries of a family of reasoning-gym with its default settings; raises like `gym_problems`."""
    problems = tuple(gym_problems(family, {}, count, seed))
    told = f"reasoning-gym {family}, {count} entries, seed {seed}"
    return Benchmark(name=f"gym-{family}", source=told, problems=problems, instruction=STEP_BY_STEP)
