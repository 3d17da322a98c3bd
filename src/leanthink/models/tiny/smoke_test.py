"""The check before a long run: the flash kernel against its reference implementation, then five training steps."""

# T tokens of one packed row   H query heads   K key/value heads   D head dimension   N offsets
from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leanthink.models.tiny.model import attend_flash, attend_masked, build_model, tiny_config
from leanthink.utils.errors import LeanThinkError

if TYPE_CHECKING:
    from leanthink.models.tiny.sequence_packing import Batch
    from leanthink.models.tiny.train import Options, Record

LENGTHS = (700, 1, 129, 0, 333, 128, 0, 0)  # zero-length documents as the padding of the offsets has them


def smoke_test(batches: Iterator[Batch], options: Options, train: Callable[..., Record]) -> None:
    """Raise unless the kernel agrees with its twin and five steps at the real shape give finite, falling losses."""
    if not torch.cuda.is_available():
        raise LeanThinkError("the smoke test needs a CUDA device, and torch sees none here")
    _say(f"relative errors of flash against masked attention (out, dq, dk, dv): {compare_attention('cuda')}")
    device = torch.device("cuda")
    model = build_model(tiny_config(), options.seed).to(device).train()
    record = train(model, batches, dataclasses.replace(options, steps=5, warmup_steps=5, log_every=1), device)
    losses = [entry["loss"] for entry in record.log]
    # A sampler that starts uniform over 264 ids has a loss of 5.6.
    if not (all(map(math.isfinite, losses)) and losses[-1] < losses[0] < 8):
        raise LeanThinkError(f"five training steps gave the losses {losses}")
    _say(f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB; smoke test passed")


def compare_attention(device: str) -> list[float]:
    """Relative errors of output and gradients, bf16 flash against fp32 masked; raises above 2 %."""
    generator = torch.Generator(device).manual_seed(0)
    total = sum(LENGTHS)
    offsets_N = torch.tensor([0, *LENGTHS], device=device).cumsum(0).to(torch.int32)
    inputs = [torch.randn(heads, total, 64, device=device, generator=generator) for heads in (6, 2, 2)]
    direction = torch.randn(total, 6, 64, device=device, generator=generator)

    def out_and_gradients(attend: object, dtype: torch.dtype) -> list[Tensor]:
        assert callable(attend)
        leaves = [tensor.bfloat16().to(dtype).requires_grad_() for tensor in inputs]
        out = attend(*leaves, offsets_N, 64**-0.5)
        return [out.detach(), *torch.autograd.grad(out, leaves, direction.bfloat16().to(dtype))]

    fast = out_and_gradients(attend_flash, torch.bfloat16)
    slow = out_and_gradients(attend_masked, torch.float32)
    errors = [((f.float() - s).norm() / s.norm()).item() for f, s in zip(fast, slow, strict=True)]
    if not all(error < 0.02 for error in errors):
        raise LeanThinkError(f"flash attention differs from masked attention: relative errors {errors}")
    return [round(error, 5) for error in errors]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
