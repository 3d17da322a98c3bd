"""The default policy: keep what is predicted to be still read, from at least as far away as it already is."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from leanthink.policies.policy import OUTRANKS, ImportancePredictor, Policy, Slots, Target, check_target, narrow_dtype
from leanthink.utils.constants import constant
from leanthink.utils.errors import UsageError, unknown

Rule = Literal["floor", "ceil"]

FAR = 2**62  # an age that no slot reaches
MAX_AT_ONCE = 16  # tokens of a row: the predictor's weights are read once for all of them


@dataclass(frozen=True, kw_only=True, repr=False)
class Horizon(Policy):
    """Rank a thought token by how strongly it will still be read from its own distance or further.

    The predictor gives each token, in each of its index sets, one number for each horizon d_0 < d_1 < ...: how much it
    will be read by tokens at least d_h away (`leanthink.importance.labels`). A slot of age a is ranked by the number of
    the largest d_h <= a: a smaller horizon would count readings that are past, a larger one would miss those that come
    before it. A slot younger than d_0 belongs to the local window and outranks all others.

    The settings other than the predictor take a part away, for ablations.

    Attributes:
        predictor: fitted to the target "horizon".
        rule: "ceil" ranks by the smallest d_h >= a instead, and by the largest of all beyond that.
        only: one of the horizons, whose number then ranks a slot of any age; None: all of them.
        local: False: only slots that have no token scores yet outrank all others.
    """

    name: ClassVar[str] = "horizon"
    target: ClassVar[Target | None] = "horizon"
    predictor: ImportancePredictor = field()
    rule: Rule = "floor"
    only: int | None = None
    local: bool = True

    def __post_init__(self) -> None:
        check_target(self, self.predictor)
        horizons = self.predictor.horizons
        if not horizons or horizons[0] < 1 or any(near >= far for near, far in pairwise(horizons)):
            raise UsageError(f"Horizon: the predictor's horizons must ascend from at least 1, got {horizons}")
        if self.predictor.offsets[-1] >= horizons[0]:
            raise UsageError(
                f"Horizon: the predictor's offsets {self.predictor.offsets} must stay below its first horizon, "
                f"{horizons[0]}: a slot is ranked by its token's scores from that age on"
            )
        check_rule(self.rule)
        if self.only is not None and self.only not in horizons:
            raise unknown("horizon", self.only, horizons)

    def __repr__(self) -> str:
        settings = f"rule={self.rule!r}, only={self.only!r}, local={self.local!r}"
        return f"Horizon(horizons={self.predictor.horizons}, {settings})"

    @property
    def num_sets(self) -> int:
        """The predictor's."""
        return self.predictor.num_sets

    @property
    def score_dims(self) -> int:
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
        """As many tokens as can wait until the oldest of them leaves the local window, at most MAX_AT_ONCE."""
        return min(MAX_AT_ONCE, self.predictor.horizons[0] - self.offsets[-1]) if self.local else 1

    @property
    def score_dtype(self) -> torch.dtype:
        """The predictor's own, if that is narrower than float32: nothing that it says is lost."""
        return narrow_dtype(self.predictor)

    def score_tokens(self, hidden_states_NWF: Tensor) -> Tensor:
        """The predicted importance of each token in each index set at each horizon, [N, X C]."""
        return self.predictor(hidden_states_NWF).float()

    def score_consecutive(self, hidden_states_TRF: Tensor) -> Tensor:
        """The same for consecutive tokens, [T - offsets[-1], R, X C], at once if the predictor can."""
        at_once = getattr(self.predictor, "score_consecutive", None)
        overridden = type(self).score_tokens is not Horizon.score_tokens  # by a subclass, which then means it here too
        if at_once is None or overridden:
            return super().score_consecutive(hidden_states_TRF)
        scores_SRC: Tensor = at_once(hidden_states_TRF).float()
        return scores_SRC

    def score(self, slots: Slots) -> Tensor:
        """The token's score for the horizon that the slot's age calls for, of the shape of `slots.ages`."""
        assert slots.token_scores is not None, "the cache holds the token scores of a policy with score_dims"
        horizons = self.predictor.horizons
        younger_than = horizons[0] if self.local else self.offsets[-1]
        if slots.ages.is_cuda and self.only is None and slots.token_scores.dtype == torch.float32:
            from leanthink.policies.horizon_kernel import horizon_scores

            bounds = index_bounds(horizons, self.rule, slots.ages.device)
            right = self.rule == "floor"
            return horizon_scores(slots.ages, slots.token_scores, bounds, younger_than, OUTRANKS, right=right)
        if self.only is None:
            index = horizon_index(slots.ages, horizons, self.rule)
        else:
            index = torch.full_like(slots.ages, horizons.index(self.only))
        score = slots.token_scores.gather(-1, index[..., None]).squeeze(-1)
        return torch.where(slots.ages < younger_than, OUTRANKS - slots.ages, score)


def horizon_index(ages: Tensor, horizons: tuple[int, ...], rule: Rule) -> Tensor:
    """Index of the horizon that each age calls for: the largest that it has reached, or the smallest to come."""
    bounds = index_bounds(horizons, rule, ages.device)
    return torch.bucketize(ages.contiguous(), bounds, right=rule == "floor")


def index_bounds(horizons: tuple[int, ...], rule: Rule, device: torch.device) -> Tensor:
    """The index of an age's horizon is how many of these it has reached under "floor", or passed under "ceil"."""
    return constant((*(horizons[1:] if rule == "floor" else horizons[:-1]), FAR), device)


def check_rule(rule: str) -> None:
    """Refuse what is neither floor nor ceil (UsageError)."""
    if rule not in ("floor", "ceil"):
        raise unknown("rule", rule, ("floor", "ceil"))
