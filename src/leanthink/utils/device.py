"""The devices that this machine has, and how what the host knows comes to one."""

from __future__ import annotations

import torch
from torch import Tensor

from leanthink.utils.errors import UsageError, unknown


def devices() -> tuple[str, ...]:
    """The names that can be given: cpu, and where CUDA sees a GPU cuda and each by its number."""
    count = torch.cuda.device_count()
    return ("cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count)))


def check_device(device: str) -> None:
    """Raise UsageError unless this machine has this device."""
    if device in devices():
        return
    if device.partition(":")[0] == "cuda" and len(devices()) == 1:
        why = "this PyTorch is built without CUDA" if torch.version.cuda is None else "PyTorch finds no GPU"
        raise UsageError(
            f"device {device!r} is not there: {why} ({torch.__version__}); give cpu, or leave the device out"
        )
    raise unknown("device", device, devices())


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """This tensor on the device, copied from page-locked memory: any other copy would wait for a GPU."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
