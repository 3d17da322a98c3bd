"""What to measure: the flags of `leanthink bench`, their defaults by size of the model, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from leanthink.engine.bench.shapes import SHAPES
from leanthink.utils.errors import UsageError, unknown

PARTS = (
    *("roofline", "decode", "prompts", "breakdown", "eviction", "sets", "throughput", "hf-baseline", "latency"),
    *("memory", "cpu", "vllm-baseline"),  # the last one ends the use of the model
)
FLAGS = {
    "shape": f"Random weights of a known shape: {', '.join(SHAPES)}; or the embedded reasoner: tiny.",
    "model": "Instead of a shape: a folder, a .gguf file or a hub id.",
    "parts": f"What to measure, out of {','.join(PARTS)}.",
    "batch": "Rows that decode together; with --slots, every pair is measured.",
    "slots": "Slots that each row holds.",
    "cells": "Instead of --batch and --slots: chosen pairs of them, such as 20x4000,64x3000.",
    "steps": "Measured steps.",
    "prompt": "Tokens of a prompt.",
    "prompts": "For prompts: pairs of how many at once and of how many tokens, such as 256x128,64x2048.",
    "prefill-tokens": "Prompt tokens that a step feeds at most, for prompts.",
    "output": "Tokens of an output, for throughput.",
    "kv-cache-dtype": "Keys and values: auto, as the model; fp8, a byte each.",
    "kv-gib": "Memory for keys and values, for throughput and latency.",
    "budgets": "Thought slots that stay, for throughput.",
    "interval": "Tokens that gather between evictions.",
    "requests": "How many requests throughput and latency serve.",
    "seconds": "For throughput: serve for so long, new requests in place of finished ones, instead of --steps.",
    "device": "cpu, cuda or cuda:N.",
}
FLAG_OF = {"interval": "eviction-interval"}  # where an option is called otherwise than its field
PAIRS = {
    "cells": "of rows and slots such as 20x4000,64x3000",
    "prompts": "of prompts and tokens of each such as 256x128,64x2048",
}
LARGE: dict[str, Any] = {
    "cells": ((20, 4000), (20, 8000), (64, 3000)),
    "steps": 50,
    "prompt": 512,
    "prompts": ((256, 128), (64, 2048)),
    "prefill_tokens": 8192,
    "output": 16384,
    "kv_gib": 40.0,
    "budgets": (4096, 2048, 1024),
    "interval": 128,
    "requests": 256,
}
SMALL: dict[str, Any] = {  # for the embedded reasoner, and for any model on a CPU
    "cells": ((4, 200), (16, 400)),
    "steps": 20,
    "prompt": 64,
    "prompts": ((16, 64), (4, 256)),
    "prefill_tokens": 2048,
    "output": 1024,
    "kv_gib": 0.08,  # vLLM rounds each request up to blocks
    "budgets": (256, 128, 64),
    "interval": 32,
    "requests": 16,
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure, checked. `LARGE` and `SMALL` say what the fields are that have no default here.

    Attributes:
        shape: a name out of SHAPES, or "tiny"; None with `model`.
        model: what `leanthink.load` takes; None with `shape`.
        device: where it runs.
        parts: names out of PARTS.
        cells: pairs of rows that decode together and slots that each holds.
        steps: measured steps.
        prompt: tokens of a prompt.
        prompts: pairs of prompts that come at once and the tokens of each, in `prompts`.
        prefill_tokens: prompt tokens that a step feeds at most, in `prompts`.
        output: tokens of an output, in `throughput`.
        kv_gib: memory for keys and values, in `throughput` and `latency`.
        kv_cache_dtype: what engines hold them in, as of `Engine`.
        budgets: thought slots that stay, in `throughput`.
        interval: tokens that gather between evictions.
        requests: how many requests are served in `latency`, and to how many `throughput` extrapolates.
        latency_output: tokens of an output, in `latency`.
        warm_up: steps before the measured ones.
        repeats: of what is measured as a whole.
        cpu_batches: prompts at a time, in `cpu`.
        cpu_output: tokens of an output, in `cpu`.
        seed: of all that is random.
        seconds: how long `throughput` serves; None: for `steps` steps.
    """

    shape: str | None
    model: str | None
    device: str
    parts: tuple[str, ...]
    cells: tuple[tuple[int, int], ...]
    steps: int
    prompt: int
    prompts: tuple[tuple[int, int], ...]
    prefill_tokens: int
    output: int
    kv_gib: float
    budgets: tuple[int, ...]
    interval: int
    requests: int
    kv_cache_dtype: str = "auto"
    latency_output: int = 128
    warm_up: int = 10
    repeats: int = 3
    cpu_batches: tuple[int, ...] = (1, 16, 64)
    cpu_output: int = 200
    seed: int = 0
    seconds: float | None = None

    def __post_init__(self) -> None:
        from leanthink.engine.quantized_kv import check_kv_cache_dtype  # which loads torch

        for part in self.parts:
            if part not in PARTS:
                raise unknown("part", part, PARTS)
        check_kv_cache_dtype(self.kv_cache_dtype)
        if (self.shape is None) == (self.model is None):
            raise UsageError(f"--shape {self.shape} and --model {self.model}: give exactly one of them")
        if self.shape not in (None, "tiny", *SHAPES):
            raise unknown("shape", self.shape, (*SHAPES, "tiny"))
        least = {"steps": 3, "prompt": 2, "prefill_tokens": 1, "output": 2, "interval": 2, "requests": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UsageError(f"--{_flag(name)} {getattr(self, name)}: must be at least {bound}")
        if self.kv_gib <= 0 or min(self.budgets) < 1 or min(map(min, self.cells)) < 1:
            raise UsageError(f"--kv-gib {self.kv_gib}, --budgets {self.budgets}, cells {self.cells}: must be above 0")
        if self.seconds is not None and self.seconds <= 0:
            raise UsageError(f"--seconds {self.seconds}: must be above 0")
        if any(many < 1 or tokens < 2 for many, tokens in self.prompts):
            raise UsageError(f"--prompts {self.prompts}: must be at least 1 prompt of 2 tokens")
        if "throughput" in self.parts and self.output <= self.steps + self.warm_up:
            raise UsageError(
                f"--output {self.output}: must be more than --steps {self.steps} and {self.warm_up} before"
            )

    @property
    def in_order(self) -> tuple[str, ...]:
        """The parts in the order of PARTS, each once."""
        return tuple(part for part in PARTS if part in self.parts)

    def seed_of_prompt(self, index: int) -> int:
        """What the random prompt of this index is drawn with: in vLLM's process the same as here, and not `seed`."""
        return self.seed + 1 + index

    @property
    def whole_intervals(self) -> int:
        """Steps of a measurement that must contain as many evictions of every row: whole intervals."""
        return -(-self.steps // self.interval) * self.interval


def options_from(flags: Mapping[str, str | None]) -> Options:
    """Options for the flags of FLAGS as they were written; what is None or missing has the default of the model's size.

    Raises:
        UsageError: a flag does not say what it should, or names a shape or part that is not there.
    """
    from leanthink.utils.device import check_device, devices

    given = {name.replace("-", "_"): text for name, text in flags.items() if text is not None}
    shape, model = given.pop("shape", None), given.pop("model", None)
    shape = "tiny" if shape is None and model is None else shape
    device = given.pop("device", None) or devices()[:2][-1]
    check_device(device)
    parts = given.pop("parts", None)
    chosen = dict(SMALL if device == "cpu" or shape == "tiny" else LARGE)
    chosen["kv_cache_dtype"] = given.pop("kv_cache_dtype", "auto")
    if ("batch" in given) != ("slots" in given):
        raise UsageError("--batch and --slots belong together: give both, or none of them")
    if "cells" in given and "batch" in given:
        raise UsageError("--cells and --batch both say which rows: give one of them")
    for name in {"cells", "prompts"} & set(given):
        chosen[name] = _pairs(name, given.pop(name))
    if "batch" in given:
        pairs = product(_numbers("batch", given.pop("batch")), _numbers("slots", given.pop("slots")))
        chosen["cells"] = tuple(pairs)
    for name, text in given.items():
        numbers = _numbers(name, text, float if name in ("kv_gib", "seconds") else int)
        if name != "budgets" and len(numbers) != 1:
            raise UsageError(f"--{_flag(name)} {text!r}: give one number")
        chosen[name] = numbers if name == "budgets" else numbers[0]
    names = PARTS if parts is None else tuple(parts.split(","))
    return Options(shape=shape, model=model, device=device, parts=names, **chosen)


def _numbers(name: str, text: str, kind: type = int) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--{_flag(name)} {text!r}: give numbers with commas between them") from None


def _pairs(name: str, text: str) -> tuple[tuple[int, int], ...]:
    try:
        pairs = [tuple(map(int, pair.split("x"))) for pair in text.split(",")]
        return tuple((many, each) for many, each in pairs)
    except ValueError:
        raise UsageError(f"--{name} {text!r}: give pairs {PAIRS[name]}") from None


def _flag(name: str) -> str:
    """The option of this field, as it is written."""
    return FLAG_OF.get(name, name.replace("_", "-"))
