"""What an importance predictor sees of a token: its final hidden state and what the middle layer made of it.

The final state says what comes next; the middle layer still knows what the token itself is for. Shapes: N tokens,
M hidden size, F = 2 M.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def state_size(model: Any) -> int:
    """F: how many numbers the states of one token are."""
    size: int = 2 * model.config.hidden_size
    return size


@contextmanager
def middle_outputs(model: Any) -> Iterator[list[Tensor]]:
    """A list that gets the middle layer's output, [..., M], of each forward inside; of L layers that is L // 2."""
    caught: list[Tensor] = []

    def catch(_module: Any, _inputs: Any, output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)

    layers = model.base_model.layers
    hook = layers[len(layers) // 2].register_forward_hook(catch)
    try:
        yield caught
    finally:
        hook.remove()


def joined(final_NM: Tensor, middle_NM: Tensor) -> Tensor:
    """The states of these tokens, [N, F]: final first, so that whoever needs only that takes the first half."""
    return torch.cat([final_NM, middle_NM], dim=-1)
