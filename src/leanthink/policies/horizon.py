"""The default policy: keep what is predicted to be still read, from at least as far away as it already is."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from leanthink.constants import constant
from leanthink.errors import UsageError
from leanthink.policies.policy import ImportancePredictor, Policy, Slots, Target, check_target

# Above any score of a predictor (they are logits), and small enough that float32 tells LOCAL - age from
# LOCAL - age - 1.
LOCAL = 2.0**23
MOST_AT_ONCE = 16  # tokens of a row: the predictor's weights are read once for all of them


@dataclass(frozen=True, kw_only=True, repr=False)
class Horizon(Policy):
    """Rank a thought token by how strongly it will still be read from its own distance or further.

    The predictor gives each token one number for each horizon d_0 < d_1 < ...: the largest attention that any
    later token, at least d_h away, will pay it in any layer and head. A slot of age a is ranked by the number of
    the largest d_h <= a: a smaller horizon would count readings that are past, a larger one would miss those that
    come before it. A slot younger than d_0 belongs to the local window and outranks all others.
    """

    name: ClassVar[str] = "horizon"
    target: ClassVar[Target | None] = "horizon"
    predictor: ImportancePredictor = field()

    def __post_init__(self) -> None:
        check_target(self, self.predictor)
        horizons = self.predictor.horizons
        if not horizons or horizons[0] < 1 or any(near >= far for near, far in pairwise(horizons)):
            raise UsageError(f"Horizon: the predictor's horizons must ascend from at least 1, got {horizons}")
        if self.predictor.offsets[-1] >= horizons[0]:
            raise UsageError(
                f"Horizon: the predictor's offsets {self.predictor.offsets} must stay below its first horizon, "
                f"{horizons[0]}: a slot is ranked by its stamp from that age on"
            )

    def __repr__(self) -> str:
        return f"Horizon(horizons={self.predictor.horizons})"

    @property
    def channels(self) -> int:
        """One for each horizon."""
        return len(self.predictor.horizons)

    @property
    def horizons(self) -> tuple[int, ...]:
        """The predictor's."""
        return self.predictor.horizons

    @property
    def offsets(self) -> tuple[int, ...]:
        """The predictor's; all of them are written before a slot leaves the local window."""
        return self.predictor.offsets

    @property
    def stride(self) -> int:
        """As many tokens as can wait until the oldest of them leaves the local window, at most MOST_AT_ONCE."""
        return min(MOST_AT_ONCE, self.predictor.horizons[0] - self.offsets[-1])

    def stamp(self, states_NWF: Tensor) -> Tensor:
        """The predicted importance of each token at each horizon, [N, C]."""
        return self.predictor(states_NWF).float()

    def score(self, slots: Slots) -> Tensor:
        """The stamp of the largest horizon that the slot's age has reached, [R, S]."""
        assert slots.stamps is not None, "the cache stamps every slot of a policy with channels"
        horizons_C = constant(self.predictor.horizons, slots.ages.device)
        reached_RS = (horizons_C <= slots.ages[..., None]).sum(dim=-1)
        score_RS = slots.stamps.gather(-1, (reached_RS - 1).clamp(min=0)[..., None]).squeeze(-1)
        return torch.where(reached_RS == 0, LOCAL - slots.ages, score_RS)
