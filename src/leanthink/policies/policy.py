"""What a policy is, what it requires and what it is shown: it ranks thought slots; it never counts and never writes.

Shape legend: R rows (requests, or for policies per head the layers of requests); S thought slots, oldest first; H kv
heads; G query heads of one kv head; X index sets of a granularity (1 for "model", L for "layer", L H for "head", layer
by layer; L layers); W latest queries, oldest first, or tokens seen by a predictor; D head width; C score dimensions of
a token; N tokens; T consecutive tokens of each row; F hidden state size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from leanthink.utils.errors import UsageError

Target = Literal["answer", "horizon"]
Granularity = Literal["model", "layer", "head"]
GRANULARITIES: tuple[Granularity, ...] = ("model", "layer", "head")
# Above any score, and small enough that float32 tells OUTRANKS - age from OUTRANKS - age - 1: for slots too young to
# be ranked, of which the youngest comes first.
OUTRANKS = 2.0**23


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The thought slots of some requests, read-only. Tensors of one instance live on one device.

    A policy that ranks by token scores sees ages, positions and these, of all of its index sets at once. One that is
    `per_head` sees keys, values and queries instead, and each layer of a request is a row of its own: it may be asked
    of one layer, of all, or of any part, and what it says of a row must not depend on what other rows are there.

    Attributes:
        ages: tokens since the slot was written (next_position - 1 - position), int64 [R, S] for one
            index set, [R, X, S] for one in each layer or head, [R, H, S] for policies per head.
        positions: logical index in the sequence, prompt included, never renumbered; same shape as `ages`.
        next_position: position that the next token will get, int64 [R].
        prompt_tokens: length of the prompt, int64 [R]; thought positions start here.
        seeds: the request's seed, int64 [R].
        token_scores: what `Policy.score_tokens` returned for the slot's token and set, float32 [R, S, C] or
            [R, X, S, C].
        token_ids: of the slot's token, int64 [R, S], for policies with `texts`.
        layer: index of the row's layer, int64 [R], for policies per head.
        keys: [R, H, S, D], rotated to their own positions.
        values: [R, H, S, D].
        queries: of the latest W tokens, the youngest last, rotated, zeros for tokens of the prompt: [R, H, G, W, D].
        scaling: what the model multiplies query-key products by.
        pinned_log_sums: for each of these queries the logarithm of the sum of exp(scaled product) over the slots that
            are not shown, [R, H, G, W], so that softmax over all that the query saw can be had; None: there are none.
        accumulated_attention: attention that the slot got so far from every query of every query head, added up,
            float32 [R, H, S], for policies with `accumulates`.
    """

    ages: Tensor
    positions: Tensor
    next_position: Tensor
    prompt_tokens: Tensor
    seeds: Tensor
    token_scores: Tensor | None = None
    token_ids: Tensor | None = None
    layer: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    queries: Tensor | None = None
    scaling: float | None = None
    pinned_log_sums: Tensor | None = None
    accumulated_attention: Tensor | None = None

    def __post_init__(self) -> None:
        shape, rows = self.ages.shape, self.ages.shape[:1]
        assert self.positions.shape == shape, (self.positions.shape, shape)
        assert self.next_position.shape == self.prompt_tokens.shape == self.seeds.shape == rows, "one number per row"
        assert len(shape) == 3 or (len(shape) == 2 and self.layer is None), "[R, S], [R, X, S], or [R, H, S] of layers"
        assert self.layer is None or self.layer.shape == rows, self.layer
        assert self.token_scores is None or self.token_scores.shape[:-1] == shape, self.token_scores
        assert self.keys is None or self.keys.shape[:-1] == shape, self.keys
        assert self.values is None or self.values.shape[:-1] == shape, self.values
        assert self.queries is None or self.queries.shape[:2] == shape[:2], self.queries
        for of_slots in (self.token_ids, self.accumulated_attention):
            assert of_slots is None or of_slots.shape == shape, of_slots
        sums = self.pinned_log_sums
        assert sums is None or (self.queries is not None and sums.shape == self.queries.shape[:-1]), sums


class ImportancePredictor(Protocol):
    """A fitted predictor as policies use it: hidden states of tokens in, ranking scores out.

    It may have `score_consecutive`, which gives what `Policy.score_consecutive` does, of any float dtype.
    """

    @property
    def target(self) -> str:
        """What it was fitted to: "answer" or "horizon"."""

    @property
    def horizons(self) -> tuple[int, ...]:
        """Reading distances in tokens, ascending, one per score dimension; empty for "answer"."""

    @property
    def offsets(self) -> tuple[int, ...]:
        """Which tokens it sees of each: 0 the token itself, o the one written o tokens later; ascending from 0."""

    @property
    def num_sets(self) -> int:
        """X: for how many index sets it scores, 1 for all layers and heads together."""

    def __call__(self, hidden_states_NWF: Tensor, /) -> Tensor:
        """Scores [N, X C], those of one index set side by side; higher is more important."""


class Policy(ABC):
    """Ranks thought slots. Subclass it, give `name` and `score`, and override what else the policy requires.

    What a policy requires is said here and nowhere else: the engine reads these members, adds up what the policies of
    its requests require (`leanthink.engine.cache_requirements`), and has the cache remember it.

    Attributes:
        name: what users write.
        per_head: True: it ranks the slots of each layer and kv head by that layer's keys, values and queries.
        target: what its importance predictor must have been fitted to; None when it takes no predictor.
        accumulates: whether it is shown `Slots.accumulated_attention`. Queries wait, `num_queries` of them at most,
            until their attention is added: that is exact, because nothing is evicted meanwhile.
        texts: tokens with one of these texts mean something to it. It takes their ids as `separator_ids` and is shown
            `Slots.token_ids`.
        labelled: whether it takes the labels of one recorded request.
    """

    name: ClassVar[str]
    per_head: ClassVar[bool] = False
    target: ClassVar[Target | None] = None
    accumulates: ClassVar[bool] = False
    texts: ClassVar[tuple[str, ...]] = ()
    labelled: ClassVar[bool] = False

    @property
    def pins_prompt(self) -> bool:
        """Whether prompt slots stay for ever, on top of the budget.

        Where they do not, they are ranked like any other slot and count in the budget: the terms on which most peers
        were published.
        """
        return True

    @property
    def num_queries(self) -> int:
        """How many of the latest queries of each layer `score` wants to see."""
        return 0

    @property
    def num_sets(self) -> int:
        """X: how many index sets it ranks by token scores: 1 for the whole model, one a layer, or one a kv head."""
        return 1

    @property
    def is_shared(self) -> bool:
        """Whether all layers and heads keep the same tokens."""
        return not self.per_head and self.num_sets == 1

    @property
    def score_dims(self) -> int:
        """C: how many numbers `score_tokens` gives each token for each index set; 0: it scores no tokens."""
        return 0

    @property
    def score_dtype(self) -> torch.dtype:
        """In which the cache holds what `score_tokens` gives: a narrower one than float32 takes less memory."""
        return torch.float32

    @property
    def horizons(self) -> tuple[int, ...]:
        """Reading distances in tokens, one for each score dimension; empty where these stand for something else."""
        return ()

    @property
    def offsets(self) -> tuple[int, ...]:
        """Which tokens `score_tokens` is shown of each, ascending from 0: the token itself and those so many later.

        A token is scored when the last of them is written; until then its scores mean nothing, and `score` must rank
        it above all that have theirs.
        """
        return (0,)

    @property
    def stride(self) -> int:
        """How many tokens of a row may be scored together, in every so many-th step only, at least 1.

        A token may thus have to wait for its scores until `stride` - 1 more tokens are written. Until then, too,
        `score` must rank it above all that have theirs, and the younger of two such tokens above the older.
        """
        return 1

    def score_tokens(self, hidden_states_NWF: Tensor) -> Tensor:
        """Numbers to store beside each token's slot, float32 [N, X C], from its hidden states (`engine.hidden_states`).

        Computed once, when the token is written; `score` is shown them as `Slots.token_scores`.
        """
        raise AssertionError(f"{self.name} scores no tokens: score_dims is {self.score_dims}")

    def score_consecutive(self, hidden_states_TRF: Tensor) -> Tensor:
        """`score_tokens` of those of T consecutive tokens, oldest first, that have all their followers among them.

        Override it where that takes less work than to score each token by itself, as here; the scores must be those of
        `score_tokens` up to rounding. It is asked where `stride` is above 1.

        Returns:
            float32 [T - offsets[-1], R, X C].
        """
        T, R, _ = hidden_states_TRF.shape
        scored = T - self.offsets[-1]
        parts = [hidden_states_TRF[offset : offset + scored] for offset in self.offsets]
        return self.score_tokens(torch.stack(parts, dim=2).flatten(0, 1)).view(scored, R, -1)

    @abstractmethod
    def score(self, slots: Slots) -> Tensor:
        """Importance of each slot, higher stays, floating point and finite.

        Shape of `slots.ages`. Row i depends on nothing of row j: of another request, or of another layer.
        """


def check_target(policy: Policy, predictor: ImportancePredictor) -> None:
    """Refuse a predictor that was fitted to something else than the policy ranks by (UsageError)."""
    if predictor.target != policy.target:
        raise UsageError(
            f"policy {policy.name!r} ranks by a predictor of target {policy.target!r}, but the given one has target "
            f"{predictor.target!r}: fit one with that target, or choose the policy that ranks by it"
        )


def narrow_dtype(predictor: ImportancePredictor) -> torch.dtype:
    """The dtype of a predictor's weights, and so of its scores, if all are bfloat16 or all float16; else float32."""
    dtypes = {weight.dtype for weight in predictor.parameters()} if isinstance(predictor, nn.Module) else set()
    return dtypes.pop() if dtypes in ({torch.bfloat16}, {torch.float16}) else torch.float32


def check_at_least(policy: str, minimum: int, **settings: int) -> None:
    """Refuse a setting that is not a whole number of at least `minimum` (UsageError)."""
    for name, given in settings.items():
        if isinstance(given, bool) or not isinstance(given, int) or given < minimum:
            raise UsageError(f"{policy}: {name} must be a whole number of at least {minimum}, got {given!r}")
