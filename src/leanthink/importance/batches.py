"""Which sequences share a forward pass, and how they lie in it: of like length, padded on the right.

Attention is causal, so what stands behind the end of a sequence changes nothing in it, and no mask is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from leanthink.utils.errors import UsageError

# Most tokens of a batch with its padding; a longer sequence goes alone. A small model keeps a GPU busy only with many
# traces at once, and a CPU with one.
BATCH_TOKENS = {"cpu": 1, "cuda": 16384}


def batches_by_length(lengths: Sequence[int], device: torch.device) -> Iterator[list[int]]:
    """Indices of the sequences that go together, longest first: what does not fit into memory fails at once."""
    most_tokens = BATCH_TOKENS.get(device.type, BATCH_TOKENS["cuda"])
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if batch and (len(batch) + 1) * lengths[batch[0]] > most_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def check_vocabulary(sequences: Iterable[Sequence[int]], vocab_size: int) -> None:
    """Refuse tokens that the model does not have (UsageError): it would look them up where there is nothing."""
    largest = max((max(ids, default=0) for ids in sequences), default=0)
    if largest >= vocab_size:
        raise UsageError(
            f"the traces have the token {largest}, and the model's vocabulary has {vocab_size}: "
            "give the model that wrote them"
        )


def padded(sequences: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """The token ids side by side, [B, N] with N the longest length; any token would do for the padding, it is 0."""
    longest = max(map(len, sequences))
    return torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in sequences], device=device)
