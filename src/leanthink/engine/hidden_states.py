"""What an importance predictor sees of a token: its final hidden state and what the middle layer made of it.

The final state says what comes next; the middle layer still knows what the token itself is for.

N tokens   M hidden size   F = 2 M   R rows   S tokens of each row   O offsets
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leanthink.utils.constants import constant

if TYPE_CHECKING:
    from leanthink.engine.cache import SlotCache


def hidden_state_size(model: Any) -> int:
    """F: how many numbers the hidden states of one token are."""
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
    """The hidden states of these tokens, [N, F]: final first, so that whoever needs only that takes the first half."""
    return torch.cat([final_NM, middle_NM], dim=-1)


def store_hidden_states(cache: SlotCache, hidden_NF: Tensor) -> None:
    """Keep the hidden states of the tokens just fed, in a ring for each row: position p at p modulo its size."""
    at_N = (cache.next_positions[: len(hidden_NF)] - 1) % cache.requirements.hidden_states
    cache.hidden_states[cache.row_N, at_N] = hidden_NF


def gather_hidden_states(cache: SlotCache, rows_R: Tensor, offsets: tuple[int, ...], count: int = 1) -> Tensor:
    """What the cache keeps of S = `count` tokens of each row, [R, S, O, F]: the hidden states of those at `offsets`.

    The first token is the one `offsets[-1]` before the row's last, each further one is a token older. Before so many
    thought tokens are written they are another token's; that token is of the prompt, or gone.
    """
    size, late = cache.requirements.hidden_states, offsets[-1]
    assert late + count <= size
    age_S = constant(tuple(range(count)), rows_R.device)
    token_RS = cache.next_positions[rows_R][:, None] - 1 - late - age_S
    at_RSO = (token_RS[..., None] + constant(offsets, rows_R.device)) % size
    # By one index: whole states are copied, where two would be looked up for each of their numbers.
    at_M = (rows_R[:, None, None] * size + at_RSO).flatten()
    return cache.hidden_states.flatten(0, 1).index_select(0, at_M).view(*at_RSO.shape, cache.hidden_states.shape[2])
