"""The policy of SnapKV (arXiv 2404.14469) in its decoding form: keep, per head, what recent queries attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

from leanthink.errors import UsageError
from leanthink.policies.policy import Policy, Slots


@dataclass(frozen=True, kw_only=True)
class SnapKV(Policy):
    """Rank a thought slot by the attention of the last `observation` queries, pooled over its neighbours.

    The paper compresses a prompt once, after the prefill. Like the adaptation in R-KV's public code this one ranks
    what was generated, again at every eviction. It differs from both in four points: prompt slots are pinned, so
    the softmax runs over thought slots only; the slots that always stay are the budget's window and not the
    observing queries' own, which are ranked like any other (a query votes on slots at least as old as itself);
    the query heads of a kv head vote by the mean of their attention, where R-KV takes the maximum of their logits;
    and the pool covers all thought slots.

    Attributes:
        observation: how many of the latest queries vote.
        kernel: slots, an odd number, over which the maximum is taken so that a kept token brings its neighbours.
    """

    name: ClassVar[str] = "snapkv"
    per_head: ClassVar[bool] = True
    observation: int = 8
    kernel: int = 7

    def __post_init__(self) -> None:
        if self.observation < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise UsageError(f"SnapKV: observation must be at least 1 and kernel odd and at least 1, got {self}")

    @property
    def num_queries(self) -> int:
        """The observation window."""
        return self.observation

    def score(self, slots: Slots) -> Tensor:
        """Mean attention over queries and the group's query heads, then max-pooled along the slots, [R, H, S]."""
        assert slots.keys is not None, "a policy per head sees the keys of its layer"
        assert slots.queries is not None, "the cache keeps the latest queries of a policy with num_queries"
        assert slots.scaling is not None, "queries come with the scale of their product with keys"
        queries_RHGWD = slots.queries[..., -self.observation :, :].float()
        num_queries = queries_RHGWD.shape[3]
        # Row by row: a batched product may round differently for another number of rows, and the score of a
        # request must not depend on its neighbours.
        rows = zip(queries_RHGWD.flatten(2, 3), slots.keys.float(), strict=True)
        logits_RHQS = torch.stack([queries_HQD @ keys_HSD.mT for queries_HQD, keys_HSD in rows]) * slots.scaling
        logits_RHGWS = logits_RHQS.view(*queries_RHGWD.shape[:4], -1)

        query_ages_W1 = torch.arange(num_queries - 1, -1, -1, device=slots.ages.device)[:, None]
        unseen_RH1WS = slots.ages[:, :, None, None, :] < query_ages_W1
        logits_RHGWS = logits_RHGWS.masked_fill(unseen_RH1WS, torch.finfo(torch.float32).min)
        # A query older than every slot sees none of them: its uniform softmax must not vote.
        attention_RHGWS = logits_RHGWS.softmax(dim=-1).masked_fill(unseen_RH1WS, 0.0)
        votes_RHS = attention_RHGWS.mean(dim=(2, 3))
        return max_pool1d(votes_RHS, self.kernel, stride=1, padding=self.kernel // 2)
