"""What to expect of a predictor: evictions simulated on held-out thoughts, beside those of a policy without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import isqrt
from typing import Any

import torch

from leanthink.data.traces.trace import Trace
from leanthink.importance.damage import damage
from leanthink.importance.labels import Thought
from leanthink.models.predictor import Predictor
from leanthink.policies import POLICIES, make_policy
from leanthink.policies.budget import Budget

RATIO = 4  # mean thought by slots that are held at most
MOST_TRACES = 32
WITHOUT = "sinks"  # the policy beside it, which needs no predictor
MASK_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}  # of which token each query sees in each index set
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Expected:
    """How far evictions move the next-token distribution from the full cache's on held-out thoughts, by policy.

    Attributes:
        ratio: mean thought by most thought slots held, those of the budget and the interval.
        budget: what is held.
        traces: how many thoughts.
        tokens: how many of their tokens come after an eviction; means are over these.
        kl: mean Kullback-Leibler divergence in nats.
        changed: share of the tokens whose likeliest successor is another.
    """

    ratio: int
    budget: Budget
    traces: int
    tokens: int
    kl: dict[str, float]
    changed: dict[str, float]

    @property
    def record(self) -> dict[str, Any]:
        """Its fields for JSON."""
        return asdict(self) | {"budget": self.budget.record}


def budget_at(ratio: int, thought_tokens: float) -> Budget | None:
    """A budget that never holds more than this part of a thought; None where that leaves nothing to rank."""
    held = int(thought_tokens / ratio)
    part = held // 4
    if part < 1:
        return None
    interval = min(Budget.eviction_interval, part)
    return Budget(slots=held - interval, recent_window=min(Budget.recent_window, part), eviction_interval=interval)


def expect(
    model: Any,
    predictor: Predictor,
    held_out: Sequence[Trace],
    *,
    thought_tokens: float,
    progress: Progress | None = None,
) -> Expected | None:
    """Simulate evictions at RATIO times fewer slots than the mean thought, on at most MOST_TRACES of these traces.

    Of a very long thought only as much is looked at as MASK_BYTES allow. None: no thought is long enough for one.

    Args:
        model: that wrote the traces, with the full cache.
        predictor: ready for it.
        held_out: what it was not fitted to.
        thought_tokens: the mean thought.
        progress: called with the numbers of traces done and chosen, after each.
    """
    budget = budget_at(RATIO, thought_tokens)
    if budget is None:
        return None
    most_tokens = isqrt(MASK_BYTES.get(model.device.type, MASK_BYTES["cuda"]) // predictor.num_sets)
    cut = [_cut(Thought.of(trace), most_tokens) for trace in held_out if trace.thought_tokens]
    long = [thought for thought in cut if thought.thought_end - thought.prompt_tokens > budget.max_thought_slots]
    if not long:
        return None
    chosen = long[:: -(-len(long) // MOST_TRACES)]  # of all problems, where several files lie behind one another
    name = next(name for name, policy in POLICIES.items() if policy.target == predictor.target)
    policies = {name: make_policy(name, predictor), WITHOUT: make_policy(WITHOUT)}
    found = []
    for done, thought in enumerate(chosen, start=1):
        found.append(damage(model, thought, list(policies.values()), budget))
        if progress is not None:
            progress(done, len(chosen))
    by_policy = dict(zip(policies, zip(*found, strict=True), strict=True))
    kl_N = {name: torch.cat([each.kl_N for each in damages]) for name, damages in by_policy.items()}
    changed_N = {name: torch.cat([each.changed_N for each in damages]) for name, damages in by_policy.items()}
    return Expected(
        ratio=RATIO,
        budget=budget,
        traces=len(chosen),
        tokens=len(kl_N[name]),
        kl={name: float(values.mean()) for name, values in kl_N.items()},
        changed={name: float(values.float().mean()) for name, values in changed_N.items()},
    )


def _cut(thought: Thought, most_tokens: int) -> Thought:
    """The thought, ended where prompt and thought together have so many tokens; its first token always stays."""
    end = max(min(thought.thought_end, most_tokens), thought.prompt_tokens + 1)
    return replace(thought, token_ids=thought.token_ids[:end], thought_end=end)
