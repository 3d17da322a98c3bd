"""What a cache has to remember beside keys and values, added up over policies: the one place that reads it off them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import torch

from leanthink.models.kv_shape import KVShape
from leanthink.policies import Policy
from leanthink.utils.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class CacheRequirements:
    """What several policies require of a cache together; what one requires is said by its members, see `Policy`.

    Attributes:
        score_dims: numbers beside each slot, those of all index sets of all policies.
        score_dtype: in which they are held.
        queries: of how many of the latest tokens each layer's queries are kept.
        hidden_states: of how many of the latest tokens the hidden states are kept.
        per_head: whether any policy keeps different slots in different layers and heads.
        token_ids: whether the token of each slot is kept.
        accumulated_attention: whether the attention that each slot gets is added up, by layer and head.
        prompt_attention: whether that begins with the prompt's own queries.
    """

    score_dims: int = 0
    score_dtype: torch.dtype = torch.float32
    queries: int = 0
    hidden_states: int = 0
    per_head: bool = False
    token_ids: bool = False
    accumulated_attention: bool = False
    prompt_attention: bool = False

    @classmethod
    def of(cls, policy: Policy) -> CacheRequirements:
        """What this policy alone requires."""
        return cls(
            score_dims=policy.num_sets * policy.score_dims,
            score_dtype=policy.score_dtype,
            queries=policy.num_queries,
            hidden_states=policy.offsets[-1] + policy.stride if policy.score_dims else 0,
            per_head=not policy.is_shared,
            token_ids=bool(policy.texts),
            accumulated_attention=policy.accumulates,
            prompt_attention=policy.accumulates and not policy.pins_prompt,
        )

    def behind(self, others: CacheRequirements) -> CacheRequirements:
        """The same with its score dimensions behind those of others."""
        return replace(self, score_dims=others.score_dims + self.score_dims, score_dtype=self._score_dtype(others))

    def joined(self, other: CacheRequirements) -> CacheRequirements:
        """What serves both: the larger number of each, and whatever either requires."""
        names = [field.name for field in fields(self) if field.name != "score_dtype"]
        largest = {name: max(getattr(self, name), getattr(other, name)) for name in names}
        return CacheRequirements(**largest, score_dtype=self._score_dtype(other))

    def _score_dtype(self, other: CacheRequirements) -> torch.dtype:
        """One that holds the token scores of both."""
        if not (self.score_dims and other.score_dims):
            return self.score_dtype if self.score_dims else other.score_dtype
        return torch.promote_types(self.score_dtype, other.score_dtype)

    def bytes_per_slot(self, shape: KVShape) -> int:
        """Bytes of what is kept of each slot beside its keys and values."""
        heads = shape.layers * shape.kv_heads
        positions = torch.int64.itemsize * (heads if self.per_head else 1)
        attention = torch.float32.itemsize * heads * self.accumulated_attention
        scores = self.score_dims * self.score_dtype.itemsize
        return positions + scores + torch.int64.itemsize * self.token_ids + attention


def bytes_per_slot(shape: KVShape, dtype: torch.dtype, policies: Iterable[Policy]) -> int:
    """Bytes of one slot in all: its keys and values, and what these policies require beside them."""
    requirements = CacheRequirements()
    for policy in policies:
        requirements = requirements.joined(CacheRequirements.of(policy).behind(requirements))
    return shape.bytes_per_slot(dtype) + requirements.bytes_per_slot(shape)


def check_requirements(policy: Policy) -> None:
    """Refuse a policy that requires what does not go together (UsageError)."""
    by_queries = policy.num_queries or policy.accumulates
    by_scores = policy.score_dims or policy.num_sets > 1
    if (
        (by_scores and policy.per_head)
        or (by_queries and not policy.per_head)
        or (policy.texts and not policy.is_shared)
    ):
        raise UsageError(
            f"policy {policy.name!r} has per_head={policy.per_head}, score_dims={policy.score_dims}, "
            f"texts={policy.texts}, num_sets={policy.num_sets}, num_queries={policy.num_queries} and "
            f"accumulates={policy.accumulates}: token ids are shown to policies with one set, token scores to those "
            "with one or several that are not per head, queries and attention to policies per head"
        )
    if policy.accumulates and not policy.num_queries:
        raise UsageError(f"policy {policy.name!r} accumulates attention of num_queries=0 tokens: give at least 1")
