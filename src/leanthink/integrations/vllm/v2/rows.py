"""What a worker knows of the requests with a budget, for all of them at once, on the device.

A request is known by its index in vLLM's state of requests, as long as it runs. Whether an eviction is *due* is a
function of lengths, which the host knows; whether a thought is over already, only the device knows: there a request
that answers is left alone.

R requests that fit   n rows of a batch   N tokens of a batch   g rows of one group   X index sets   S thought slots
C stamped numbers of a slot   F state size   W tokens whose states are remembered   O offsets   K kept slots
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from leanthink.engine.model_runner import STAMPED_AT_ONCE
from leanthink.integrations.vllm.lengths import NEVER
from leanthink.policies import Policy, Slots
from leanthink.policies.budget import Budget, keep_in_order
from leanthink.utils.constants import constant

ENDLESS = 2**40  # thought slots of a request without a budget
RANKED_AT_ONCE = 2**24  # slots of all sets: what an eviction of more of them needs would count in the peak of memory

Move = Callable[[Tensor, Tensor, Tensor], None]  # tables [g, blocks], first slots [g], kept [g, X, K]: ascending places


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request with a budget."""

    prompt: int
    budget: Budget
    policy: Policy
    seed: int = 0
    answer_at: int = NEVER


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the host knows of a step's rows, and where the device has the rest.

    Attributes:
        indices: of each row's request.
        before: tokens fed before the step.
        tokens: fed in it.
        indices_n: the same indices on the device.
        before_n: fed before the step, on the device.
        starts_n1: where each row's tokens begin, and their end.
        table_n: blocks of each row.
    """

    indices: np.ndarray
    before: np.ndarray
    tokens: np.ndarray
    indices_n: Tensor
    before_n: Tensor
    starts_n1: Tensor
    table_n: Tensor


def physical(logical: Tensor, prompt: Tensor, slots: Tensor, interval: Tensor, answer_at: Tensor) -> Tensor:
    """`Lengths.physical` of many requests."""
    thought = torch.minimum(logical, answer_at) - prompt
    held = torch.where(thought < slots + interval, thought, slots + (thought - slots) % interval)
    return prompt + held + (logical - answer_at).clamp(min=0)


class Rows:
    """The state of all requests.

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
        self.device, self.most_slots = device, most_slots
        self.sets = max((policy.num_sets for policy in policies), default=1)
        stamping = [policy for policy in policies if policy.channels]
        channels = max((policy.channels for policy in stamping), default=0)
        memory = max((policy.stride + policy.offsets[-1] for policy in stamping), default=0)
        stamp_dtypes = {policy.stamp_dtype for policy in stamping}
        stamp_dtype = stamp_dtypes.pop() if len(stamp_dtypes) == 1 else torch.float32
        # On the host, and copied when a request enters: prompt, budget slots, interval, seed.
        self._host = np.zeros((4, requests), dtype=np.int64)
        self._host[1], self._host[2] = ENDLESS, 1
        self._answers = np.zeros(requests, dtype=np.int64)
        self._asked: list[Request | None] = [None] * requests
        self._dirty, self._entered = False, dict[int, int]()
        self._table_4R = torch.from_numpy(self._host.copy()).to(device)
        self.answer_at_R = torch.full((requests,), NEVER, dtype=torch.int64, device=device)
        # One place more than there are slots: there goes what nobody holds.
        self.positions_RXS = torch.zeros(requests, self.sets, most_slots + 1, dtype=torch.int32, device=device)
        shape = (requests, self.sets, most_slots, channels)
        self.stamps_RXSC = torch.zeros(shape, dtype=stamp_dtype, device=device) if channels else None
        self.states_RWF = torch.zeros(requests, memory, state_size, dtype=dtype, device=device) if channels else None
        self.evictions = 0  # rows evicted so far, as the host counts them: those that answer too

    # What enters and leaves.

    def enter(self, index: int, request: Request | None) -> None:
        """This request sits there from now on; None: one without a budget."""
        self._asked[index] = request
        if request is None:
            self._host[:, index], self._answers[index] = (0, ENDLESS, 1, 0), 0
        else:
            budget, self._answers[index] = request.budget, request.budget.answer
            self._host[:, index] = request.prompt, budget.slots, budget.interval, request.seed
        self._entered[index] = NEVER if request is None else request.answer_at
        self._dirty = True

    def flush(self) -> None:
        """Copy to the device what entered."""
        if not self._dirty:
            return
        self._table_4R.copy_(torch.from_numpy(self._host.copy()))
        indices = torch.tensor(list(self._entered), device=self.device)
        self.answer_at_R[indices] = torch.tensor(list(self._entered.values()), device=self.device)
        self._entered.clear()
        self._dirty = False

    def any_in(self, indices: np.ndarray) -> bool:
        """Whether any of these requests has a budget."""
        return bool((self._host[1, indices] < ENDLESS).any())

    # Before the forward.

    def longest(self, batch: Batch) -> int:
        """No row of the batch holds more slots when its tokens are fed."""
        prompt, slots, interval = self._host[:3, batch.indices]
        after = batch.before + batch.tokens
        most = prompt + slots + interval + self._answers[batch.indices] + batch.tokens
        return int(np.minimum(after, most).max())

    def held(self, batch: Batch) -> Tensor:
        """Slots of each row before the step, [n] int64."""
        prompt, slots, interval, _ = self._table_4R[:, batch.indices_n]
        return physical(batch.before_n, prompt, slots, interval, self.answer_at_R[batch.indices_n])

    def place(self, batch: Batch, held_n: Tensor, slots_N: Tensor, block_size: int) -> None:
        """Write for each token of the batch which of vLLM's slots it goes to."""
        rows = len(batch.indices)
        count = int(batch.tokens.sum())
        if count == rows:
            own_N, blocks_N = held_n, batch.table_n.gather(1, (held_n // block_size)[:, None])[:, 0]
        else:
            fed_n = batch.starts_n1.diff()
            row_N = torch.repeat_interleave(torch.arange(rows, device=self.device), fed_n, output_size=count)
            own_N = held_n[row_N] + torch.arange(count, device=self.device) - batch.starts_n1[:rows].long()[row_N]
            blocks_N = batch.table_n[row_N, own_N // block_size]
        slots_N[:count] = blocks_N.long() * block_size + own_N % block_size

    # After it.

    def note(self, batch: Batch, held_n: Tensor, states_NF: Tensor | None) -> None:
        """Remember where each row's last token lies and, if any policy stamps, its states; stamp what is due.

        Args:
            batch: the step.
            held_n: slots before it.
            states_NF: of all its tokens.
        """
        thinks = self._thinks(batch)
        for row in np.flatnonzero(thinks & (batch.tokens > 1)).tolist():
            self._note_many(batch, row, held_n, states_NF)
        indices_n, before_n = batch.indices_n, batch.before_n
        prompt_n, slots_n = self._table_4R[0, indices_n], self._table_4R[1, indices_n]
        fed_n = batch.starts_n1.diff()
        inside = (before_n >= prompt_n) & (before_n < self.answer_at_R[indices_n]) & (slots_n < ENDLESS) & (fed_n == 1)
        place_n = torch.where(inside, held_n - prompt_n, self.most_slots)
        self.positions_RXS[indices_n, :, place_n] = before_n.to(torch.int32)[:, None]
        if states_NF is None or self.states_RWF is None:
            return
        last_n = batch.starts_n1[1:].long() - 1
        where_n = torch.where(inside, before_n % self.states_RWF.shape[1], 0)
        old_nF = self.states_RWF[indices_n, where_n]
        self.states_RWF[indices_n, where_n] = torch.where(inside[:, None], states_NF[last_n], old_nF)
        after = batch.before + batch.tokens
        self._stamp_due(batch.indices, after, thinks & (batch.tokens == 1))

    def evict(self, batch: Batch, move: Move) -> None:
        """Evict where that is due now that the batch's tokens are fed."""
        prompt, slots, interval = self._host[:3, batch.indices]
        thought = batch.before + batch.tokens - prompt - slots
        due = np.flatnonzero((thought >= interval) & (thought % interval == 0) & (slots < ENDLESS))
        groups: dict[tuple[Budget, str], list[int]] = {}
        for row in due.tolist():
            asked = self._asked[batch.indices[row]]
            assert asked is not None
            groups.setdefault((asked.budget, asked.policy.name), []).append(row)
        for (budget, _), rows in groups.items():
            asked = self._asked[batch.indices[rows[0]]]
            assert asked is not None
            at_once = max(1, RANKED_AT_ONCE // (self.sets * (budget.slots + budget.interval)))
            for start in range(0, len(rows), at_once):
                self._evict(batch, rows[start : start + at_once], budget, asked.policy, move)
        self.evictions += len(due)

    def close(self, batch: Batch, sampled_n: Tensor, has_sampled_n: Tensor, close_id: int) -> None:
        """Where the token sampled in the step ends the thought, the answer begins with it."""
        after_n = batch.before_n + batch.starts_n1.diff()
        found = (sampled_n == close_id) & has_sampled_n
        indices_n = batch.indices_n
        self.answer_at_R[indices_n] = torch.minimum(self.answer_at_R[indices_n], torch.where(found, after_n, NEVER))

    def _thinks(self, batch: Batch) -> np.ndarray:
        """Rows that, as far as the host knows, are fed tokens of a thought."""
        thinks: np.ndarray = (batch.before >= self._host[0, batch.indices]) & (self._host[1, batch.indices] < ENDLESS)
        return thinks

    def _note_many(self, batch: Batch, row: int, held_n: Tensor, states_NF: Tensor | None) -> None:
        """A request that was preempted is fed several tokens of its thought or answer; no eviction comes between."""
        index, before, tokens = int(batch.indices[row]), int(batch.before[row]), int(batch.tokens[row])
        asked = self._asked[index]
        assert asked is not None
        first = int(batch.tokens[:row].sum())
        inside = min(tokens, max(0, asked.answer_at - before))  # a preempted one that answers said so when it entered
        steps = torch.arange(inside, device=self.device)
        place = held_n[row] - asked.prompt + steps
        self.positions_RXS[index, :, place] = (before + steps).to(torch.int32)
        if states_NF is None or self.states_RWF is None:
            return
        for step in range(inside):
            self.states_RWF[index, (before + step) % self.states_RWF.shape[1]] = states_NF[first + step]
            self._stamp_due(np.array([index]), np.array([before + step + 1]), np.array([True]))

    def _stamp_due(self, indices: np.ndarray, after: np.ndarray, thinks: np.ndarray) -> None:
        """Stamp the tokens of these requests that have all their followers, wherever a stride of them is full."""
        groups: dict[str, tuple[Policy, list[int]]] = {}
        for row in np.flatnonzero(thinks).tolist():
            asked = self._asked[indices[row]]
            if asked is None or not asked.policy.channels:
                continue
            ready = int(after[row]) - asked.prompt - asked.policy.offsets[-1]
            if ready > 0 and ready % asked.policy.stride == 0:
                groups.setdefault(asked.policy.name, (asked.policy, []))[1].append(row)
        for policy, rows in groups.values():
            for part in _parts(rows, max(1, STAMPED_AT_ONCE // policy.stride)):
                pairs_2g = self._sent(np.stack([indices[part], after[part]]))
                self._stamp(policy, pairs_2g[0], pairs_2g[1])

    def _stamp(self, policy: Policy, indices_g: Tensor, after_g: Tensor) -> None:
        assert self.states_RWF is not None
        assert self.stamps_RXSC is not None
        stride, memory = policy.stride, self.states_RWF.shape[1]
        first_g = after_g - policy.offsets[-1] - stride
        token_gs = first_g[:, None] + torch.arange(stride, device=self.device)
        seen_gsO = token_gs[..., None] + constant(policy.offsets, self.device)
        states_gsOF = self.states_RWF[indices_g[:, None, None], seen_gsO % memory]
        stamps_gsXC = policy.stamp(states_gsOF.flatten(0, 1)).view(*token_gs.shape, policy.num_sets, policy.channels)
        stamps_gXsC = stamps_gsXC.transpose(1, 2).to(self.stamps_RXSC.dtype)
        if policy.num_sets < self.sets:
            stamps_gXsC = stamps_gXsC.expand(-1, self.sets, -1, -1)
        place_gXS = self.positions_RXS[indices_g, :, : self.most_slots].long() - first_g[:, None, None]
        ready = (place_gXS >= 0) & (place_gXS < stride)
        found = place_gXS.clamp(0, stride - 1)[..., None].expand(*place_gXS.shape, policy.channels)
        held_gXSC = self.stamps_RXSC[indices_g, :, :, : policy.channels]
        self.stamps_RXSC[indices_g, :, :, : policy.channels] = torch.where(
            ready[..., None], stamps_gXsC.gather(2, found), held_gXSC
        )

    def _evict(self, batch: Batch, rows: Sequence[int], budget: Budget, policy: Policy, move: Move) -> None:
        rows_g = self._sent(np.array(rows))
        indices_g = batch.indices_n[rows_g]
        prompt_g, _, _, seed_g = self._table_4R[:, indices_g]
        after_g = batch.before_n[rows_g] + batch.starts_n1.diff()[rows_g]
        due, sets = budget.slots + budget.interval, policy.num_sets
        positions_gXS = self.positions_RXS[indices_g, :sets, :due].long()
        ages_gXS = after_g[:, None, None] - 1 - positions_gXS
        stamps = None
        if policy.channels:
            assert self.stamps_RXSC is not None
            stamps = self.stamps_RXSC[indices_g, :sets, :due, : policy.channels].float()
        shared = sets == 1
        slots = Slots(
            ages=ages_gXS[:, 0] if shared else ages_gXS,
            positions=positions_gXS[:, 0] if shared else positions_gXS,
            next_position=after_g,
            prompt_tokens=prompt_g,
            seeds=seed_g,
            stamps=stamps if stamps is None or not shared else stamps[:, 0],
        )
        scores = policy.score(slots).view(len(rows), sets, due)
        kept_gXK = keep_in_order(scores, budget.slots, budget.window)
        alive_g = after_g <= self.answer_at_R[indices_g]
        stay_K = torch.arange(budget.slots, device=self.device)
        kept_gXK = torch.where(alive_g[:, None, None], kept_gXK, stay_K)
        tables = torch.where(alive_g[:, None], batch.table_n[rows_g], 0)
        move(tables, prompt_g, kept_gXK)
        every_gXK = kept_gXK.expand(-1, self.sets, -1)
        own_gXS = self.positions_RXS[indices_g]
        self.positions_RXS[indices_g, :, : budget.slots] = own_gXS.gather(2, every_gXK)
        if self.stamps_RXSC is not None:
            places = every_gXK[..., None].expand(-1, -1, -1, self.stamps_RXSC.shape[-1])
            self.stamps_RXSC[indices_g, :, : budget.slots] = self.stamps_RXSC[indices_g].gather(2, places)

    def _sent(self, numbers: np.ndarray) -> Tensor:
        """On the device, without waiting for what runs there."""
        sent = torch.from_numpy(numbers.astype(np.int64))
        if self.device.type == "cuda":
            return sent.pin_memory().to(self.device, non_blocking=True)
        return sent


def _parts(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
