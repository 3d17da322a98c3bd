"""The policy of SepLLM (arXiv 2412.12094): keep separators, which sum their segments up, and the youngest tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from leanthink.policies.policy import OUTRANKS, Policy, Slots, check_at_least
from leanthink.utils.constants import constant
from leanthink.utils.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class SepLLM(Policy):
    """Keep the first tokens of the sequence, then separators, then whatever is youngest (section 3).

    One set serves all layers and heads. As in the paper's setting without training, no number is set for the
    separators; if they outgrow the budget the youngest stay.

    Attributes:
        separator_ids: of the tokenizer's tokens, those that separate.
        num_sinks: first tokens of the sequence; without effect while the prompt is pinned.
        pins_prompt: False: as published.
    """

    name: ClassVar[str] = "sepllm"
    texts: ClassVar[tuple[str, ...]] = (".", ",", "?", "!", ";", ":", " ", "\t", "\n")
    separator_ids: tuple[int, ...]
    num_sinks: int = 4
    pins_prompt: bool = True

    def __post_init__(self) -> None:
        check_at_least("SepLLM", 0, num_sinks=self.num_sinks)
        if not self.separator_ids:
            raise UsageError(f"SepLLM: no token separates: give separator_ids, such as those of {self.texts}")

    def score(self, slots: Slots) -> Tensor:
        """Minus the age; separators above all other tokens, and sinks above those: [R, S]."""
        assert slots.token_ids is not None, "the cache keeps the token ids for a policy with texts"
        separates_RS = torch.isin(slots.token_ids, constant(self.separator_ids, slots.ages.device))
        score_RS = torch.where(separates_RS, OUTRANKS / 2 - slots.ages, -slots.ages.float())
        return torch.where(slots.positions < self.num_sinks, OUTRANKS - slots.positions, score_RS)


def ids_of(texts: tuple[str, ...], tokenizer: Any) -> tuple[int, ...]:
    """Ids of the tokens that decode to one of these texts."""
    ids = range(len(tokenizer))
    decoded = tokenizer.batch_decode([[token_id] for token_id in ids])
    return tuple(token_id for token_id, text in zip(ids, decoded, strict=True) if text in texts)
