"""Runs the parts of a measurement, one after the other, on one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers.utils import logging

from leanthink.engine.bench.breakdown import breakdown
from leanthink.engine.bench.cpu import cpu
from leanthink.engine.bench.decode import decode
from leanthink.engine.bench.eviction import eviction
from leanthink.engine.bench.fixture import Fixture, free_memory
from leanthink.engine.bench.hf_baseline import hf_baseline
from leanthink.engine.bench.latency import latency
from leanthink.engine.bench.memory import memory
from leanthink.engine.bench.options import Options
from leanthink.engine.bench.plot import can_draw, draw
from leanthink.engine.bench.prompts import prompts
from leanthink.engine.bench.report import PICTURE, lines, write_result
from leanthink.engine.bench.roofline import roofline
from leanthink.engine.bench.sets import sets
from leanthink.engine.bench.throughput import throughput
from leanthink.engine.bench.vllm_baseline import vllm_baseline
from leanthink.utils.provenance import provenance_record

MEASURES: dict[str, Callable[[Fixture], dict[str, Any]]] = {
    "roofline": roofline,
    "decode": decode,
    "prompts": prompts,
    "breakdown": breakdown,
    "eviction": eviction,
    "sets": sets,
    "throughput": throughput,
    "hf-baseline": hf_baseline,
    "latency": latency,
    "memory": memory,
    "cpu": cpu,
    "vllm-baseline": vllm_baseline,
}
# Of each part, roughly, for the embedded reasoner on one core: what an estimate of the time left is made of.
SECONDS = {
    "roofline": 1,
    "decode": 3,
    "prompts": 12,
    "breakdown": 3,
    "eviction": 11,
    "sets": 40,
    "throughput": 10,
    "hf-baseline": 23,
    "latency": 10,
    "memory": 1,
    "cpu": 360,
    "vllm-baseline": 60,
}
OnStart = Callable[[str], None]
OnPart = Callable[[str, dict[str, Any]], None]
Tell = Callable[[str], None]
Progress = Callable[[str, int, int, float], None]


def run(
    options: Options, *, command: str | None = None, on_start: OnStart | None = None, on_part: OnPart | None = None
) -> dict[str, Any]:
    """Measure the parts that `options` names, in the order of PARTS; returns one document in plain JSON types.

    Args:
        options: what to measure; see `options_from`.
        command: the command line, for the provenance; None: that of this process.
        on_start: called with a part's name before it is measured.
        on_part: called with a part's name and the document so far as soon as that part is there.

    Raises:
        UsageError: there is no such model, or the device has no room for it.
    """
    logging.disable_progress_bar()
    fixture = Fixture(options)
    result: dict[str, Any] = {
        "birth": provenance_record(options.device, command),
        "options": asdict(options),
        "model": fixture.facts(),
        "parts": fixture.parts,
    }
    for part in options.in_order:
        if on_start is not None:
            on_start(part)
        result["parts"][part] = MEASURES[part](fixture)
        free_memory()
        if on_part is not None:
            on_part(part, result)
    return result


def run_into(
    folder: Path, options: Options, *, command: str | None = None, tell: Tell, progress: Progress | None = None
) -> dict[str, Any]:
    """`run`, with the result written after every part, its lines told, and a picture at the end if it can be drawn.

    `progress(part, done, total, share)` is called before each part and at the end: parts done, of how many, and the
    share of the time that they should have taken.
    """
    parts = options.in_order

    def on_start(part: str) -> None:
        if progress is not None:
            done = parts.index(part)
            progress(part, done, len(parts), _seconds(parts[:done]) / _seconds(parts))

    def on_part(part: str, result: dict[str, Any]) -> None:
        write_result(result, folder)
        for line in lines(part, result["parts"][part]):
            tell(line)

    result = run(options, command=command, on_start=on_start, on_part=on_part)
    if progress is not None:
        progress(parts[-1], len(parts), len(parts), 1.0)
    if not can_draw():
        tell("no picture: that needs matplotlib, pip install 'leanthink[eval]'")
    elif draw(result, folder / PICTURE):
        tell(f"drawn: {folder / PICTURE}")
    return result


def _seconds(parts: Sequence[str]) -> float:
    return sum(SECONDS[part] for part in parts)
