"""The policy that knows the future: `horizon` with a recorded request's own labels instead of a prediction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from leanthink.errors import UsageError
from leanthink.policies.horizon import Rule, channel_at, check_rule
from leanthink.policies.policy import OUTRANKS, Policy, Slots


@dataclass(frozen=True, kw_only=True)
class Oracle(Policy):
    """Rank a thought token by the attention that it did get, from its own distance or further, in a recorded run.

    An upper bound for `horizon` and not a method: the same request was run with the full cache first. One object
    serves one request, with the sampling it was recorded with (`leanthink.importance.oracle` makes them). Tokens after
    the end of the recorded thought, where the request took another turn, rank as never read.

    Attributes:
        labels_TC: label of each thought token at each horizon, columns 1 and later of
            `leanthink.importance.labels.Labels`.
        distances: the horizons, in tokens, ascending, one for each column.
        rule: as of `Horizon`.
        local: whether slots younger than the first horizon outrank all others.
    """

    name: ClassVar[str] = "oracle"
    labelled: ClassVar[bool] = True
    labels_TC: Tensor = field(repr=False)
    distances: tuple[int, ...]
    rule: Rule = "floor"
    local: bool = True

    def __post_init__(self) -> None:
        check_rule(self.rule)
        if self.labels_TC.dim() != 2 or self.labels_TC.shape[1] != len(self.distances) or not len(self.labels_TC):
            raise UsageError(
                f"Oracle: labels are [thought tokens, horizons], at least [1, {len(self.distances)}], "
                f"got {list(self.labels_TC.shape)}"
            )

    def score(self, slots: Slots) -> Tensor:
        """The label of the horizon that the slot's age calls for, [R, S]."""
        index_RS = slots.positions - slots.prompt_tokens[:, None]
        known_RS = index_RS < len(self.labels_TC)
        labels_TC = self.labels_TC.to(slots.ages.device)
        label_RS = labels_TC[index_RS.where(known_RS, 0), channel_at(slots.ages, self.distances, self.rule)]
        score_RS = label_RS.float().masked_fill(~known_RS, -1.0)
        if not self.local:
            return score_RS
        return torch.where(slots.ages < self.distances[0], OUTRANKS - slots.ages, score_RS)
