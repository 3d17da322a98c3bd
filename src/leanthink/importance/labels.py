"""Exact attention labels of traces: how much is each thought token read by the answer, and from how far away.

Attention is computed in fp32, one block of query rows at a time, and reduced at once to a few numbers per token, so no
N x N matrix is ever held. Shapes: B traces of a batch, N tokens of prompt and generated text (of the longest trace, the
others are padded on the right), T thought tokens, H horizons, R rows of a block, C columns (keys) that are labelled, G
KV heads, A attention heads, Z = B G, Y = R A / G rows of all heads that share a KV head, D head width, X index sets
(1 for the whole model, one for each layer, or one for each layer and KV head, layer by layer), S those of one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AttentionInterface

from leanthink.data.traces.trace import Trace
from leanthink.engine.attention import switched_to
from leanthink.engine.causal_attention import beside_sinks, causal_attention
from leanthink.engine.sdpa import for_any_length
from leanthink.importance.batches import padded
from leanthink.models.kv_shape import KVShape
from leanthink.models.loading import check_supported, kv_shape
from leanthink.policies.policy import Granularity
from leanthink.utils.errors import UsageError

ATTENTION_NAME = "leanthink_labels"
HORIZONS = (16, 32, 64, 128, 256, 512, 1024)
# Blocks that stay inside the processor's cache are fastest on a CPU; a GPU wants long rows of work.
BLOCK_BYTES = {"cpu": 8 << 20, "cuda": 512 << 20}


@dataclass(frozen=True, kw_only=True)
class Thought:
    """A thought to be labelled, `token_ids[prompt_tokens:thought_end]`, in its trace.

    token_ids: prompt and generated tokens, N of them.
    prompt_tokens: number of prompt tokens, where the thought begins.
    thought_end: index of `</think>`; N where the thought was never closed, and then there are no answer rows.
    closing_tokens: 1 for `</think>`; 0 where the answer begins at `thought_end` itself, in traces without think tags.

    Raises:
        UsageError: the bounds do not lie in the trace.
    """

    token_ids: Sequence[int]
    prompt_tokens: int
    thought_end: int
    closing_tokens: Literal[0, 1] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.prompt_tokens < self.thought_end <= len(self.token_ids):
            raise UsageError(
                f"no thought to label: 0 <= prompt_tokens < thought_end <= number of tokens must hold, "
                f"got {self.prompt_tokens}, {self.thought_end} and {len(self.token_ids)}"
            )

    @classmethod
    def of(cls, trace: Trace, *, closing_tokens: Literal[0, 1] = 1) -> Thought:
        """The thought of a recorded request."""
        prompt = len(trace.prompt_ids)
        return cls(
            token_ids=(*trace.prompt_ids, *trace.token_ids),
            prompt_tokens=prompt,
            thought_end=prompt + trace.thought_tokens,
            closing_tokens=closing_tokens,
        )

    @property
    def answer_start(self) -> int:
        """Index of the first answer row, where there is one."""
        return self.thought_end + self.closing_tokens

    @property
    def answer_rows(self) -> int:
        """Number of tokens from there on."""
        return max(0, len(self.token_ids) - self.answer_start)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels of one trace, on the CPU.

    values_TC: float32 [T, 1 + H]. Column 0 is the mean attention that a token gets over all layers, heads and answer
        rows (the label of arXiv 2601.18383), NaN where the trace has no answer; column 1 + h is the largest attention
        in any layer and head from any row at least `horizons[h]` tokens later, 0 where there is no such row.
    sets_XTH: float32 [X, T, H]. Of a granularity of "model" columns 1 and later. Else s / (1 + s), where s adds up the
        squares of attention times the norm of the token's value, over the heads of the set and the rows at least so far
        away: how much their outputs lose without it. Norms are relative to their root mean square over the thought in
        each KV head.
    """

    values_TC: Tensor
    sets_XTH: Tensor


def packed(sets_XTH: Tensor) -> Tensor:
    """Labels in eight bits, uint8 of the same shape: 255 times their root, so that small ones differ as well."""
    return (255 * sets_XTH.sqrt()).round().to(torch.uint8)


def unpacked(codes: Tensor) -> Tensor:
    """The labels of these codes, float32."""
    return (codes.float() / 255).square()


class _HorizonAttention:
    """What rows from each distance on pay each column, in one number: their largest attention, or a sum over them."""

    def __init__(self, shape: Sequence[int], *, horizons: tuple[int, ...], added: bool, device: torch.device) -> None:
        self.horizons, self.added = horizons, added
        self.of_H = [torch.zeros(*shape, device=device) for _ in horizons]  # each [..., C]

    def add(self, rows_RC: Tensor, first_row: int) -> None:
        """Add rows [..., R, C] of one block, the first of them `first_row` tokens after column 0."""
        columns, last_row = rows_RC.shape[-1], first_row + rows_RC.shape[-2]
        all_C = self._reduced(rows_RC)
        for of_C, distance in zip(self.of_H, self.horizons, strict=True):
            # Columns before `whole` are far enough from every row of the block, those from `none` on from no row.
            whole = min(max(first_row - distance + 1, 0), columns)
            none = min(max(last_row - distance, 0), columns)
            if whole > 0:
                self._merge(of_C[..., :whole], all_C[..., :whole])
            if none > whole:
                # Row r of the block is far enough from column c while c <= r + first_row - distance.
                far_RC = rows_RC[..., whole:none].tril(first_row - distance - whole)
                self._merge(of_C[..., whole:none], self._reduced(far_RC))

    def _reduced(self, rows_RC: Tensor) -> Tensor:
        return rows_RC.sum(dim=-2) if self.added else rows_RC.amax(dim=-2)

    def _merge(self, so_far_C: Tensor, found_C: Tensor) -> None:
        (torch.add if self.added else torch.maximum)(so_far_C, found_C, out=so_far_C)


class _LabelAccumulator:
    """What every layer adds to: running label sums of a batch of traces, on the model's device.

    The columns [first, end) are those of all thoughts; what a trace gathers outside its own is never looked at.
    """

    def __init__(
        self,
        thoughts: Sequence[Thought],
        *,
        horizons: tuple[int, ...],
        shape: KVShape,
        granularity: Granularity,
        block_bytes: int,
        device: torch.device,
    ) -> None:
        """Layers that hold no slots are not labelled, and where one set serves the whole model it has no layer."""
        self.thoughts, self.shape, self.block_bytes = thoughts, shape, block_bytes
        self.sets_of_layer = shape.kv_heads if granularity == "head" else 1
        layers = 0 if granularity == "model" else shape.layers
        self.first = min(thought.prompt_tokens for thought in thoughts)
        self.end = max(thought.thought_end for thought in thoughts)
        # Rows that are too near their thought's first token, or before it, read nothing that is labelled.
        self.first_row = min(min(t.prompt_tokens + horizons[0], t.answer_start) for t in thoughts)
        self.first_answer_row = min(thought.answer_start for thought in thoughts)
        lengths = [len(thought.token_ids) for thought in thoughts]
        self.shortest = min(lengths)
        row_N = torch.arange(max(lengths), device=device)
        self.is_padding_BN = row_N >= torch.tensor(lengths, device=device)[:, None]
        start_B1 = torch.tensor([thought.prompt_tokens for thought in thoughts], device=device)[:, None]
        end_B1 = torch.tensor([thought.thought_end for thought in thoughts], device=device)[:, None]
        answer_B1 = torch.tensor([thought.answer_start for thought in thoughts], device=device)[:, None]
        self.answer_rows_BN = ((row_N >= answer_B1) & ~self.is_padding_BN).float()  # factors of a sum over rows
        column_C = row_N[self.first : self.end]
        self.is_own_BC = (column_C >= start_B1) & (column_C < end_B1)
        self.answer_BC = torch.zeros(len(thoughts), len(column_C), device=device)
        of_all = (len(thoughts), len(column_C))
        self.largest = _HorizonAttention(of_all, horizons=horizons, added=False, device=device)
        of_layer = (len(thoughts), self.sets_of_layer, len(column_C))
        self.read_L = [_HorizonAttention(of_layer, horizons=horizons, added=True, device=device) for _ in range(layers)]
        self.layer = 0  # whose turn it is
        self.heads = 0  # of all layers so far

    def add_layer(
        self, query_BAND: Tensor, key_BGND: Tensor, value_BGND: Tensor, scaling: float, sinks_A: Tensor | None
    ) -> None:
        """Add one layer: queries [B, A, N, D], keys and values [B, G, N, D], sinks as of `engine.causal_attention`."""
        B, G, N, D = key_BGND.shape
        A = query_BAND.shape[1]
        key_ZDN = key_BGND.float().reshape(B * G, N, D).transpose(1, 2)
        # A block takes its scores and their softmax, both fp32.
        rows = min(max(1, self.block_bytes // (8 * B * A * N)), N)
        ahead_RR = torch.ones(rows, rows, dtype=torch.bool, device=key_ZDN.device).triu_(1)
        norms_BGC = self._squared_norms(value_BGND) if self.read_L else None
        for t0 in range(self.first_row, N, rows):
            t1 = min(t0 + rows, N)
            block_ZYD = (query_BAND[:, :, t0:t1].float() * scaling).reshape(B * G, -1, D)
            scores_BARN = torch.bmm(block_ZYD, key_ZDN[:, :, :t1]).view(B, A, t1 - t0, t1)
            scores_BARN[..., t0:].masked_fill_(ahead_RR[: t1 - t0, : t1 - t0], -torch.inf)
            shares_BARN = (
                torch.softmax(scores_BARN, dim=-1) if sinks_A is None else beside_sinks(scores_BARN, sinks_A[:, None])
            )
            attention_BARC = shares_BARN[..., self.first : self.end]
            if t1 > self.shortest:
                attention_BARC.masked_fill_(self.is_padding_BN[:, None, t0:t1, None], 0)
            self._add_block(attention_BARC, norms_BGC, t0)
        self.heads += A
        self.layer += 1

    def _squared_norms(self, value_BGND: Tensor) -> Tensor:
        """Squared norms of the values [B, G, C], relative to their mean over each trace's own thought."""
        norms_BGC = value_BGND[:, :, self.first : self.end].float().square().sum(dim=-1)
        own_B1C = self.is_own_BC[:, None]
        mean_BG1 = (norms_BGC * own_B1C).sum(dim=-1, keepdim=True) / own_B1C.sum(dim=-1, keepdim=True)
        return norms_BGC / mean_BG1

    def _add_block(self, attention_BARC: Tensor, norms_BGC: Tensor | None, t0: int) -> None:
        """Reduce the attention of the rows from t0 on to the labelled columns; column c is token first + c."""
        B, _, R, C = attention_BARC.shape
        if t0 + R > self.first_answer_row:
            answer_row = max(t0, self.first_answer_row)
            read_BRC = attention_BARC[:, :, answer_row - t0 :].sum(dim=1)
            self.answer_BC[:, :C] += (self.answer_rows_BN[:, None, answer_row : t0 + R] @ read_BRC)[:, 0]
        self.largest.add(attention_BARC.amax(dim=1), t0 - self.first)
        if norms_BGC is not None:
            squares_BGRC = attention_BARC.square_().view(B, norms_BGC.shape[1], -1, R, C).sum(dim=2)
            squares_BGRC *= norms_BGC[:, :, None, :C]
            self.read_L[self.layer].add(squares_BGRC.view(B, self.sets_of_layer, -1, R, C).sum(dim=2), t0 - self.first)

    def labels(self) -> list[Labels]:
        largest_BCH = torch.stack(self.largest.of_H, dim=-1).cpu()
        sets_BXCH = largest_BCH[:, None]
        if self.read_L:
            read_BXCH = torch.cat([torch.stack(far.of_H, dim=-1) for far in self.read_L], dim=1).cpu()
            sets_BXCH = read_BXCH / (1 + read_BXCH)
        answer_BC = self.answer_BC.cpu()
        found = []
        for index, thought in enumerate(self.thoughts):
            own = slice(thought.prompt_tokens - self.first, thought.thought_end - self.first)
            answer_T = answer_BC[index, own]
            rows_and_heads = self.heads * thought.answer_rows
            answer_T = answer_T / rows_and_heads if rows_and_heads else torch.full_like(answer_T, torch.nan)
            values_TC = torch.cat([answer_T[:, None], largest_BCH[index, own]], dim=1)
            sets_XTH = sets_BXCH[index, :, own].clone(memory_format=torch.contiguous_format)
            found.append(Labels(values_TC=values_TC, sets_XTH=sets_XTH))
        return found


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    s_aux: Tensor | None = None,
    label_tally: _LabelAccumulator,
    **_: Any,
) -> tuple[Tensor, None]:
    """The output of a layer [B, N, A, D]; of one that holds slots its attention is added to the tally on the way."""
    scale, shape = query.shape[-1] ** -0.5 if scaling is None else scaling, label_tally.shape
    assert isinstance(module.layer_idx, int)
    holds_slots = shape.in_slots(module.layer_idx) is not None
    if holds_slots:
        label_tally.add_layer(query, key, value, scale, s_aux)
    return causal_attention(
        query, key, value, scale, window=None if holds_slots else shape.window, sinks_A=s_aux
    ).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION_NAME, _attention)


def check_horizons(horizons: Sequence[int]) -> tuple[int, ...]:
    """The horizons as a tuple: at least one, whole numbers of tokens >= 1, strictly ascending; else UsageError."""
    checked = tuple(horizons)
    if not checked or checked[0] < 1 or any(a >= b for a, b in pairwise(checked)):
        raise UsageError(f"horizons must be ascending numbers of tokens >= 1, at least one, got {list(checked)}")
    return checked


def label_trace(
    model: Any,
    token_ids: Sequence[int],
    prompt_tokens: int,
    thought_end: int,
    horizons: Sequence[int] = HORIZONS,
    *,
    granularity: Granularity = "model",
    block_bytes: int | None = None,
) -> Labels:
    """Labels of the thought tokens `token_ids[prompt_tokens:thought_end]`; see `Thought` and `label_batch`."""
    thought = Thought(token_ids=token_ids, prompt_tokens=prompt_tokens, thought_end=thought_end)
    return label_batch(model, [thought], horizons, granularity=granularity, block_bytes=block_bytes)[0]


@torch.no_grad()
def label_batch(
    model: Any,
    thoughts: Sequence[Thought],
    horizons: Sequence[int] = HORIZONS,
    *,
    granularity: Granularity = "model",
    block_bytes: int | None = None,
) -> list[Labels]:
    """Labels of each thought, from one forward pass over all of their traces, padded to the longest.

    Args:
        model: a causal language model of transformers, in the dtype and on the device to compute with.
        thoughts: at least one; best of traces of like length.
        horizons: distances in tokens, ascending.
        granularity: of the index sets: one for the whole model, one a layer, or one a KV head ("head").
        block_bytes: bound on the two fp32 buffers of a block of rows; one row of each trace is the least (8 bytes per
            trace, head and token). None: 8 MiB on a CPU, 512 MiB elsewhere.

    Beside the weights this needs the block, the activations of one layer for B x N tokens, and nothing of N x N. The
    attention implementation of the model is changed for the duration of the call.

    Raises:
        UsageError: the horizons are not ascending.
        UnsupportedModel: the bounded cache cannot serve it (see `leanthink.models.loading.check_supported`).
    """
    check_supported(model.config)
    distances = check_horizons(horizons)
    device: torch.device = model.device
    if block_bytes is None:
        block_bytes = BLOCK_BYTES.get(device.type, BLOCK_BYTES["cuda"])
    tally = _LabelAccumulator(
        thoughts,
        horizons=distances,
        shape=kv_shape(model.config),
        granularity=granularity,
        block_bytes=block_bytes,
        device=device,
    )
    ids_BN = padded([thought.token_ids for thought in thoughts], device)
    with switched_to(ATTENTION_NAME, model.config), for_any_length():
        # The body without the language-model head: logits of a long trace would be the largest tensor of all.
        model.base_model(input_ids=ids_BN, use_cache=False, label_tally=tally)
    return tally.labels()
