"""The policy of DynTS (arXiv 2601.18383): keep what the answer is predicted to attend to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from leanthink.policies.policy import ImportancePredictor, Policy, Slots, Target, check_target, narrow_dtype


@dataclass(frozen=True, kw_only=True)
class DynTS(Policy):
    """Rank a thought token by the attention that the answer will pay it, predicted once, when it was written.

    As in the paper, one index set serves all layers and heads, and prompt and answer are pinned. They are pinned by
    the cache and not by an infinite score inside the quota, so that a long prompt cannot use the budget up.
    """

    name: ClassVar[str] = "dynts"
    target: ClassVar[Target | None] = "answer"
    predictor: ImportancePredictor = field(repr=False)

    def __post_init__(self) -> None:
        check_target(self, self.predictor)

    @property
    def score_dims(self) -> int:
        """One: the predicted importance."""
        return 1

    @property
    def score_dtype(self) -> torch.dtype:
        """The predictor's own, if that is narrower than float32: nothing that it says is lost."""
        return narrow_dtype(self.predictor)

    def score_tokens(self, hidden_states_NWF: Tensor) -> Tensor:
        """The predicted importance of each token, [N, 1]."""
        return self.predictor(hidden_states_NWF).float()

    def score(self, slots: Slots) -> Tensor:
        """The token's score, whatever the slot's age, [R, S]."""
        assert slots.token_scores is not None, "the cache holds the token scores of a policy with score_dims"
        return slots.token_scores[..., 0]
