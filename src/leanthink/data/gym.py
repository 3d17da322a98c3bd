"""Families of reasoning-gym, an optional package: their entries as problems, graded by their own scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

from leanthink.data.grading.math_verify_pool import pool
from leanthink.data.problems import Problem
from leanthink.utils.errors import UsageError, unknown


def gym_problems(name: str, settings: Mapping[str, Any], count: int, seed: int) -> list[Problem]:
    """`count` entries of one family; an answer is right that scores 1. Same seed, same entries.

    Raises:
        UsageError: reasoning-gym is not installed, or it has no such family, or refuses the settings.
    """
    problems = []
    for index, entry in enumerate(environment(gym_facts(name, settings, count, seed))):
        facts = gym_facts(name, settings, count, seed, index=index)
        check = partial(scores_one, facts)
        id = f"{name}-{seed}-{index}"
        problems.append(Problem(id=id, problem=entry["question"], answer=str(entry["answer"]), check=check))
    return problems


def gym_facts(name: str, settings: Mapping[str, Any], count: int, seed: int, **index: int) -> str:
    """What makes a family, or one entry of it, again: as JSON."""
    return json.dumps({"name": name, "settings": dict(settings), "count": count, "seed": seed, **index})


@cache
def environment(facts: str) -> Any:
    """The data set of reasoning-gym that these facts make. Raises UsageError."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise UsageError("these problems need the package reasoning-gym: pip install 'leanthink[gym]'") from error
    wanted = json.loads(facts)
    if wanted["name"] not in reasoning_gym.factory.DATASETS:
        raise unknown("reasoning-gym environment", wanted["name"], reasoning_gym.factory.DATASETS)
    settings = {**wanted["settings"], "size": wanted["count"], "seed": wanted["seed"]}
    try:
        return reasoning_gym.create_dataset(wanted["name"], **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise UsageError(f"reasoning-gym refuses {wanted['name']} with {wanted['settings']}: {error}") from error


def scores_one(facts: str, answer: str | None) -> bool:
    """Whether the family gives this answer its whole point; told by a process with a time limit, as for mathematics."""
    return answer is not None and pool.score(facts, answer)


def entry_of(facts: str) -> tuple[Any, Any]:
    """The family of one entry and the entry, both made anew from their seed."""
    wanted = json.loads(facts)
    index = wanted.pop("index")
    family = environment(json.dumps(wanted))
    return family, family[index]
