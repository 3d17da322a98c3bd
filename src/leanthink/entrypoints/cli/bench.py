"""`leanthink bench`: what the engine costs on this machine, against transformers and vLLM."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from leanthink.engine.bench.options import FLAG_OF, FLAGS, LARGE, SMALL, options_from
from leanthink.engine.bench.report import check_new
from leanthink.entrypoints.cli import options
from leanthink.entrypoints.cli.grouped import add_command
from leanthink.entrypoints.cli.help import option
from leanthink.entrypoints.cli.output import print_json, say
from leanthink.entrypoints.cli.progress import ProgressBar

EXAMPLES = (
    "leanthink bench --parts roofline,decode,cpu",
    "leanthink bench --shape qwen2.5-1.5b --parts prompts --prompts 256x128,64x2048",
    "leanthink bench --shape llama-3.1-8b --batch 20 --slots 4000,8000 --out bench-llama",
)


def _flag(name: str, default: object = None, metavar: str | None = None) -> Any:
    return option(f"--{FLAG_OF.get(name, name)}", about=FLAGS[name], default=default, metavar=metavar)


def _told(value: Any) -> Any:
    """A default as it would be written on the command line."""
    parts = [part if isinstance(part, tuple) else (part,) for part in value] if isinstance(value, tuple) else [(value,)]
    return ",".join("x".join(map(str, part)) for part in parts)


def _sized(name: str, metavar: str) -> Any:
    """A flag whose default depends on the model's size."""
    large, small = (defaults[name.replace("-", "_")] for defaults in (LARGE, SMALL))
    told = [_told(value) for value in (large, small)]
    return _flag(name, f"{told[0]}; tiny or on a CPU {told[1]}", metavar)


Out = Annotated[Path, option("--out", about="Folder for result and picture.", default="bench-out", metavar="FOLDER")]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "bench", "Measure speed and memory, as shares of what the device allows.", EXAMPLES, command)


def command(
    shape: Annotated[str | None, _flag("shape", "tiny", "NAME")] = None,
    model: Annotated[str | None, _flag("model", None, "NAME")] = None,
    parts: Annotated[str | None, _flag("parts", "all", "A,B,...")] = None,
    batch: Annotated[str | None, _flag("batch", "a grid by size", "N,...")] = None,
    slots: Annotated[str | None, _flag("slots", "a grid by size", "N,...")] = None,
    cells: Annotated[str | None, _flag("cells", None, "NxN,...")] = None,
    steps: Annotated[str | None, _sized("steps", "N")] = None,
    prompt: Annotated[str | None, _sized("prompt", "TOKENS")] = None,
    prompts: Annotated[str | None, _sized("prompts", "NxN,...")] = None,
    prefill_tokens: Annotated[str | None, _sized("prefill-tokens", "TOKENS")] = None,
    output: Annotated[str | None, _sized("output", "TOKENS")] = None,
    kv_cache_dtype: Annotated[str | None, _flag("kv-cache-dtype", "auto", "auto|fp8")] = None,
    kv_gib: Annotated[str | None, _sized("kv-gib", "GIB")] = None,
    budgets: Annotated[str | None, _sized("budgets", "N,...")] = None,
    interval: Annotated[str | None, _sized("interval", "TOKENS")] = None,
    requests: Annotated[str | None, _sized("requests", "N")] = None,
    seconds: Annotated[str | None, _flag("seconds", None, "SECONDS")] = None,
    out: Out = Path("bench-out"),
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Check the flags and the outputs, then measure; the result is written after every part."""
    check_new(out, overwrite=overwrite)
    given = {"shape": shape, "model": model, "parts": parts, "batch": batch, "slots": slots, "cells": cells,
             "steps": steps, "prompt": prompt, "prompts": prompts, "prefill-tokens": prefill_tokens,
             "output": output, "kv-cache-dtype": kv_cache_dtype, "kv-gib": kv_gib, "budgets": budgets,
             "interval": interval, "requests": requests, "seconds": seconds, "device": device}  # fmt: skip
    chosen = options_from(given)
    from leanthink.engine.bench.run import run_into

    words = " ".join(["leanthink", *sys.argv[1:]])
    tell = say if as_json else partial(print, flush=True)
    with ProgressBar() as bar:

        def progress(part: str, done: int, total: int, share: float) -> None:
            bar.update(f"parts, {part}", done, total, share=share)

        result = run_into(out, chosen, command=words, tell=tell, progress=progress)
    if as_json:
        print_json(result)
