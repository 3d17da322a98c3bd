"""Parameters that one input is multiplied with, laid side by side in memory: one product then serves them all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def fuse(parameters: Sequence[Tensor]) -> Tensor:
    """The rows of all parameters as one tensor that is their memory: what changes one in place changes the other.

    Unless they lie so already, they are moved there: each keeps its identity, shape and numbers, and the model costs no
    more memory than before.

    Args:
        parameters: of one dtype on one device, alike in all dims but the first.
    """
    if not all(_follows(after, before) for before, after in pairwise(parameters)):
        with torch.inference_mode(False), torch.no_grad():  # parameters made in inference mode could not be trained
            whole = torch.cat([parameter.detach() for parameter in parameters])
            parts = torch.split(whole, [len(parameter) for parameter in parameters])
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.data = part
    first = parameters[0].detach()
    rows = sum(map(len, parameters))
    return first.as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())


def _follows(after: Tensor, before: Tensor) -> bool:
    """Whether one begins in memory where the other ends."""
    one_storage = after.untyped_storage().data_ptr() == before.untyped_storage().data_ptr()
    contiguous = before.is_contiguous() and after.is_contiguous()
    return one_storage and contiguous and after.storage_offset() == before.storage_offset() + before.numel()
