"""What an importance predictor sees of a token: its final hidden state and what the middle layer made of it.

The final state says what comes next; the middle layer still knows what the token itself is for.

N tokens   M hidden size   F = 2 M   R rows   T consecutive tokens of each row   O offsets
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
    from leanthink.policies import Policy

# Hidden states that are scored at once, of however many rows: with what the predictor of `horizon` makes of them they
# add up to 2.4 times as much to the peak of memory.
MAX_GATHERED_BYTES = 2**28


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


def gather_hidden_states(cache: SlotCache, rows_R: Tensor, offsets: tuple[int, ...]) -> Tensor:
    """What the cache keeps of one token of each row and of those after it at `offsets`, [R, O, F].

    The token is the one `offsets[-1]` before the row's last. Before so many thought tokens are written it is another
    one; that is of the prompt, or gone.
    """
    assert offsets[-1] < cache.requirements.hidden_states
    back_O = constant(tuple(offset - offsets[-1] - 1 for offset in offsets), rows_R.device)
    return _gather(cache, rows_R[:, None], cache.next_positions[rows_R][:, None] + back_O)


def gather_consecutive(cache: SlotCache, rows_R: Tensor, count: int) -> Tensor:
    """What the cache keeps of the last T = `count` tokens of each row, oldest first, [T, R, F].

    Of these, too, some are others before so many thought tokens are written.
    """
    assert count <= cache.requirements.hidden_states
    back_T = constant(tuple(range(-count, 0)), rows_R.device)
    return _gather(cache, rows_R, cache.next_positions[rows_R] + back_T[:, None])


def _gather(cache: SlotCache, rows: Tensor, positions: Tensor) -> Tensor:
    """Of these positions of these rows, [..., F]: by one index, so that whole states are copied and not each number."""
    size = cache.requirements.hidden_states
    at = rows * size + positions % size
    return cache.hidden_states.flatten(0, 1).index_select(0, at.flatten()).view(*at.shape, -1)


def rows_scored_together(policy: Policy, state: Tensor) -> int:
    """Of how many rows tokens are scored at once: at least of one; `state` is of one token, [F]."""
    tokens = len(policy.offsets) if policy.stride == 1 else policy.offsets[-1] + policy.stride
    return max(1, MAX_GATHERED_BYTES // (tokens * state.nbytes))
