"""What a worker knows of the requests with a budget: what is due when, and on the device the state of all at once.

A request is known by its index in vLLM's state of requests, as long as it runs. Whether something is *due* is a
function of lengths, which the host knows; whether a thought is over already, only the device knows: there a request
that answers is left alone.

R requests that fit   n rows of a batch   N tokens of a batch   g requests chosen among them   X index sets
S thought slots   C token scores of a slot   F state size   T tokens scored together   K kept slots
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from leanthink.engine.hidden_states import rows_scored_together
from leanthink.integrations.vllm.lengths import NEVER
from leanthink.integrations.vllm.v2.device_rows import (
    ENDLESS,
    NOBODY,
    PROMPT,
    SEED,
    SLOTS,
    Batch,
    DeviceRows,
    Due,
    Move,
    Sampled,
)
from leanthink.policies import Policy, Slots
from leanthink.policies.budget import Budget
from leanthink.utils.device import to_device

RANKED_AT_ONCE = 2**24  # slots of all sets: what an eviction of more of them needs would count in the peak of memory


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request with a budget."""

    prompt: int
    budget: Budget
    policy: Policy
    seed: int = 0
    answer_at: int = NEVER


def kind_for(device: torch.device) -> type[DeviceRows]:
    """What keeps the state of requests there."""
    if device.type != "cuda":
        return DeviceRows
    from leanthink.integrations.vllm.v2.fused_rows import FusedRows

    return FusedRows


class Rows:
    """All requests.

    Args:
        requests: R.
        most_slots: S, budget and interval together.
        policies: those that requests may name.
        state_size: F.
        dtype: of the states.
        device: where all lies.
    """

    def __init__(
        self,
        *,
        requests: int,
        most_slots: int,
        policies: Sequence[Policy],
        state_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.policies = list(policies)
        scoring = [policy for policy in policies if policy.score_dims]
        score_dtypes = {policy.score_dtype for policy in scoring}
        self.device = kind_for(device)(
            requests=requests,
            most_slots=most_slots,
            sets=max((policy.num_sets for policy in policies), default=1),
            channels=max((policy.score_dims for policy in scoring), default=0),
            memory=max((policy.stride + policy.offsets[-1] for policy in scoring), default=0),
            state_size=state_size,
            dtype=dtype,
            score_dtype=score_dtypes.pop() if len(score_dtypes) == 1 else torch.float32,
            device=device,
        )
        # On the host, and copied when a request enters; beside it the slots of its answer, its policy, and how many
        # of its tokens, counted from the end of its prompt, are scored.
        self._asked_5R = np.zeros((5, requests), dtype=np.int64)
        self._asked_5R.T[:] = NOBODY
        self._answer_R, self._policy_R, self._scored_R = (np.zeros(requests, dtype=np.int64) for _ in range(3))
        self._requests: list[Request | None] = [None] * requests
        self._entered: dict[int, int] = {}
        self.evictions = 0  # rows evicted so far, as the host counts them: those that answer too

    # What enters and leaves.

    def enter(self, index: int, request: Request | None) -> None:
        """This request sits there from now on; None: one without a budget."""
        self._requests[index], self._scored_R[index] = request, 0
        if request is None:
            self._asked_5R[:, index], self._answer_R[index], self._policy_R[index] = NOBODY, 0, -1
        else:
            budget = request.budget
            self._asked_5R[:, index] = (
                request.prompt,
                budget.slots,
                budget.eviction_interval,
                request.seed,
                budget.recent_window,
            )
            self._answer_R[index] = budget.max_answer_slots
            self._policy_R[index] = self.policies.index(request.policy)
        self._entered[index] = NEVER if request is None else request.answer_at

    def end_thought(self, index: int, answer_at: int) -> None:
        """The thought of the request that sits there is over: its answer begins at this position."""
        self._entered[index] = answer_at

    def flush(self) -> None:
        """Copy to the device what entered, and whose thoughts are over."""
        if not self._entered:
            return
        self.device.asked_5R.copy_(self._sent(self._asked_5R))
        indices, answers = self._sent(np.array([*self._entered.items()]).T)
        self.device.answer_at_R[indices] = answers
        self._entered.clear()

    def any_in(self, indices: np.ndarray) -> bool:
        """Whether any of these requests has a budget."""
        return bool((self._asked_5R[SLOTS, indices] < ENDLESS).any())

    # Before the forward.

    def longest(self, batch: Batch) -> int:
        """No row of the batch holds more slots when its tokens are fed."""
        prompt, slots, interval = self._asked_5R[:3, batch.indices]
        after = batch.before + batch.tokens
        most = prompt + slots + interval + self._answer_R[batch.indices] + batch.tokens
        return int(np.minimum(after, most).max())

    # After it.

    def note(
        self, batch: Batch, before_n: Tensor, held_n: Tensor, states_NF: Tensor | None, sampled: Sampled | None
    ) -> None:
        """Remember where each row's last token lies and, if any policy scores tokens, its states; score what is due.

        Args:
            batch: the step.
            before_n: tokens fed before it.
            held_n: slots held before it.
            states_NF: of all its tokens.
            sampled: what came of it; None where nothing can end a thought.
        """
        asked_5n = self._asked_5R[:, batch.indices]
        thinks = (batch.before >= asked_5n[PROMPT]) & (asked_5n[SLOTS] < ENDLESS)
        if (batch.tokens > 1).any():
            for row in np.flatnonzero(thinks & (batch.tokens > 1)).tolist():
                self._note_many(batch, row, held_n, states_NF)
        self.device.note(batch, before_n, held_n, states_NF, sampled)
        if states_NF is not None and self.device.states_RWF is not None:
            self._score_due(batch.indices, batch.before + batch.tokens, thinks & (batch.tokens == 1))

    def evict(self, batch: Batch, move: Move) -> None:
        """Evict where that is due now that the batch's tokens are fed."""
        prompt, slots, interval = self._asked_5R[:3, batch.indices]
        thought = batch.before + batch.tokens - prompt - slots
        due = (thought >= interval) & (thought % interval == 0) & (slots < ENDLESS)
        if not due.any():
            return
        for number, policy in enumerate(self.policies):
            rows = np.flatnonzero(due & (self._policy_R[batch.indices] == number))
            if not len(rows):
                continue
            most, most_kept = int((slots + interval)[rows].max()), int(slots[rows].max())
            for part in _parts(rows, RANKED_AT_ONCE // (policy.num_sets * most)):
                indices, after = batch.indices[part], (batch.before + batch.tokens)[part]
                rows_g, *chosen = self._sent(np.stack([part, indices, after]))
                self._evict(policy, batch.table_n[rows_g], torch.stack(chosen), (most, most_kept), move)
        self.evictions += int(due.sum())

    @torch.inference_mode()
    def warm_up(self, move: Move, block_size: int) -> None:
        """Do everything once, so that nothing is compiled or allocated later: on no request's slots.

        Dtypes are those of vLLM's own tensors: kernels are compiled for them.

        Args:
            move: moves slots.
            block_size: slots of a block.
        """
        device, requests = self.device, len(self._policy_R)
        device.answer_at_R.fill_(-1)  # all answer, so that nothing is written
        nobody_n = torch.arange(requests, device=device.device)
        zeros_n = torch.zeros(requests, dtype=torch.int32, device=device.device)
        table_n = torch.zeros(requests, 2, dtype=torch.int32, device=device.device)
        states = device.states_RWF
        states_NF = None if states is None else states.new_zeros(requests, states.shape[-1])
        batch = Batch(
            indices=np.arange(requests), before=np.zeros(requests, dtype=np.int64),
            tokens=np.ones(requests, dtype=np.int64), indices_n=nobody_n, computed_R=zeros_n,
            starts_n1=torch.arange(requests + 1, device=device.device).int(), table_n=table_n,
        )  # fmt: skip
        before_n, held_n = device.place(batch, zeros_n, zeros_n.clone(), nobody_n.clone(), block_size)
        sampled = Sampled(tokens_R1=nobody_n[:, None], counts_n=zeros_n, close_id=-1)
        device.note(batch, before_n, held_n, states_NF, sampled)
        device.note(batch, before_n, held_n, None, sampled)
        for policy in self.policies:
            for few in {1, min(requests, self._scored_together(policy))} if policy.score_dims else ():
                self._score_tokens(policy, torch.stack([nobody_n[:few], torch.zeros_like(nobody_n[:few])]))
            most = 2
            while most <= 2 * device.most_slots:
                size = min(most, device.most_slots)
                fit = max(1, min(requests, RANKED_AT_ONCE // (policy.num_sets * size)))
                for few in {1, fit}:
                    chosen_2g = torch.stack([nobody_n[:few], torch.zeros_like(nobody_n[:few])])
                    self._evict(policy, table_n[:few], chosen_2g, (size, size - 1), move)
                most *= 2
        device.answer_at_R.fill_(NEVER)

    def _note_many(self, batch: Batch, row: int, held_n: Tensor, states_NF: Tensor | None) -> None:
        """A request that was preempted is fed several tokens of its thought or answer; no eviction comes between."""
        index, before, tokens = int(batch.indices[row]), int(batch.before[row]), int(batch.tokens[row])
        asked, device = self._requests[index], self.device
        assert asked is not None
        first = int(batch.tokens[:row].sum())
        inside = min(tokens, max(0, asked.answer_at - before))  # a preempted one that answers said so when it entered
        steps = torch.arange(inside, device=device.device)
        place = held_n[row] - asked.prompt + steps
        device.positions_RXS[index, :, place] = (before + steps).to(torch.int32)
        if states_NF is None or device.states_RWF is None:
            return
        for step in range(inside):
            device.states_RWF[index, (before + step) % device.states_RWF.shape[1]] = states_NF[first + step]
            self._score_due(np.array([index]), np.array([before + step + 1]), np.array([True]))

    def _score_due(self, indices: np.ndarray, after: np.ndarray, thinks: np.ndarray) -> None:
        """Score the tokens of these requests that have all their followers, wherever a stride of them waits."""
        for policy, rows in self._due_scorings(indices, after, thinks):
            for part in _parts(rows, self._scored_together(policy)):
                self._score_tokens(policy, self._sent(np.stack([indices[part], after[part]])))

    def _due_scorings(
        self, indices: np.ndarray, after: np.ndarray, thinks: np.ndarray
    ) -> Iterator[tuple[Policy, np.ndarray]]:
        """Policies, and the rows whose tokens they score now: if one must, all that can, so that they fall in step."""
        thought = after - self._asked_5R[PROMPT, indices]
        for number, policy in enumerate(self.policies):
            if not policy.score_dims:
                continue
            waits = thought - policy.offsets[-1] - self._scored_R[indices]
            can = thinks & (self._policy_R[indices] == number) & (waits > 0)
            if can.any() and waits[can].max() >= policy.stride:
                rows = np.flatnonzero(can)
                self._scored_R[indices[rows]] += waits[rows]
                yield policy, rows

    def _score_tokens(self, policy: Policy, chosen_2g: Tensor) -> None:
        late, stride, shape = policy.offsets[-1], policy.stride, (policy.num_sets, policy.score_dims)
        if stride == 1:
            scores_MXC = policy.score_tokens(self.device.recall(chosen_2g, policy.offsets, 1)).view(-1, *shape)
        else:
            states_gTF = self.device.recall(chosen_2g, (0,), late + stride).view(chosen_2g.shape[1], late + stride, -1)
            scores_TgC = policy.score_consecutive(states_gTF.transpose(0, 1))
            scores_MXC = scores_TgC.transpose(0, 1).reshape(-1, *shape)
        self.device.store_scores(chosen_2g, scores_MXC, late, stride)

    def _scored_together(self, policy: Policy) -> int:
        assert self.device.states_RWF is not None
        return rows_scored_together(policy, self.device.states_RWF[0, 0])

    def _evict(self, policy: Policy, table_gB: Tensor, chosen_2g: Tensor, most: tuple[int, int], move: Move) -> None:
        """`most` is how many slots the largest of these requests holds, and how many it keeps."""
        due = self.device.show(chosen_2g, policy.num_sets, most[0], policy.score_dims)
        scores = policy.score(_slots(due, chosen_2g[1], shared=policy.num_sets == 1))
        kept_gXK = self.device.choose(due, scores.view(due.ages_gXS.shape), most[1])
        move(table_gB, due.asked_5g[PROMPT], kept_gXK, due.num_kept_g)
        self.device.keep(chosen_2g, due.num_kept_g, kept_gXK)

    def _sent(self, numbers: np.ndarray) -> Tensor:
        """On the device, without waiting for what runs there."""
        return to_device(torch.from_numpy(numbers.astype(np.int64)), self.device.device)


def _slots(due: Due, after_g: Tensor, *, shared: bool) -> Slots:
    """What the policy is shown."""
    scores = due.scores_gXSC
    return Slots(
        ages=due.ages_gXS[:, 0] if shared else due.ages_gXS,
        positions=due.positions_gXS[:, 0] if shared else due.positions_gXS,
        next_position=after_g,
        prompt_tokens=due.asked_5g[PROMPT],
        seeds=due.asked_5g[SEED],
        token_scores=scores if scores is None or not shared else scores[:, 0],
    )


def _parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    size = max(1, size)
    return [rows[start : start + size] for start in range(0, len(rows), size)]
