"""The model under test and what every part needs of it: engines, requests, and the numbers that parts share."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import AutoTokenizer

from leanthink.data.think_tags import ThinkTags
from leanthink.engine.bench.options import Options
from leanthink.engine.bench.roofline import copy_bandwidth
from leanthink.engine.bench.weights import build, config_of, never_ending, step_bytes
from leanthink.engine.engine import Engine
from leanthink.engine.quantized_kv import kv_dtype
from leanthink.engine.request import Request, make_request
from leanthink.engine.sampling import Sampling
from leanthink.models.context import context_of
from leanthink.models.loading import kv_shape, load
from leanthink.models.predictor import Predictor, offsets_below, usual_width
from leanthink.models.tiny import weights_path
from leanthink.policies import Policy, make_policy
from leanthink.policies.budget import Budget
from leanthink.policies.policy import Granularity
from leanthink.utils.errors import UsageError

HORIZONS = (32, 64, 128, 256, 512, 1024)
NO_TAGS = ThinkTags(open_id=None, close_id=None)  # nobody ends, and nobody leaves the thought


class Fixture:
    """One model, loaded once, that never ends a text.

    Attributes:
        cells: decode results by (rows, slots), for the parts that compare with them.
        horizon_cells: eviction results likewise, the budget in place of slots.
        parts: what was found so far, by part.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        model, self.tokenizer = _model_and_tokenizer(options)
        self.model = never_ending(model)
        self.device: torch.device = self.model.device
        self.dtype: torch.dtype = self.model.dtype
        self.shape = kv_shape(self.model.config)
        self.bytes_per_slot = self.shape.bytes_per_slot(kv_dtype(options.kv_cache_dtype, self.dtype))
        self.cells: dict[tuple[int, int], dict[str, Any]] = {}
        self.horizon_cells: dict[tuple[int, int], dict[str, Any]] = {}
        self.parts: dict[str, dict[str, Any]] = {}
        self.full = make_policy("full")

    @cached_property
    def bandwidth(self) -> dict[str, float]:
        """Bytes per second of a copy on the device, as of `leanthink.engine.bench.measure.spread`."""
        return copy_bandwidth(self.device, self.options.repeats)

    @cached_property
    def horizon(self) -> Policy:
        """The policy `horizon` with one index set."""
        return self.horizon_of("model", HORIZONS)

    def horizon_of(self, granularity: Granularity, horizons: tuple[int, ...]) -> Policy:
        """The policy `horizon` with a predictor of random weights: it costs what one of `leanthink fit` costs."""
        torch.manual_seed(self.options.seed)
        with self.device:
            predictor = Predictor(
                target="horizon",
                hidden_size=self.model.config.hidden_size,
                horizons=horizons,
                offsets=offsets_below(horizons[0]),
                granularity=granularity,
                num_sets=self.shape.num_sets(granularity),
                width=usual_width(self.model.config.hidden_size),
            )
        return make_policy("horizon", predictor.to(self.dtype).eval().requires_grad_(False))

    def facts(self) -> dict[str, Any]:
        """What the numbers refer to; the weights that are read are those of a step of one row."""
        return {
            "name": self.options.shape or self.options.model,
            "dtype": str(self.dtype).removeprefix("torch."),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "weight_bytes": sum(parameter.nbytes for parameter in self.model.parameters()),
            "weight_bytes_read_per_step": round(step_bytes(self.model)),
            "kv_bytes_per_slot": self.bytes_per_slot,
        }

    def roofline_ms(self, rows: float, held: float) -> float:
        """Milliseconds that a step of so many rows takes at least: what it must read and write, at copy bandwidth.

        Read once: the weights (see `step_bytes`), `held` slots of all rows together, and of layers with a sliding
        window each row's ring. Read and written: what linear and state-space layers keep of each row.
        """
        shape = self.shape
        states = 0 if shape.states is None else shape.states.bytes_per_request(self.dtype)
        rings: float = shape.bytes_per_state(self.dtype) - states
        if shape.window:
            rings *= min(1.0, held / rows / shape.window)  # as of rows that have evicted nothing
        moved = step_bytes(self.model, rows) + held * self.bytes_per_slot + rows * (rings + 2 * states)
        return 1e3 * moved / self.bandwidth["median"]

    def prompt(self, tokens: int, index: int) -> tuple[int, ...]:
        """A random prompt, another for every index."""
        return tuple(random_prompt(self.model.config.vocab_size, tokens, self.options.seed_of_prompt(index)))

    def request(
        self, index: int, *, prompt: int, output: int, slots: int | None, policy: Policy | None = None
    ) -> Request:
        """Full for `slots` None, else under `policy` with a budget of so many and an answer of the smallest bound.

        A policy of None stands for `horizon` with one set.
        """
        budget = None
        if slots is not None:
            budget = Budget(
                slots=slots, recent_window=min(32, slots), eviction_interval=self.options.interval, max_answer_slots=1
            )
        context = context_of(self.model.config)
        if prompt + output > context:
            raise UsageError(f"a prompt of {prompt} and {output} more tokens: this model's context ends at {context}")
        return make_request(
            index,
            self.prompt(prompt, index),
            policy=self.full if slots is None else policy or self.horizon,
            budget=budget,
            sampling=Sampling(max_new_tokens=output),
            context=context,
        )

    def engine(self, bounds: Sequence[int], *, slots: int | None = None, prefill_tokens: int | None = None) -> Engine:
        """An engine for requests of these bounds, with `slots` slots, None for just enough.

        On a CPU allocations have one size, as `leanthink.generate` has them. A repeated prompt is fed every time.
        """
        largest = max(bounds)
        fixed_size = largest if self.device.type == "cpu" else None
        room = slots or (sum(bounds) if fixed_size is None else largest * len(bounds))
        return Engine(
            self.model,
            self.tokenizer,
            slots=room,
            rows=len(bounds),
            row_slots=fixed_size,
            prefill_tokens=prefill_tokens,
            tags=NO_TAGS,
            ends=(),
            enable_prefix_caching=False,
            kv_cache_dtype=self.options.kv_cache_dtype,
        )


def random_prompt(vocabulary: int, tokens: int, seed: int) -> list[int]:
    """Token ids, another sequence for every seed."""
    chance = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(vocabulary, (tokens,), generator=chance).tolist()
    return ids


def _model_and_tokenizer(options: Options) -> tuple[Any, Any]:
    """Random weights speak through the embedded reasoner's tokenizer: their tokens mean nothing anyway."""
    on_cpu = options.device == "cpu"
    if options.shape in (None, "tiny"):
        return load(options.model or "tiny", device=options.device)
    assert options.shape is not None
    tokenizer = AutoTokenizer.from_pretrained(weights_path(), local_files_only=True)
    try:
        dtype = torch.float32 if on_cpu else torch.bfloat16
        return build(config_of(options.shape), options.device, dtype), tokenizer
    except torch.OutOfMemoryError as error:
        raise UsageError(f"{options.device} has no room for the weights of {options.shape}: {error}") from error


def attempt(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `measure` returns; if there is no room for it, what was missing: that is a result too."""
    try:
        return measure()
    except (torch.OutOfMemoryError, UsageError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        free_memory()


def free_memory() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
