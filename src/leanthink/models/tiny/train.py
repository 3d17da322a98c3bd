"""Trains the embedded reasoner from scratch on one GPU: `python -m leanthink.models.tiny.train --out DIR --minutes 7`.

With `--init tiny` it goes on from the shipped weights. With `--error-rate-if-unchecked 0.02 --style-skew 0.5` the
teacher errs where nothing is checked, and writes one kind of problem otherwise than another: a start for reinforcement
learning.

Activation memory, counted for 8 layers of width 384: a token keeps about 16 kB a layer for the backward pass (residual
2 x 1.5 kB in fp32; norms, rotated and repeated q, k, v and the attention's output 6 kB; gate, up and their product
7 kB in bf16), so 163840 tokens take about 21 GB, and the logits half a gigabyte: no checkpointing on an 80 GB card.
"""

# T tokens of a batch   N offsets
from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer

from leanthink.data.tasks.teacher import TeacherConfig, sample_document
from leanthink.models.tiny import load_tiny
from leanthink.models.tiny.checkpoint import save_run
from leanthink.models.tiny.model import MAX_LENGTH, PACKED, build_model, packed_logits, tiny_config
from leanthink.models.tiny.muon import BatchedMuon
from leanthink.models.tiny.sequence_packing import NO_TARGET, Batch, BatchShape, Sample, batch_stream
from leanthink.models.tiny.smoke_test import smoke_test
from leanthink.utils.device import to_device
from leanthink.utils.errors import UsageError, unknown

LossSum = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Everything that decides a run; each field is a flag of the command line."""

    out: Path | None = None
    init: str | None = None  # weights to go on from: tiny, or a folder that an earlier run wrote; None: fresh ones
    terse_share: float = TeacherConfig.terse_share  # these five: see leanthink.data.tasks.teacher.TeacherConfig
    brisk_share: float = TeacherConfig.brisk_share
    style_skew: float = TeacherConfig.style_skew
    error_rate_if_unchecked: float = TeacherConfig.error_rate_if_unchecked
    errors_from_level: int = TeacherConfig.errors_from_level
    minutes: float = 7.0
    steps: int | None = None
    tokens_per_step: int = 163840
    micro_batches: int = 1
    max_documents: int = 512
    optimizer: Literal["muon", "adamw"] = "muon"
    lr: float = 3e-3
    adamw_lr: float = 3e-3
    weight_decay: float = 0.1
    warmup_steps: int = 100
    decay_share: float = 0.4
    clip: float = 1.0
    seed: int = 0
    workers: int = max(1, (os.cpu_count() or 3) - 2)
    log_every: int = 100
    compile: bool = True

    def __post_init__(self) -> None:
        if self.optimizer not in ("muon", "adamw"):
            raise unknown("optimizer", self.optimizer, ("muon", "adamw"))
        if self.micro_batches < 1 or self.tokens_per_step % self.micro_batches:
            raise UsageError(f"{self.tokens_per_step} tokens do not divide into {self.micro_batches} micro batches")
        positive = ("minutes", "tokens_per_step", "lr", "adamw_lr", "warmup_steps", "decay_share", "clip", "log_every")
        for name in positive:
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} must be more than 0, not {getattr(self, name)}")
        assert self.teacher_config  # checks itself
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"steps must be at least 1, not {self.steps}")

    @property
    def teacher_config(self) -> TeacherConfig:
        """Of the teacher."""
        return TeacherConfig(**{one.name: getattr(self, one.name) for one in fields(TeacherConfig)})

    def batch_shape(self, max_length: int = MAX_LENGTH) -> BatchShape:
        """The shape of one micro batch."""
        tokens = self.tokens_per_step // self.micro_batches
        return BatchShape(tokens=tokens, documents=self.max_documents, max_length=min(max_length, tokens))


@dataclass(kw_only=True)
class Record:
    """What a run did, for its provenance."""

    steps: int = 0
    tokens: int = 0
    documents: int = 0
    documents_too_long: int = 0
    seconds: float = 0.0
    data_wait_seconds: float = 0.0
    final_loss: float = math.nan
    log: list[dict[str, float]] = field(default_factory=list)


def lr_factor(step: int, share: float, options: Options) -> float:
    """Linear warm-up over steps, then 1, then a linear fall to 0 over the last `decay_share` of the run."""
    return min(1.0, (step + 1) / options.warmup_steps, max(0.0, 1 - share) / options.decay_share)


def first_model(options: Options) -> nn.Module:
    """Fresh weights, or those of `init`, in fp32 on the CPU. Raises DamagedFile."""
    if options.init is None:
        return build_model(tiny_config(), options.seed)
    model, _ = load_tiny(dtype=torch.float32, folder=None if options.init == "tiny" else Path(options.init))
    model.set_attn_implementation(PACKED)
    return model  # type: ignore[no-any-return]


def make_optimizers(model: nn.Module, options: Options) -> list[Optimizer]:
    """Muon for the layers' matrices and AdamW for the embedding and the norms, or AdamW for everything."""
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    taken = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in taken]

    def adamw(params: list[nn.Parameter], lr: float, weight_decay: float) -> Optimizer:
        return AdamW(params, lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True)

    first: Optimizer = (
        BatchedMuon(hidden, lr=options.lr, weight_decay=options.weight_decay)
        if options.optimizer == "muon"
        else adamw(hidden, options.adamw_lr, options.weight_decay)
    )
    optimizers = [first, adamw(rest, options.adamw_lr, 0.0)]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
    return optimizers


def make_loss_sum(model: nn.Module, device: torch.device, *, compiled: bool) -> LossSum:
    """(rows [3, T], offsets [N]) -> cross entropy summed over the learned tokens; bf16 autocast on a GPU."""

    def loss_sum(rows_3T: Tensor, offsets_N: Tensor) -> Tensor:
        ids_T, targets_T, positions_T = rows_3T.long().unbind()
        with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
            logits = packed_logits(model, ids_T, positions_T, offsets_N)
        return cross_entropy(logits.float(), targets_T, ignore_index=NO_TARGET, reduction="sum")

    return torch.compile(loss_sum, dynamic=False) if compiled else loss_sum


def sent(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """The batch on the device; on a GPU by a copy from pinned memory that runs beside the computation."""
    return to_device(torch.from_numpy(batch.rows_3T), device), to_device(torch.from_numpy(batch.offsets_N), device)


def train_step(
    model: nn.Module, loss_sum: LossSum, batches: list[Batch], optimizers: list[Optimizer], factor: float, clip: float
) -> Tensor:
    """One update; returns the mean loss per learned token, still on the device (reading it waits for the GPU)."""
    device = next(model.parameters()).device
    num_targets = sum(batch.num_targets for batch in batches)
    total = torch.zeros((), device=device)
    for batch in batches:
        loss = loss_sum(*sent(batch, device)) / num_targets
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total


def train(model: nn.Module, batches: Iterator[Batch], options: Options, device: torch.device) -> Record:
    """Train `model`, on `device`, until the steps or the minutes are used up. Compilation counts as time."""
    start = time.perf_counter()
    optimizers = make_optimizers(model, options)
    loss_sum = make_loss_sum(model, device, compiled=options.compile)
    record, window = Record(), []
    while True:
        record.seconds = time.perf_counter() - start
        share = record.steps / options.steps if options.steps else record.seconds / 60 / options.minutes
        if share >= 1:
            break
        taken = [next(batches) for _ in range(options.micro_batches)]
        record.data_wait_seconds += time.perf_counter() - start - record.seconds
        factor = lr_factor(record.steps, share, options)
        window.append(train_step(model, loss_sum, taken, optimizers, factor, options.clip))
        record.steps += 1
        record.tokens += sum(batch.num_tokens for batch in taken)
        record.documents += sum(batch.num_documents for batch in taken)
        record.documents_too_long += sum(batch.num_too_long for batch in taken)
        if record.steps % options.log_every == 0 or record.steps in (1, 10):
            _log(record, window, factor, start)
            window = []
    if window:
        _log(record, window, 0.0, start)
    return record


def _log(record: Record, window: list[Tensor], factor: float, start: float) -> None:
    record.final_loss = torch.stack(window).mean().item()
    record.seconds = time.perf_counter() - start
    last = record.log[-1] if record.log else dict.fromkeys(("seconds", "tokens", "data_wait_seconds"), 0.0)
    entry = {
        "step": record.steps,
        "seconds": round(record.seconds, 2),
        "loss": round(record.final_loss, 5),
        "tokens": record.tokens,
        "tokens_per_second": round((record.tokens - last["tokens"]) / (record.seconds - last["seconds"] + 1e-9)),
        "lr_factor": round(factor, 4),
        "data_wait_seconds": round(record.data_wait_seconds, 3),
        "data_wait_ms_per_step": round(1e3 * (record.data_wait_seconds - last["data_wait_seconds"]) / len(window), 2),
    }
    record.log.append(entry)
    print("  ".join(f"{name} {value}" for name, value in entry.items()), file=sys.stderr, flush=True)


def parse(arguments: list[str]) -> tuple[Options, bool]:
    """The options, and whether only the smoke test is wanted."""
    parser = argparse.ArgumentParser(
        prog="python -m leanthink.models.tiny.train", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--smoke", action="store_true", help="check the GPU kernels, run 5 steps and stop")
    types: dict[str, Any] = {"out": Path, "init": str, "steps": int, "optimizer": str}
    for option in fields(Options):
        flag = "--" + option.name.replace("_", "-")
        if option.name == "compile":
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=True)
        else:
            kind = types.get(option.name, type(option.default))
            parser.add_argument(flag, type=kind, default=option.default, help=f"default: {option.default}")
    given = vars(parser.parse_args(arguments))
    smoke = bool(given.pop("smoke"))
    options = Options(**given)
    if options.out is None and not smoke:
        raise UsageError("--out DIR is missing: say where the weights go")
    return options, smoke


def main(arguments: list[str] | None = None, sample: Sample | None = None) -> None:
    """The command line; `sample` stands in for the teacher in tests."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options, smoke = parse(arguments)
    if sample is None:
        sample = partial(sample_document, teacher_config=options.teacher_config)
    torch.set_float32_matmul_precision("high")
    # The workers are forked here, before anything touches CUDA.
    with batch_stream(sample, options.batch_shape(), seed=options.seed, num_workers=options.workers) as batches:
        if smoke:
            smoke_test(batches, options, train)
            return
        next_batch = next(batches)  # the teacher runs: start the clock after it has warmed up
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = first_model(options).to(device).train()
        record = train(model, _with_first(next_batch, batches), options, device)
    assert options.out is not None
    save_run(model, options.out, record, options, arguments)


def _with_first(first: Batch, rest: Iterator[Batch]) -> Iterator[Batch]:
    yield first
    yield from rest


if __name__ == "__main__":
    main()
