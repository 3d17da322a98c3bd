"""What a vLLM server is told through one environment variable, and what a request may ask of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from leanthink.policies import POLICIES, parse_spec
from leanthink.policies.budget import REQUEST_KEYS, Budget
from leanthink.policies.policy_spec import canonical
from leanthink.utils.errors import UsageError, unknown
from leanthink.utils.file_reading import parse_json

VARIABLE = "LEANTHINK_VLLM"
PREFIX = "leanthink_"  # of what a request asks for, in SamplingParams.extra_args or vllm_xargs
# The scheduler learns that the thought is over when the next token is under way.
LEAST_ANSWER = 2


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one request asked for."""

    policy: str
    budget: Budget


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One server.

    Attributes:
        policy: of requests that name none, with or without settings (`horizon:only=256`).
        policies: those that a request may name; each is made when the server starts. None: `policy` alone.
        budget: of requests that give none, and where those that give a part of it get the rest; None: they keep all.
        max_thought_slots: most slots that a request may ask for, budget and interval together.
        predictors: files, by policy; a policy that needs one and is not here takes the one shipped with the model.
        ignore_predictor_mismatch: let those files be ones of another model, of which the served one is a relative.

    Raises:
        UsageError: a value is out of range, or a policy cannot be served here.
    """

    policy: str = "horizon"
    policies: tuple[str, ...] | None = None
    budget: Budget | None = None
    max_thought_slots: int = 8192
    predictors: Mapping[str, str] = field(default_factory=dict)
    ignore_predictor_mismatch: bool = False

    def __post_init__(self) -> None:
        if self.ignore_predictor_mismatch and not self.predictors:
            raise UsageError("ignore_predictor_mismatch is of predictors: give their files, or leave it out")
        for spec in (*self.offered, *self.predictors):
            check_policy(spec)
        if canonical(self.policy) not in self.offered:
            raise UsageError(f"policy={self.policy!r} is not among policies={list(self.offered)}: add it there")
        if self.budget is not None:
            self.check(self.budget)

    @property
    def offered(self) -> tuple[str, ...]:
        """The policies that a request may name, each as `canonical` writes it."""
        return tuple(map(canonical, (self.policy,) if self.policies is None else self.policies))

    def check(self, budget: Budget) -> None:
        """Raise UsageError for a budget that this server does not give."""
        most = self.max_thought_slots
        if budget.max_thought_slots > most:
            raise UsageError(
                f"budget={budget.slots} and eviction_interval={budget.eviction_interval} are "
                f"{budget.max_thought_slots} slots, and at most {most} are allowed here: ask for less, or raise "
                f"max_thought_slots in {VARIABLE}"
            )
        if budget.max_answer_slots < LEAST_ANSWER:
            raise UsageError(f"max_answer_slots={budget.max_answer_slots}: must be {LEAST_ANSWER} or more in vLLM")


def check_policy(text: str) -> None:
    """Raise UsageError for a policy that vLLM's cache cannot serve: it needs one set for all layers, and no texts."""
    name, policy = (spec := parse_spec(text)).name, spec.kind
    if name == "full" or policy.per_head or policy.texts or policy.labelled:
        served = [
            other for other, p in POLICIES.items() if not (other == "full" or p.per_head or p.texts or p.labelled)
        ]
        raise UsageError(f"policy {name!r} cannot be served in vLLM: choose one of {', '.join(served)}")


def asked_of(extra_args: Mapping[str, Any] | None, settings: Settings) -> Asked | None:
    """What a request asked for; None where it keeps everything, as in vLLM alone.

    Raises:
        UsageError: an unknown name, a value out of range, or parts of a budget without one.
    """
    args = (extra_args or {}).items()
    given = {name.removeprefix(PREFIX): value for name, value in args if name.startswith(PREFIX)}
    for name in given:
        if name not in (*REQUEST_KEYS, "policy"):
            raise unknown("request parameter", PREFIX + name, [PREFIX + known for known in (*REQUEST_KEYS, "policy")])
    policy = canonical(given.pop("policy", settings.policy))
    if policy == "full":
        if given:
            raise UsageError(f"policy 'full' keeps everything: leave out {', '.join(PREFIX + name for name in given)}")
        return None
    if policy not in settings.offered:
        raise unknown("policy", policy, (*settings.offered, "full"))
    if settings.budget is None and "budget" not in given:
        if given or policy != canonical(settings.policy):
            raise UsageError(f"this server has no budget of its own: give {PREFIX}budget, in slots")
        return None
    parts = {REQUEST_KEYS[name]: value for name, value in given.items()}
    budget = Budget(**parts) if settings.budget is None else replace(settings.budget, **parts)
    settings.check(budget)
    return Asked(policy=policy, budget=budget)


def read_settings(text: str) -> Settings:
    """Settings out of JSON, or of the file that holds it: the names of `Settings`, and of `Budget` for its parts.

    Raises:
        UsageError: not JSON, an unknown name, or a value out of range.
    """
    if not text.lstrip().startswith("{"):
        if not Path(text).is_file():
            raise UsageError(f"{VARIABLE}={text!r}: give a JSON object, or the path of a file that holds one")
        text = Path(text).read_text(errors="replace")
    try:
        given = parse_json(text)
    except ValueError as error:
        raise UsageError(f"{VARIABLE} is no JSON: {error}") from None
    names = [item.name for item in fields(Settings)]
    for name in given:
        if name not in (*names, *REQUEST_KEYS):
            raise unknown(f"setting in {VARIABLE}", name, dict.fromkeys((*names, *REQUEST_KEYS)))
    given = {name: value for name, value in given.items() if value is not None}
    parts = {REQUEST_KEYS[name]: given.pop(name) for name in REQUEST_KEYS if name in given}
    if parts and "slots" not in parts:
        raise UsageError(f"{VARIABLE}: {', '.join(parts)} without a budget: give budget too, in slots")
    if "policies" in given:
        given["policies"] = tuple(given["policies"])
    return Settings(**(given | {"budget": Budget(**parts) if parts else None}))


def settings_here() -> Settings:
    """Those of this process. Raises UsageError where the variable is not set or wrong."""
    text = os.environ.get(VARIABLE)
    if not text:
        raise UsageError(f"{VARIABLE} is not set: give it to `vllm serve`, as docs/vllm.md says")
    return _read_once(text)


_read_once = cache(read_settings)
