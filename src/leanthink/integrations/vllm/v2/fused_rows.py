"""The state of all requests on a GPU: each method of `DeviceRows` as one launch, and nothing waits for the host."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from leanthink.engine.kernels.paged_rows import keep_rows, note_rows, place_rows, recall_states, show_rows, store_scores
from leanthink.integrations.vllm.v2.device_rows import ENDLESS, INTERVAL, SLOTS, WINDOW, Batch, DeviceRows, Due, Sampled
from leanthink.policies.select_kernel import MAX_SLOTS, select_ragged
from leanthink.utils.constants import constant

TOKENS_AT_ONCE, NUMBERS_AT_ONCE, SLOTS_AT_ONCE = 256, 1024, 512  # that one program holds


class FusedRows(DeviceRows):
    """The same numbers."""

    def place(
        self, batch: Batch, seq_lens_p: Tensor, lengths_p: Tensor, slots_N: Tensor, block_size: int
    ) -> tuple[Tensor, Tensor]:
        """As in DeviceRows."""
        rows = len(batch.indices)
        before_n, held_n = torch.empty(2, rows, dtype=torch.int64, device=self.device)
        launch: Any = place_rows[(len(lengths_p),)]
        launch(
            batch.indices_n, batch.computed_R, batch.starts_n1, self.asked_5R, self.answer_at_R, batch.table_n,
            seq_lens_p, before_n, held_n, lengths_p, slots_N, rows, self.asked_5R.stride(0), batch.table_n.stride(0),
            P=block_size, BLOCK=TOKENS_AT_ONCE,
        )  # fmt: skip
        return before_n, held_n

    def note(
        self, batch: Batch, before_n: Tensor, held_n: Tensor, states_NF: Tensor | None, sampled: Sampled | None
    ) -> None:
        """As in DeviceRows."""
        ring = self.states_RWF if states_NF is not None else None
        memory, size = (1, 1) if ring is None else ring.shape[1:]
        nothing = self.asked_5R
        launch: Any = note_rows[(len(batch.indices), triton.cdiv(size, NUMBERS_AT_ONCE))]
        launch(
            batch.indices_n, batch.starts_n1, self.asked_5R, self.answer_at_R, before_n, held_n, self.positions_RXS,
            nothing if states_NF is None else states_NF, nothing if ring is None else ring,
            nothing if sampled is None else sampled.tokens_R1, nothing if sampled is None else sampled.counts_n,
            self.asked_5R.stride(0), *self.positions_RXS.stride()[:2], size, memory,
            -1 if sampled is None else sampled.close_id,
            X=self.sets, XP=triton.next_power_of_2(self.sets), ENDLESS=ENDLESS, STATES=ring is not None,
            SAMPLED=sampled is not None, BLOCK=NUMBERS_AT_ONCE,
        )  # fmt: skip

    def recall(self, chosen_2g: Tensor, offsets: tuple[int, ...], stride: int) -> Tensor:
        """As in DeviceRows."""
        assert self.states_RWF is not None
        g, (_, memory, size) = chosen_2g.shape[1], self.states_RWF.shape
        seen_MOF = torch.empty(g * stride, len(offsets), size, dtype=self.states_RWF.dtype, device=self.device)
        launch: Any = recall_states[(g * stride * len(offsets), triton.cdiv(size, NUMBERS_AT_ONCE))]
        launch(
            chosen_2g, constant(offsets, self.device), self.states_RWF, seen_MOF, g, size, memory, offsets[-1],
            T=stride, SEEN=len(offsets), BLOCK=NUMBERS_AT_ONCE,
        )  # fmt: skip
        return seen_MOF

    def store_scores(self, chosen_2g: Tensor, scores_MXC: Tensor, late: int, stride: int) -> None:
        """As in DeviceRows."""
        assert self.scores_RXSC is not None
        _, sets, channels = scores_MXC.shape
        launch: Any = store_scores[(chosen_2g.shape[1], self.sets)]
        launch(
            chosen_2g, self.asked_5R, self.answer_at_R, self.positions_RXS, self.scores_RXSC, scores_MXC.contiguous(),
            chosen_2g.shape[1], self.asked_5R.stride(0), *self.positions_RXS.stride()[:2],
            *self.scores_RXSC.stride()[:3], late, T=stride, OF=sets, C=channels, CP=triton.next_power_of_2(channels),
            NEAR=triton.next_power_of_2(late + stride),
        )  # fmt: skip

    def show(self, chosen_2g: Tensor, sets: int, most: int, channels: int) -> Due:
        """As in DeviceRows."""
        g = chosen_2g.shape[1]
        held = self.positions_RXS if self.scores_RXSC is None else self.scores_RXSC
        positions_gXS, ages_gXS = torch.empty(2, g, sets, most, dtype=torch.int64, device=self.device)
        scores_gXSC = torch.empty(g, sets, most, channels, device=self.device) if channels else None
        asked_6g = torch.empty(6, g, dtype=torch.int64, device=self.device)
        launch: Any = show_rows[(g, sets, triton.cdiv(most, SLOTS_AT_ONCE))]
        launch(
            chosen_2g, self.asked_5R, self.answer_at_R, self.positions_RXS, held, positions_gXS, ages_gXS,
            positions_gXS if scores_gXSC is None else scores_gXSC, asked_6g, asked_6g[5], g, most,
            self.asked_5R.stride(0), *self.positions_RXS.stride()[:2], *held.stride()[:2],
            held.stride(2), C=channels, CP=triton.next_power_of_2(max(1, channels)), BLOCK=SLOTS_AT_ONCE,
        )  # fmt: skip
        return Due(
            positions_gXS=positions_gXS, ages_gXS=ages_gXS, scores_gXSC=scores_gXSC, asked_5g=asked_6g[:5],
            num_kept_g=asked_6g[5],
        )  # fmt: skip

    def choose(self, due: Due, scores_gXS: Tensor, most_kept: int) -> Tensor:
        """As in DeviceRows."""
        if scores_gXS.shape[-1] > MAX_SLOTS:
            return super().choose(due, scores_gXS, most_kept)
        asked = due.asked_5g
        return select_ragged(scores_gXS, asked[SLOTS], asked[INTERVAL], asked[WINDOW], most_kept)

    def keep(self, chosen_2g: Tensor, num_kept_g: Tensor, kept_gXK: Tensor) -> None:
        """As in DeviceRows."""
        held = self.positions_RXS if self.scores_RXSC is None else self.scores_RXSC
        channels = 0 if self.scores_RXSC is None else self.scores_RXSC.shape[-1]
        launch: Any = keep_rows[(chosen_2g.shape[1], self.sets)]
        launch(
            chosen_2g, num_kept_g, kept_gXK, self.positions_RXS, held, kept_gXK.shape[-1],
            *self.positions_RXS.stride()[:2], *held.stride()[:3], OF=kept_gXK.shape[1], C=channels,
            CP=triton.next_power_of_2(max(1, channels)), BLOCK=SLOTS_AT_ONCE, num_stages=1,
        )  # fmt: skip
