"""Rows without padding on the left, so that attention needs no mask.

TRL pads prompts on the left and responses on the right, and gives the model a mask of both. A mask costs the fast
kernels of attention and, worse, leaves the padded positions of a row nothing to attend to: in bfloat16 on an H100
gradients became NaN after some steps, and with them all weights. Moved to the left, the tokens of a row attend to
tokens of that row alone, because attention is causal; what the padding on the right computes, nobody reads.

N rows   L columns as TRL pads them   W columns of the longest row   K last columns, those of responses
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

UNSCORED = -100  # a label that transformers skips


@dataclass(frozen=True, kw_only=True)
class LeftAligned:
    """Rows whose tokens begin in the first column, and how to get back.

    Attributes:
        ids_NW: tokens, then padding.
        labels_NW: those of responses, else UNSCORED.
        column_NW: where each stood, of `columns`.
        columns: L.
    """

    ids_NW: Tensor
    labels_NW: Tensor
    column_NW: Tensor
    columns: int

    def back(self, values_NW: Tensor) -> Tensor:
        """A number for each token to where TRL has the token, 0 for padding, [N, L]."""
        return values_NW.new_zeros(len(values_NW), self.columns).scatter(1, self.column_NW, values_NW)


def left_aligned(ids_NL: Tensor, mask_NL: Tensor, responses: int) -> LeftAligned:
    """Move the tokens of each row together, in their order.

    Args:
        ids_NL: prompts, padded on the left, and responses, padded on the right.
        mask_NL: 1 for tokens, 0 for padding.
        responses: K.
    """
    tokens = max(1, int(mask_NL.sum(dim=1).max()))
    column_NW = mask_NL.argsort(dim=1, descending=True, stable=True)[:, :tokens]
    ids_NW = ids_NL.gather(1, column_NW)
    scored_NL = mask_NL.bool()
    scored_NL[:, : ids_NL.shape[1] - responses] = False
    labels_NW = torch.where(scored_NL.gather(1, column_NW), ids_NW, UNSCORED)
    return LeftAligned(ids_NW=ids_NW, labels_NW=labels_NW, column_NW=column_NW, columns=ids_NL.shape[1])
