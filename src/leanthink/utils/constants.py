"""Small constants of the device's work, copied there once: every further copy would wait for what runs there."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


@cache
def constant(values: tuple[int, ...], device: torch.device) -> Tensor:
    """These numbers on the device, int64; not to be written to."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)
