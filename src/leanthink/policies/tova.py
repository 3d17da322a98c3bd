"""The policy of TOVA (arXiv 2401.06104): keep, per layer, what the last query attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from leanthink.policies.observed import observed_attention
from leanthink.policies.policy import Policy, Slots


@dataclass(frozen=True, kw_only=True)
class TOVA(Policy):
    """Rank a slot by the attention that the youngest token pays it, in the mean over the heads of the layer.

    One set serves all heads of a layer, as in the paper's main form (section 3). The paper drops one slot at every
    step and has no window; here a whole interval is ranked by the query of its last token.

    Attributes:
        pins_prompt: False: as published.
    """

    name: ClassVar[str] = "tova"
    per_head: ClassVar[bool] = True
    pins_prompt: bool = True

    @property
    def num_queries(self) -> int:
        """The last one."""
        return 1

    def score(self, slots: Slots) -> Tensor:
        """The same for all heads, [R, H, S]."""
        attention_RHGWS = observed_attention(slots, 1)
        return attention_RHGWS.mean(dim=(1, 2, 3))[:, None].expand(slots.ages.shape)
