"""The state of all requests on the device, and what is done with it in a step; `fused_rows` does the same on a GPU.

R requests that fit   n rows of a batch, p with those that pad it   N tokens of a batch   g requests chosen among them
X index sets   S thought slots   C token scores of a slot   F state size   W tokens whose states are remembered
O offsets   T tokens scored together   K kept slots
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from leanthink.integrations.vllm.lengths import NEVER
from leanthink.policies.budget import top_k_oldest_first
from leanthink.utils.constants import constant

ENDLESS = 2**40  # thought slots of a request without a budget
PROMPT, SLOTS, INTERVAL, SEED, WINDOW = range(5)  # what a request asks for: rows of `asked_5R`
NOBODY = (0, ENDLESS, 1, 0, 0)  # what one without a budget does

# Tables [g, blocks], first slots [g], kept [g, X, K]: ascending places, of which the first `num_kept_g` count.
Move = Callable[[Tensor, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the host knows of a step's rows, and where the device has the rest.

    Attributes:
        indices: of each row's request.
        before: tokens fed before the step.
        tokens: fed in it.
        indices_n: the same indices on the device, int64.
        computed_R: fed before the step, of all requests, on the device; true until the step's tokens are sampled.
        starts_n1: where each row's tokens begin, and their end.
        table_n: blocks of each row.
    """

    indices: np.ndarray
    before: np.ndarray
    tokens: np.ndarray
    indices_n: Tensor
    computed_R: Tensor
    starts_n1: Tensor
    table_n: Tensor


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What came of a step.

    Attributes:
        tokens_R1: the latest token of every request.
        counts_n: how many each row got, int32: none while it is fed its prompt.
        close_id: the token that ends a thought.
    """

    tokens_R1: Tensor
    counts_n: Tensor
    close_id: int


@dataclass(frozen=True, kw_only=True)
class Due:
    """Requests whose slots are ranked together, padded to as many slots as any of them holds.

    Attributes:
        positions_gXS: of their slots, int64.
        ages_gXS: of the same.
        scores_gXSC: float32; None for a policy that scores no tokens.
        asked_5g: what they ask for.
        num_kept_g: slots that stay; 0 for one that answers, of which nothing moves.
    """

    positions_gXS: Tensor
    ages_gXS: Tensor
    scores_gXSC: Tensor | None
    asked_5g: Tensor
    num_kept_g: Tensor


def thought_slots(logical: Tensor, prompt: Tensor, slots: Tensor, interval: Tensor, answer_at: Tensor) -> Tensor:
    """Thought slots that requests hold when so many tokens are fed; below 0 inside the prompt."""
    thought = torch.minimum(logical, answer_at) - prompt
    return torch.where(thought < slots + interval, thought, slots + (thought - slots) % interval)


def physical(logical: Tensor, prompt: Tensor, slots: Tensor, interval: Tensor, answer_at: Tensor) -> Tensor:
    """`Lengths.physical` of many requests."""
    held = thought_slots(logical, prompt, slots, interval, answer_at)
    return prompt + held + (logical - answer_at).clamp(min=0)


class DeviceRows:
    """In torch's own operations: what `FusedRows` is compared with, and what runs where there is no Triton.

    Args:
        requests: R.
        most_slots: S.
        sets: X.
        channels: C; 0 where no token is scored.
        memory: W.
        state_size: F.
        dtype: of states.
        score_dtype: of token scores.
        device: where all lies.
    """

    def __init__(
        self,
        *,
        requests: int,
        most_slots: int,
        sets: int,
        channels: int,
        memory: int,
        state_size: int,
        dtype: torch.dtype,
        score_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.device, self.most_slots, self.sets = device, most_slots, sets
        self.asked_5R = torch.tensor(NOBODY, device=device)[:, None].repeat(1, requests)
        self.answer_at_R = torch.full((requests,), NEVER, dtype=torch.int64, device=device)
        # One place more than there are slots: there goes what nobody holds.
        self.positions_RXS = torch.zeros(requests, sets, most_slots + 1, dtype=torch.int32, device=device)
        shape = (requests, sets, most_slots, channels)
        self.scores_RXSC = torch.zeros(shape, dtype=score_dtype, device=device) if channels else None
        self.states_RWF = torch.zeros(requests, memory, state_size, dtype=dtype, device=device) if channels else None

    def place(
        self, batch: Batch, seq_lens_p: Tensor, lengths_p: Tensor, slots_N: Tensor, block_size: int
    ) -> tuple[Tensor, Tensor]:
        """Before a step: which of vLLM's slots its tokens go to, and how many slots each row holds with them.

        Args:
            batch: the step.
            seq_lens_p: lengths of all rows in tokens, int32.
            lengths_p: is written, in slots.
            slots_N: is written for the tokens that are there.
            block_size: slots of a block.

        Returns:
            tokens fed and slots held of each row before the step, [n] int64.
        """
        rows, count = len(batch.indices), int(batch.tokens.sum())
        before_n = batch.computed_R[batch.indices_n].long()
        prompt, slots, interval = self.asked_5R[:3, batch.indices_n]
        held_n = physical(before_n, prompt, slots, interval, self.answer_at_R[batch.indices_n])
        fed_n = batch.starts_n1.diff()
        lengths_p.copy_(seq_lens_p)
        lengths_p[:rows] = (held_n + fed_n).to(torch.int32)
        row_N = torch.repeat_interleave(torch.arange(rows, device=self.device), fed_n, output_size=count)
        own_N = held_n[row_N] + torch.arange(count, device=self.device) - batch.starts_n1[:rows].long()[row_N]
        slots_N[:count] = batch.table_n[row_N, own_N // block_size].long() * block_size + own_N % block_size
        return before_n, held_n

    def note(
        self, batch: Batch, before_n: Tensor, held_n: Tensor, states_NF: Tensor | None, sampled: Sampled | None
    ) -> None:
        """After it: where the last token of each row that thinks lies, and its states; whose thought is over now.

        Rows that are fed several tokens at once are left out, but for what they sample.
        """
        indices_n, fed_n = batch.indices_n, batch.starts_n1.diff()
        prompt_n, slots_n = self.asked_5R[:2, indices_n]
        inside = (before_n >= prompt_n) & (before_n < self.answer_at_R[indices_n]) & (slots_n < ENDLESS) & (fed_n == 1)
        place_n = torch.where(inside, held_n - prompt_n, self.most_slots)
        self.positions_RXS[indices_n, :, place_n] = before_n.to(torch.int32)[:, None]
        if states_NF is not None and self.states_RWF is not None:
            where_n = before_n % self.states_RWF.shape[1]
            new_nF, old_nF = states_NF[batch.starts_n1[1:].long() - 1], self.states_RWF[indices_n, where_n]
            self.states_RWF[indices_n, where_n] = torch.where(inside[:, None], new_nF, old_nF)
        if sampled is not None:
            found = (sampled.tokens_R1[indices_n, 0] == sampled.close_id) & (sampled.counts_n > 0)
            ends_n = torch.where(found, before_n + fed_n, NEVER)
            self.answer_at_R[indices_n] = torch.minimum(self.answer_at_R[indices_n], ends_n)

    def recall(self, chosen_2g: Tensor, offsets: tuple[int, ...], stride: int) -> Tensor:
        """States [g T, O, F] of the youngest T = `stride` tokens of these requests that have all their followers.

        Args:
            chosen_2g: which requests, and how many tokens of each are fed, int64.
            offsets: which tokens are seen of each.
            stride: T.
        """
        assert self.states_RWF is not None
        indices_g, after_g = chosen_2g
        token_gT = (after_g - offsets[-1] - stride)[:, None] + torch.arange(stride, device=self.device)
        seen_gTO = token_gT.clamp(min=0)[..., None] + constant(offsets, self.device)
        states_gTOF = self.states_RWF[indices_g[:, None, None], seen_gTO % self.states_RWF.shape[1]]
        return states_gTOF.flatten(0, 1)

    def store_scores(self, chosen_2g: Tensor, scores_MXC: Tensor, late: int, stride: int) -> None:
        """Store the scores of those tokens, wherever they lie.

        Args:
            chosen_2g: as above.
            scores_MXC: [g T, X, C], of as many sets and channels as the policy has.
            late: the last offset.
            stride: T.
        """
        assert self.scores_RXSC is not None
        indices_g, after_g = chosen_2g
        channels = scores_MXC.shape[-1]
        scores_gXTC = scores_MXC.view(len(indices_g), stride, *scores_MXC.shape[1:]).transpose(1, 2)
        scores_gXTC = scores_gXTC.to(self.scores_RXSC.dtype).expand(-1, self.sets, -1, -1)
        first_g = after_g - late - stride
        place_gXS = self.positions_RXS[indices_g, :, : self.most_slots].long() - first_g[:, None, None]
        ready = (place_gXS >= 0) & (place_gXS < stride) & (after_g <= self.answer_at_R[indices_g])[:, None, None]
        found = place_gXS.clamp(0, stride - 1)[..., None].expand(*place_gXS.shape, channels)
        held_gXSC = self.scores_RXSC[indices_g, :, :, :channels]
        written_gXSC = torch.where(ready[..., None], scores_gXTC.gather(2, found), held_gXSC)
        self.scores_RXSC[indices_g, :, :, :channels] = written_gXSC

    def show(self, chosen_2g: Tensor, sets: int, most: int, channels: int) -> Due:
        """The thought slots of these requests, of each of which as many are held as make an eviction due.

        Args:
            chosen_2g: as above.
            sets: of the policy.
            most: S, of any of them.
            channels: of the policy.
        """
        indices_g, after_g = chosen_2g
        asked_5g = self.asked_5R[:, indices_g]
        due_g11 = (asked_5g[SLOTS] + asked_5g[INTERVAL])[:, None, None]
        pads_g1S = torch.arange(most, device=self.device) >= due_g11
        youngest_g11 = after_g[:, None, None] - 1
        positions_gXS = self.positions_RXS[indices_g, :sets, :most].long()
        positions_gXS = torch.where(pads_g1S, youngest_g11, positions_gXS)
        scores_gXSC = None
        if channels:
            assert self.scores_RXSC is not None
            scores_gXSC = self.scores_RXSC[indices_g, :sets, :most, :channels].float()
        alive_g = after_g <= self.answer_at_R[indices_g]
        return Due(
            positions_gXS=positions_gXS,
            ages_gXS=youngest_g11 - positions_gXS,
            scores_gXSC=scores_gXSC,
            asked_5g=asked_5g,
            num_kept_g=torch.where(alive_g, asked_5g[SLOTS], 0),
        )

    def choose(self, due: Due, scores_gXS: Tensor, most_kept: int) -> Tensor:
        """Places of the slots that stay, ascending, [g, X, K] for K = `most_kept`; what pads them means nothing."""
        kept_gXK = torch.zeros(*scores_gXS.shape[:2], most_kept, dtype=torch.int64, device=self.device)
        sizes = torch.stack([due.asked_5g[SLOTS], due.asked_5g[INTERVAL], due.asked_5g[WINDOW]], dim=1).tolist()
        for row, (slots, interval, window) in enumerate(sizes):
            kept_gXK[row, :, :slots] = top_k_oldest_first(scores_gXS[row, :, : slots + interval], slots, window)
        return kept_gXK

    def keep(self, chosen_2g: Tensor, num_kept_g: Tensor, kept_gXK: Tensor) -> None:
        """Move what belongs to the kept slots together, beside their keys and values."""
        for index, count, kept_XK in zip(chosen_2g[0].tolist(), num_kept_g.tolist(), kept_gXK, strict=True):
            places_XK = kept_XK[:, :count].expand(self.sets, -1)
            self.positions_RXS[index, :, :count] = self.positions_RXS[index].gather(1, places_XK)
            if self.scores_RXSC is not None:
                places_XKC = places_XK[..., None].expand(-1, -1, self.scores_RXSC.shape[-1])
                self.scores_RXSC[index, :, :count] = self.scores_RXSC[index].gather(1, places_XKC)
