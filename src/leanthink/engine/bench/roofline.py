"""Part `roofline`: what memory alone allows.

A decode step must read once the weights, of experts those that it uses, every held slot and the rings of sliding
windows; the states of linear and state-space layers it reads and writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from leanthink.engine.bench.measure import seconds, spread

if TYPE_CHECKING:
    from leanthink.engine.bench.fixture import Fixture

COPY_BYTES = {"cpu": 64 * 2**20, "cuda": 4 * 2**30}  # far more than any cache holds


def roofline(fixture: Fixture) -> dict[str, Any]:
    """Copy bandwidth of the device, and with it the shortest possible step of each cell."""
    return {
        "copy_bytes_per_second": fixture.bandwidth,
        "copied_bytes": COPY_BYTES[fixture.device.type],
        "cells": [
            {"batch": batch, "slots": slots, "floor_ms": fixture.roofline_ms(batch, batch * slots)}
            for batch, slots in fixture.options.cells
        ],
    }


def copy_bandwidth(device: torch.device, repeats: int) -> dict[str, float]:
    """Bytes per second, read and written ones, of a large copy on the device."""
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), device) for _ in range(5 * repeats + 1)][1:]
    return spread([2 * source.nbytes / time for time in times])
