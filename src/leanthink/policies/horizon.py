"""The default policy: keep what is predicted to be still read, from at least as far away as it already is."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from leanthink.errors import UsageError
from leanthink.policies.policy import ImportancePredictor, Policy, Slots, Target, check_target

# Above any score of a predictor (they are logits), and small enough that float32 tells LOCAL - age from
# LOCAL - age - 1.
LOCAL = 2.0**23


@dataclass(frozen=True, kw_only=True, repr=False)
class Horizon(Policy):
    """Rank a thought token by how strongly it will still be read from its own distance or further.

    The predictor gives each token one number for each horizon d_0 < d_1 < ...: the largest attention that any
    later token, at least d_h away, will pay it in any layer and head. A slot of age a is ranked by the number of
    the largest d_h <= a: a smaller horizon would count readings that are past, a larger one would miss those that
    come before it. A slot younger than d_0 belongs to the local window and outranks all others.

    What is read is often a few tokens long, a number say, and one lost digit spoils it. So a slot is ranked no lower
    than its neighbours up to `reach` tokens away, less `penalty` (in logits) for each token of the distance.
    """

    name: ClassVar[str] = "horizon"
    target: ClassVar[Target | None] = "horizon"
    predictor: ImportancePredictor = field()
    reach: int = 2
    penalty: float = 1.0

    def __post_init__(self) -> None:
        check_target(self, self.predictor)
        horizons = self.predictor.horizons
        if not horizons or horizons[0] < 1 or any(near >= far for near, far in pairwise(horizons)):
            raise UsageError(f"Horizon: the predictor's horizons must ascend from at least 1, got {horizons}")
        if self.reach < 0 or self.penalty < 0:
            raise UsageError(f"Horizon: reach and penalty must be 0 or more, got {self.reach} and {self.penalty}")

    def __repr__(self) -> str:
        return f"Horizon(horizons={self.predictor.horizons}, reach={self.reach}, penalty={self.penalty})"

    @property
    def channels(self) -> int:
        """One for each horizon."""
        return len(self.predictor.horizons)

    def stamp(self, hidden_NM: Tensor) -> Tensor:
        """The predicted importance of each token at each horizon, [N, C]."""
        return self.predictor(hidden_NM).float()

    def score(self, slots: Slots) -> Tensor:
        """The stamp of the largest horizon that the slot's age has reached, [R, S]."""
        assert slots.stamps is not None, "the cache stamps every slot of a policy with channels"
        horizons_C = torch.tensor(self.predictor.horizons, device=slots.ages.device)
        reached_RS = (horizons_C <= slots.ages[..., None]).sum(dim=-1)
        score_RS = slots.stamps.gather(-1, (reached_RS - 1).clamp(min=0)[..., None]).squeeze(-1)
        young_RS = reached_RS == 0
        lifted_RS = self._lifted(score_RS.masked_fill(young_RS, -LOCAL), slots.positions)
        return torch.where(young_RS, LOCAL - slots.ages, lifted_RS)

    def _lifted(self, score_RS: Tensor, positions_RS: Tensor) -> Tensor:
        """Each score, or that of a near neighbour less the penalty, whichever is higher, [R, S]."""
        lifted_RS = score_RS.clone()
        for step in range(1, min(self.reach, score_RS.shape[1] - 1) + 1):
            gap_RS = positions_RS[:, step:] - positions_RS[:, :-step]
            for to, source in ((slice(step, None), slice(-step)), (slice(-step), slice(step, None))):
                offered_RS = (score_RS[:, source] - self.penalty * gap_RS).masked_fill(gap_RS > self.reach, -LOCAL)
                lifted_RS[:, to] = torch.maximum(lifted_RS[:, to], offered_RS)
        return lifted_RS
