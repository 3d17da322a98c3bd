"""What a worker knows of one request with a budget: which thought tokens it holds, and their scores.

S thought slots   T tokens fed together   W tokens that wait   F state size   C token scores per slot   K kept slots
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leanthink.engine.hidden_states import MAX_GATHERED_BYTES
from leanthink.integrations.vllm.lengths import Lengths, Piece
from leanthink.integrations.vllm.thought import Watch
from leanthink.policies import Policy, Slots
from leanthink.policies.budget import Budget, select


class Row:
    """One request on one worker. All that decides which slots stay is the same on every tensor-parallel rank.

    It follows from the tokens, the seed and the states, and states are the same on all ranks: each holds the whole
    hidden vector after the sum over ranks that ends a layer. What differs, keys and values of the rank's own heads, no
    policy is shown.

    Args:
        prompt_tokens: of the request.
        budget: of its thought.
        policy: ranks its slots.
        seed: of the request, for policies that draw.
        watch: finds its `</think>`.
        output_ids: its tokens so far: a list that grows.
    """

    def __init__(
        self,
        *,
        prompt_tokens: int,
        budget: Budget,
        policy: Policy,
        seed: int,
        watch: Watch,
        output_ids: Sequence[int],
    ) -> None:
        self.prompt_tokens, self.budget, self.policy, self.seed, self.watch = prompt_tokens, budget, policy, seed, watch
        self.output_ids = output_ids
        self.restart()

    def restart(self) -> None:
        """Nothing of it is held."""
        self.logical = 0  # tokens fed
        self.thought = 0  # thought slots held
        self.positions_S = torch.zeros(self.budget.max_thought_slots, dtype=torch.int64)
        self.scores_SC: Tensor | None = None
        self.waiting: list[Tensor] = []  # states [T, F] of the youngest thought tokens, which have no score yet
        self.num_waiting = 0

    @property
    def lengths(self) -> Lengths:
        """As far as is known now."""
        answer_at = self.watch.answer_at(self.output_ids)
        return Lengths(prompt=self.prompt_tokens, budget=self.budget, answer_at=answer_at)

    @property
    def physical(self) -> int:
        """Slots held, prompt and answer included."""
        return min(self.logical, self.prompt_tokens) + self.thought + max(0, self.logical - self.lengths.answer_at)

    def pieces(self, logical: int, tokens: int) -> list[Piece]:
        """How to feed it the `tokens` tokens from position `logical` on.

        A request that was preempted begins again; the tokens that it had generated are fed a second time, cut where
        evictions fell, and so are evicted as they were.
        """
        if logical != self.logical:
            assert logical < self.logical or self.logical == 0, f"{logical} after {self.logical} tokens"
            assert logical <= self.prompt_tokens, f"{logical} of {self.prompt_tokens} prompt tokens"
            self.restart()
            self.logical = logical  # so much of the prompt lies in blocks that it shares
        return self.lengths.pieces(logical, tokens)

    def note(self, states_TF: Tensor | None, tokens: int) -> None:
        """The next tokens are fed: remember those of the thought, and score those whose followers are all there."""
        answer_at = self.lengths.answer_at
        first, last = max(self.logical, self.prompt_tokens), min(self.logical + tokens, answer_at)
        if last > first:
            held = slice(self.thought, self.thought + last - first)
            self.positions_S[held] = torch.arange(first, last)
            self.thought += last - first
            if states_TF is not None:
                self.waiting.append(states_TF[first - self.logical : last - self.logical])
                self.num_waiting += last - first
        self.logical += tokens
        if self.num_waiting - self.policy.offsets[-1] >= self.policy.stride:
            self._score_tokens()

    def _score_tokens(self) -> None:
        """Score the tokens that have all their followers."""
        late, states_WF = self.policy.offsets[-1], torch.cat(self.waiting)
        ready = len(states_WF) - late
        size = max(1, MAX_GATHERED_BYTES // states_WF[0].nbytes - late)
        parts_W1F = (states_WF[start : start + size + late, None] for start in range(0, ready, size))
        scores_TC = torch.cat([self.policy.score_consecutive(part_W1F)[:, 0] for part_W1F in parts_W1F]).float()
        if self.scores_SC is None:
            self.scores_SC = scores_TC.new_zeros(len(self.positions_S), scores_TC.shape[1])
        # Counted from the end of the thought so far; some of them may be gone already.
        oldest = min(self.logical, self.lengths.answer_at) - len(states_WF)
        place_S = self.positions_S[: self.thought] - oldest
        slots = ((place_S >= 0) & (place_S < ready)).nonzero()[:, 0]
        self.scores_SC[slots] = scores_TC[place_S[slots]]
        self.waiting, self.num_waiting = [states_WF[ready:].clone()], late

    def evict(self) -> Tensor:
        """Choose the thought slots that stay, forget the others, and return their old places: ascending, [K].

        Slots that have no score yet are younger than any that a policy looks at the score of (see `Policy.stride`).
        """
        held = self.thought
        ages_1S = (self.logical - 1 - self.positions_S[:held])[None]
        slots = Slots(
            ages=ages_1S,
            positions=self.positions_S[None, :held],
            next_position=torch.tensor([self.logical]),
            prompt_tokens=torch.tensor([self.prompt_tokens]),
            seeds=torch.tensor([self.seed]),
            token_scores=self._token_scores(held) if self.policy.score_dims else None,
        )
        pinned_1S = torch.zeros_like(ages_1S, dtype=torch.bool)  # prompt and answer are not among those shown
        kept_K = select(self.policy.score(slots), ages_1S, pinned_1S, self.budget)[0]
        self.thought = len(kept_K)
        self.positions_S[: self.thought] = self.positions_S[kept_K]
        if self.scores_SC is not None:
            self.scores_SC[: self.thought] = self.scores_SC[kept_K]
        return kept_K

    def _token_scores(self, held: int) -> Tensor:
        """[1, held, C]; zeros, which no policy looks at, where nothing is scored yet."""
        if self.scores_SC is None:
            return torch.zeros(1, held, self.policy.score_dims)
        return self.scores_SC[None, :held]
