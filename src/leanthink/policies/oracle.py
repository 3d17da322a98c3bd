"""The policy that knows the future: `horizon` with a recorded request's own labels instead of a prediction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from leanthink.policies.horizon import Rule, check_rule, horizon_index
from leanthink.policies.policy import OUTRANKS, Policy, Slots
from leanthink.utils.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Oracle(Policy):
    """Rank a thought token by the attention that it did get, from its own distance or further, in a recorded run.

    No method: the same request was run with the full cache first. An upper bound for `horizon` while the repetition
    writes what was recorded; once it takes another turn, the labels are those of another text. One object serves one
    request, with the sampling it was recorded with (`leanthink.importance.oracle` makes them). Tokens after the end of
    the recorded thought rank as never read.

    Attributes:
        labels_XTC: label of each thought token at each horizon, for each index set (see
            `leanthink.importance.labels.Labels`); of one set also [T, C].
        distances: the horizons, in tokens, ascending, one for each column.
        rule: as of `Horizon`.
        local: whether slots younger than the first horizon outrank all others.
    """

    name: ClassVar[str] = "oracle"
    labelled: ClassVar[bool] = True
    labels_XTC: Tensor = field(repr=False)
    distances: tuple[int, ...]
    rule: Rule = "floor"
    local: bool = True

    def __post_init__(self) -> None:
        check_rule(self.rule)
        shape = self.labels_XTC.shape
        if len(shape) not in (2, 3) or shape[-1] != len(self.distances) or 0 in shape:
            raise UsageError(
                f"Oracle: labels are [thought tokens, horizons], at least [1, {len(self.distances)}], or one such "
                f"table for each index set, got {list(shape)}"
            )

    @property
    def num_sets(self) -> int:
        """One for each table of labels."""
        return len(self.labels_XTC) if self.labels_XTC.dim() == 3 else 1

    def score(self, slots: Slots) -> Tensor:
        """The label of the horizon that the slot's age calls for, of the shape of `slots.ages`."""
        labels_XTC = self.labels_XTC.to(slots.ages.device).view(self.num_sets, *self.labels_XTC.shape[-2:])
        ages_RXS, positions_RXS = (of.view(len(of), self.num_sets, -1) for of in (slots.ages, slots.positions))
        index_RXS = positions_RXS - slots.prompt_tokens[:, None, None]
        known_RXS = index_RXS < labels_XTC.shape[1]
        set_X1 = torch.arange(self.num_sets, device=index_RXS.device)[:, None]
        horizon_RXS = horizon_index(ages_RXS, self.distances, self.rule)
        label_RXS = labels_XTC[set_X1, index_RXS.where(known_RXS, 0), horizon_RXS]
        score_RXS = label_RXS.float().masked_fill(~known_RXS, -1.0)
        if self.local:
            score_RXS = torch.where(ages_RXS < self.distances[0], OUTRANKS - ages_RXS, score_RXS)
        return score_RXS.view(slots.ages.shape)
