"""Exact attention labels of one trace: how much is each thought token read by the answer, and from how far away.

Attention is computed in fp32, one block of query rows at a time, and reduced at once to a few numbers per token, so no
N x N matrix is ever held. Shapes: N tokens of prompt and generated text, T thought tokens, H horizons, R rows of a
block, C columns (keys) that the block sees, Q query heads per KV head (G of them), D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from leanthink.attention import switched_to
from leanthink.errors import UsageError
from leanthink.load import check_supported

ATTENTION_NAME = "leanthink_labels"
HORIZONS = (32, 64, 128, 256, 512, 1024)
# Blocks that stay inside the processor's cache are fastest on a CPU; a GPU wants long rows of work.
BLOCK_BYTES = {"cpu": 8 << 20, "cuda": 512 << 20}


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels of one trace, on the CPU.

    values_TC: float32 [T, 1 + H]. Column 0 is the mean attention that a token gets over all layers, heads and answer
        rows (the label of arXiv 2601.18383), NaN where the trace has no answer; column 1 + h is the largest attention
        in any layer and head from any row at least `horizons[h]` tokens later, 0 where there is no such row.
    """

    values_TC: Tensor


class _Tally:
    """What every layer adds to: running label sums of one trace, on the model's device."""

    def __init__(
        self, *, first: int, end: int, horizons: tuple[int, ...], block_bytes: int, device: torch.device
    ) -> None:
        self.first, self.end = first, end  # the thought is [first, end); `</think>`, where there is one, is at `end`
        self.horizons, self.block_bytes = horizons, block_bytes
        self.answer_T = torch.zeros(end - first, device=device)
        self.farthest_HT = torch.zeros(len(self.horizons), end - first, device=device)
        self.rows_and_heads = 0

    def add_layer(self, query_GQND: Tensor, key_GND: Tensor, scaling: float) -> None:
        """Add one layer: queries [G, Q, N, D], keys [G, N, D], G KV heads with Q query heads each."""
        G, Q, N, D = query_GQND.shape
        key_GDN = key_GND.float().transpose(1, 2)
        # A block takes its scores and their softmax, both fp32.
        rows = max(1, self.block_bytes // (8 * G * Q * N))
        # Rows that are too near the thought's first token, or before it, read nothing that is labelled.
        start = min(self.first + self.horizons[0], self.end + 1)
        for t0 in range(start, N, rows):
            t1 = min(t0 + rows, N)
            block_GXD = (query_GQND[:, :, t0:t1].float() * scaling).reshape(G, Q * (t1 - t0), D)
            scores = torch.bmm(block_GXD, key_GDN[:, :, :t1]).view(G * Q, t1 - t0, t1)
            ahead = torch.ones(t1 - t0, t1 - t0, dtype=torch.bool, device=scores.device).triu_(1)
            scores[:, :, t0:].masked_fill_(ahead, -torch.inf)
            self._add_block(torch.softmax(scores, dim=-1)[:, :, self.first : self.end], t0, t1)
        self.rows_and_heads += G * Q * max(0, N - self.end - 1)

    def _add_block(self, attention_QRC: Tensor, t0: int, t1: int) -> None:
        """Reduce the attention of rows [t0, t1) to the thought columns; column c is token first + c."""
        columns = attention_QRC.shape[-1]
        if t1 > self.end + 1:
            answer_rows = attention_QRC[:, max(0, self.end + 1 - t0) :]
            self.answer_T[:columns] += answer_rows.sum(dim=(0, 1))
        largest_RC = attention_QRC.amax(dim=0)
        largest_C = largest_RC.amax(dim=0)
        for h, distance in enumerate(self.horizons):
            # Columns before `whole` are far enough from every row of the block, those from `none` on from no row.
            whole = min(max(t0 - distance + 1 - self.first, 0), columns)
            none = min(max(t1 - distance - self.first, 0), columns)
            farthest_T = self.farthest_HT[h]
            torch.maximum(farthest_T[:whole], largest_C[:whole], out=farthest_T[:whole])
            if none > whole:
                row_R1 = torch.arange(t0, t1, device=largest_C.device)[:, None]
                token_C = torch.arange(self.first + whole, self.first + none, device=largest_C.device)
                band_C = largest_RC[:, whole:none].masked_fill(row_R1 - token_C < distance, 0).amax(dim=0)
                torch.maximum(farthest_T[whole:none], band_C, out=farthest_T[whole:none])

    def labels_TC(self) -> Tensor:
        answer_T = self.answer_T / self.rows_and_heads if self.rows_and_heads else self.answer_T.fill_(torch.nan)
        return torch.cat([answer_T[:, None], self.farthest_HT.T], dim=1).cpu()


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    label_tally: _Tally,
    **options: Any,
) -> tuple[Tensor, None]:
    """The stock SDPA output of a layer [1, N, heads, D], with its attention added to the tally on the way."""
    _, heads, N, D = query.shape
    groups = key.shape[1]
    scale = D**-0.5 if scaling is None else scaling
    label_tally.add_layer(query[0].view(groups, heads // groups, N, D), key[0], scale)
    stock = AttentionInterface()["sdpa"]
    output, _ = stock(module, query, key, value, attention_mask, scaling=scale, **options)
    return output, None


AttentionInterface.register(ATTENTION_NAME, _attention)


def check_horizons(horizons: Sequence[int]) -> tuple[int, ...]:
    """The horizons as a tuple: at least one, whole numbers of tokens >= 1, strictly ascending; else UsageError."""
    checked = tuple(horizons)
    if not checked or checked[0] < 1 or any(a >= b for a, b in pairwise(checked)):
        raise UsageError(f"horizons must be ascending numbers of tokens >= 1, at least one, got {list(checked)}")
    return checked


@torch.no_grad()
def label_trace(
    model: Any,
    token_ids: Sequence[int],
    prompt_tokens: int,
    thought_end: int,
    horizons: Sequence[int] = HORIZONS,
    *,
    block_bytes: int | None = None,
) -> Labels:
    """Labels of the thought tokens `token_ids[prompt_tokens:thought_end]`, from one forward pass over all of the trace.

    Args:
        model: a causal language model of transformers, in the dtype and on the device to compute with.
        token_ids: prompt and generated tokens, N of them.
        prompt_tokens: number of prompt tokens, where the thought begins.
        thought_end: index of `</think>`; N where the thought was never closed, and then there are no answer rows.
        horizons: distances in tokens, ascending.
        block_bytes: bound on the two fp32 buffers of a block of rows; one row is the least (8 bytes per head and
            token). None: 8 MiB on a CPU, 512 MiB elsewhere.

    Beside the weights this needs the block, the activations of one layer for N tokens, and nothing of N x N. The
    attention implementation of the model is changed for the duration of the call.

    Raises:
        UsageError: the bounds do not lie in the trace or the horizons are not ascending.
        UnsupportedModel: layers without full attention (see `leanthink.load.check_supported`).
    """
    check_supported(model.config)
    distances = check_horizons(horizons)
    N = len(token_ids)
    if not 0 <= prompt_tokens < thought_end <= N:
        raise UsageError(
            f"no thought to label: 0 <= prompt_tokens < thought_end <= number of tokens must hold, "
            f"got {prompt_tokens}, {thought_end} and {N}"
        )
    device: torch.device = model.device
    if block_bytes is None:
        block_bytes = BLOCK_BYTES.get(device.type, BLOCK_BYTES["cuda"])
    tally = _Tally(first=prompt_tokens, end=thought_end, horizons=distances, block_bytes=block_bytes, device=device)
    ids_1N = torch.tensor([list(token_ids)], device=device)
    with switched_to(ATTENTION_NAME, model.config):
        # The body without the language-model head: logits of a long trace would be the largest tensor of all.
        model.base_model(input_ids=ids_1N, use_cache=False, label_tally=tally)
    return Labels(values_TC=tally.labels_TC())
