"""How many thought slots a request may keep, and which of them stay: pure, and the only place that counts.

Shape legend: S slots; `...` any leading dimensions (rows, or rows and kv heads); K slots kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from leanthink.utils.errors import LeanThinkError, UsageError, unknown

# What files call these fields of `Budget`.
FILE_KEYS = {"window": "recent_window", "interval": "eviction_interval", "answer": "max_answer_slots"}
# What requests and options call them all.
REQUEST_KEYS = {"budget": "slots", **{field: field for field in FILE_KEYS.values()}}


def file_keys(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of a budget under the keys that files have."""
    keys = {field: key for key, field in FILE_KEYS.items()}
    return {keys.get(name, name): value for name, value in parts.items()}


def check_parts(name: str, parts: Any) -> None:
    """Refuse a setting of this name that is no mapping, or has a key that is no field of `Budget` (UsageError)."""
    if not isinstance(parts, Mapping):
        raise UsageError(f"{name}={parts!r}: give a mapping, such as {{slots: 512}}")
    for part in parts:
        if part not in REQUEST_KEYS.values():
            raise unknown(f"part of {name}", part, REQUEST_KEYS.values())


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The memory of one request, in slots (room for one token's keys and values).

    Prompt slots come on top of everything here: they are never evicted and never counted.

    Attributes:
        slots: thought slots that an eviction leaves, the recent window included.
        recent_window: youngest thought slots, which no eviction touches.
        eviction_interval: thought slots that may gather on top of `slots` before the next eviction.
        max_answer_slots: slots that the answer may take; a longer answer ends with finish reason "length".

    Raises:
        UsageError: a number is not an integer or out of its range, or the window is larger than `slots`.
    """

    slots: int
    recent_window: int = 32
    eviction_interval: int = 64
    max_answer_slots: int = 1024

    def __post_init__(self) -> None:
        for field, minimum in (("slots", 1), ("recent_window", 0), ("eviction_interval", 1), ("max_answer_slots", 1)):
            given = getattr(self, field)
            if isinstance(given, bool) or not isinstance(given, int) or given < minimum:
                raise UsageError(f"Budget: {field} must be an integer of at least {minimum}, got {given!r}")
        if self.recent_window > self.slots:
            raise UsageError(
                f"Budget: recent_window={self.recent_window} is larger than slots={self.slots}, and the window always "
                f"stays: give slots={self.recent_window} or more, or recent_window={self.slots} or less"
            )

    @property
    def max_thought_slots(self) -> int:
        """Most thought slots that a request holds: at so many an eviction is due."""
        return self.slots + self.eviction_interval

    @property
    def record(self) -> dict[str, int]:
        """Its fields for JSON, under the keys that files have."""
        return file_keys(asdict(self))

    @staticmethod
    def from_record(record: Mapping[str, int]) -> Budget:
        """The budget of `record`."""
        return Budget(**{FILE_KEYS.get(key, key): value for key, value in record.items()})

    def is_due(self, thought_slots: int) -> bool:
        """Whether a request that thinks and holds this many thought slots must evict now."""
        return thought_slots >= self.max_thought_slots

    def bound(self, prompt_tokens: int, max_new_tokens: int, *, thinks: bool = True, answers: bool = True) -> int:
        """Most slots that a request can ever hold at one time: what is reserved when it is admitted.

        Args:
            prompt_tokens: slots of the prompt.
            max_new_tokens: thought and answer together.
            thinks: False: its prompt has closed the thought, and all that it writes is answer.
            answers: False: nothing can close the thought, and all that it writes is thought.
        """
        written = self.max_thought_slots * thinks + self.max_answer_slots * answers
        return prompt_tokens + min(written, max_new_tokens)


def select(scores: Tensor, ages: Tensor | None, pinned: Tensor | None, budget: Budget) -> Tensor:
    """Indices of the slots that stay, ascending: [..., K] int64, K = pinned slots + min(budget.slots, the rest).

    Pinned slots stay and are not counted. Of the others, the `budget.recent_window` youngest stay whatever their score;
    what is left of the budget goes to the highest scores, and between equal scores the younger stays.
    Every leading row is chosen independently. Costs one host sync, but none for slots that lie as in a cache, of which
    neither ages nor pinned ones are told: whether scores are finite is not looked at there (the engine does, later).

    Args:
        scores: [..., S] floating point, higher stays.
        ages: [..., S] integers, tokens since the slot was written, 0 for the youngest; distinct within a row. None: the
            slots lie oldest first and none is pinned.
        pinned: [..., S] bool, the same count in every leading row; None exactly where `ages` is.
        budget: how many stay.

    Raises:
        LeanThinkError: a score is NaN or infinite.
    """
    assert scores.is_floating_point(), scores.dtype
    num_slots = scores.shape[-1]
    if ages is None or pinned is None:
        assert ages is pinned, "both are None, or none is"
        return top_k_oldest_first(scores, min(budget.slots, num_slots), budget.recent_window)
    assert scores.shape == ages.shape == pinned.shape, f"{scores.shape}, {ages.shape}, {pinned.shape}"
    num_pinned = _checked_pinned(scores, pinned)
    return top_k(scores, ages, pinned, num_pinned + min(budget.slots, num_slots - num_pinned), budget.recent_window)


def top_k(scores: Tensor, ages: Tensor, pinned: Tensor, num_kept: int, window: int) -> Tensor:
    """`select` for a known number of kept slots, pinned ones included: unchecked, and without a host sync."""
    # Younger first, and stable sorts from here on: that is what settles ties.
    by_age = ages.sort(dim=-1, stable=True).indices
    scores, pinned = scores.gather(-1, by_age), pinned.gather(-1, by_age)
    in_window = (~pinned).cumsum(dim=-1) <= window
    ranked = scores.masked_fill(pinned | in_window, torch.inf)
    by_rank = ranked.sort(dim=-1, descending=True, stable=True).indices
    return by_age.gather(-1, by_rank[..., :num_kept]).sort(dim=-1).values


def top_k_oldest_first(scores: Tensor, num_kept: int, window: int) -> Tensor:
    """`top_k` of slots of which none is pinned and that lie oldest first, as in a cache: one sort less, none on a GPU.

    Args:
        scores: [..., S] floating point, higher stays.
        num_kept: K, from 1 to S.
        window: the youngest so many stay whatever their score; at most K.
    """
    num_slots = scores.shape[-1]
    if scores.is_cuda and scores.dtype != torch.float64:
        from leanthink.policies.select_kernel import MAX_SLOTS, select_in_order

        if num_slots <= MAX_SLOTS:
            return select_in_order(scores.flatten(0, -2), num_kept, window).view(*scores.shape[:-1], num_kept)
    ranked = scores.clone()
    ranked[..., max(0, num_slots - window) :] = torch.inf
    # Younger first, and a stable sort: that is what settles ties.
    by_rank = ranked.flip(-1).sort(dim=-1, descending=True, stable=True).indices
    return (num_slots - 1 - by_rank[..., :num_kept]).sort(dim=-1).values


def check_finite(finite: bool) -> None:
    """Raise LeanThinkError unless every score was finite."""
    if not finite:
        raise LeanThinkError(
            "a policy returned a score that is NaN or infinite: no slot can be ranked by it. The model's or the "
            "predictor's numbers have overflowed; run the model in bfloat16 or float32 and check the predictor"
        )


def _checked_pinned(scores: Tensor, pinned: Tensor) -> int:
    """The number of pinned slots of a row, after checking all rows and all scores in one host sync."""
    counts = pinned.sum(dim=-1)
    finite, fewest, most = torch.stack([torch.isfinite(scores).all().long(), counts.min(), counts.max()]).tolist()
    check_finite(bool(finite))
    assert fewest == most, f"rows pin between {fewest} and {most} slots; all must pin the same number"
    return int(most)
