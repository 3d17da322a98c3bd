"""What is said of a budget that will probably be too small, before anything is generated within it."""

from __future__ import annotations

import math
from typing import Any, cast

from leanthink.policies import Policy
from leanthink.policies.budget import Budget

MAX_RATIO = 4.0  # mean thought by budget + interval; beyond it answers were measured to go wrong (docs/policies.md)


def budget_hints(policy: Policy, budget: Budget | None) -> list[str]:
    """A sentence for each reason to expect wrong answers; none where the budget is as was measured to be enough."""
    if budget is None:
        return []
    hints = []
    if budget.recent_window == budget.slots and policy.name != "window":
        hints.append(
            f"recent_window={budget.recent_window} fills the budget of {budget.slots} slots: nothing is left for "
            f"policy {policy.name!r} to rank, and only the youngest tokens stay; give a larger budget or a smaller "
            "window"
        )
    thought = thought_tokens_of(policy)
    held = budget.max_thought_slots
    if thought is not None and thought > MAX_RATIO * held:
        least = math.ceil(thought / MAX_RATIO) - budget.eviction_interval
        hints.append(
            f"budget {budget.slots} and eviction interval {budget.eviction_interval} hold {thought / held:.3g} times "
            f"less than this model's mean thought, {thought:.0f} tokens when its predictor was fitted; above "
            f"{MAX_RATIO:.0f} times answers go wrong: give a budget of {least} or more"
        )
    return hints


def thought_tokens_of(policy: Policy) -> float | None:
    """Mean thought of the traces that the policy's predictor was fitted to; None where that is not known."""
    if policy.target is None:
        return None
    found: float | None = getattr(cast(Any, policy).predictor, "thought_tokens", None)
    return found
