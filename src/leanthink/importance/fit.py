"""Fits an importance predictor to labelled traces, measures it on held-out ones and writes the sidecar.

Shapes: N tokens of a batch, T tokens of a trace, S tokens seen, W tokens that the predictor sees of each, F state size,
C channels (1 for `answer`, H for `horizon`), X index sets, Y = X C.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from leanthink.data.traces.trace import Trace, check_unique
from leanthink.importance.dataset import Examples, gather, split_by_problem, usable
from leanthink.importance.fit_config import FitConfig, loss, lr_schedule, targets
from leanthink.importance.held_out_metrics import counted, measure
from leanthink.importance.label_file import LabelFile
from leanthink.importance.predictor_comparison import compare_with, read_compared
from leanthink.models.predictor import HorizonHead, Predictor, made_ready, offsets_below, save_predictor, usual_width
from leanthink.models.predictor_compatibility import base_shape
from leanthink.utils.errors import UsageError, unknown
from leanthink.utils.file_writing import held

LEAST_REACHED = 0.01  # of the tokens: a horizon that fewer reach is learned worse than the one before it serves
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A fitted predictor, ready to use, and what the sidecar says of it."""

    predictor: Predictor
    data: dict[str, Any]
    metrics: dict[str, Any]


def fit(
    model: Any,
    traces: Sequence[Trace],
    labels: LabelFile,
    config: FitConfig,
    *,
    out_path: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    compare: str | os.PathLike[str] | None = None,
) -> Fitted:
    """Fit a predictor for `model`; with `out_path` also write it there.

    Needs one forward pass per trace, and memory for tokens x 2 x hidden size numbers in the model's dtype, twice:
    `tokens_per_trace` bounds it. It is the device's where half of what is free there holds them, else main memory.
    `progress(stage, done, total)` is called for the stages "read" and "fit".
    `compare` is the file of another predictor, of this model or of a relative; `metrics["compared"]` then has both on
    the same held-out traces, at the horizons that both have, and how far their top shares agree.

    Raises:
        UsageError: another process writes to `out_path`; two traces of one key, or no usable trace; a horizon that was
            not labelled or that no trace to fit to reaches; too few problems to hold any out, a fit that diverges; or
            none is held out to measure `compare` on, or it has another target, granularity or transform, or no horizon
            of the fresh one's.
        PredictorMismatch: the labels belong to another model, or `compare` does not fit this one.
        CannotWrite: there is no room for the predictor; one that was there is unharmed.
    """
    if out_path is None:
        return _fit(model, traces, labels, config, out_path, progress, compare)
    with held(Path(out_path)):
        return _fit(model, traces, labels, config, out_path, progress, compare)


def _fit(
    model: Any,
    traces: Sequence[Trace],
    labels: LabelFile,
    config: FitConfig,
    out_path: str | os.PathLike[str] | None,
    progress: Progress | None,
    compare: str | os.PathLike[str] | None,
) -> Fitted:
    """`fit`, where nobody else writes to the same file."""
    check_unique(traces)
    kept = usable(traces, labels, only_correct=config.only_correct, need_answer=config.target == "answer")
    fitted_to, held_out = split_by_problem(kept, share=config.val_share, seed=config.seed)
    columns, config = _columns(fitted_to, labels, config)
    other = None if compare is None else read_compared(compare, model, labels.fingerprint, config)
    examples = _read(model, [*fitted_to, *held_out], labels, config, columns, progress)
    train, val = examples[: len(fitted_to)], examples[len(fitted_to) :]
    predictor, train_loss = _train(model, train, config, progress)
    metrics = {"train_loss": train_loss, **measure(predictor, val, config)}
    if other is not None:
        other_val = val
        if other.predictor.offsets != predictor.offsets:  # it sees other tokens of each
            as_other = replace(config, offsets=other.predictor.offsets)
            other_val = _read(model, held_out, labels, as_other, columns, None)
        metrics["compared"] = compare_with(other, other_val, predictor, val, config)
    data = {
        "model": kept[0].model,
        "traces": len(train),
        "tokens": sum(len(example.labels_TY) for example in train),
        "thought_tokens": fmean(_ranked_tokens(trace, labels) for trace in fitted_to),
        "answer_from": labels.answer_from,
        "recipe": asdict(config) | {"lr": config.learning_rate},
        "torch": torch.__version__,
        "device": model.device.type,
    }
    if out_path is not None:
        save_predictor(
            predictor,
            out_path,
            base_fingerprint=labels.fingerprint,
            base_shape=base_shape(model.config),
            data=data,
            metrics=metrics,
        )
    predictor.thought_tokens = data["thought_tokens"]
    return Fitted(predictor=made_ready(predictor, model), data=data, metrics=metrics)


def _ranked_tokens(trace: Trace, labels: LabelFile) -> int:
    """How many of its tokens a policy ranks: the thought, or all where no tag ends it."""
    return trace.thought_tokens if labels.answer_from is None else len(trace.token_ids)


def _read(
    model: Any,
    traces: Sequence[Trace],
    labels: LabelFile,
    config: FitConfig,
    columns: list[int],
    progress: Progress | None,
) -> list[Examples]:
    """The examples of each trace, as the config's predictor sees them, with these columns of labels."""
    examples = gather(
        model,
        traces,
        labels,
        offsets=config.offsets or (0,),
        tokens_per_trace=config.tokens_per_trace,
        seed=config.seed,
        by_set=config.granularity != "model",
        progress=None if progress is None else lambda done, total: progress("read", done, total),
    )
    return [replace(example, labels_TY=example.labels_TY[:, columns]) for example in examples]


def _columns(traces: Sequence[Trace], labels: LabelFile, config: FitConfig) -> tuple[list[int], FitConfig]:
    """Label columns to fit, and the config with its horizons, offsets and granularity spelt out."""
    if config.target == "answer":
        return [0], replace(config, granularity="model")
    reached = {horizon: _reached(traces, horizon) for horizon in labels.horizons}
    enough = LEAST_REACHED * sum(trace.thought_tokens for trace in traces)
    horizons = config.horizons
    if horizons is None:
        horizons = tuple(h for h in labels.horizons if reached[h] >= enough) or labels.horizons[:1]
    for horizon in horizons:
        if horizon not in labels.horizons:
            raise unknown("horizon", horizon, labels.horizons)
        if not reached[horizon]:
            raise UsageError(
                f"horizon {horizon}: no thought token of the {len(traces)} traces to fit to has so many tokens after "
                "it; leave it out, or collect longer traces"
            )
    if not horizons or list(horizons) != sorted(set(horizons)):
        raise UsageError(f"horizons must be ascending, at least one, got {list(horizons)}")
    offsets = offsets_below(horizons[0]) if config.offsets is None else config.offsets
    granularity = config.granularity or labels.granularity
    spelt_out = replace(config, horizons=horizons, offsets=offsets, granularity=granularity)
    chosen = [labels.horizons.index(horizon) for horizon in horizons]
    if granularity == "model":
        return [1 + index for index in chosen], spelt_out
    if granularity != labels.granularity:
        raise UsageError(
            f"a fit of granularity {granularity!r} needs labels of it, these are of {labels.granularity!r}: "
            "label the traces again with that granularity"
        )
    num_sets = len(labels.sets_of(traces[0]))
    return [first * len(labels.horizons) + index for first in range(num_sets) for index in chosen], spelt_out


def _reached(traces: Sequence[Trace], horizon: int) -> int:
    """How many thought tokens have at least so many tokens after them."""
    return sum(min(trace.thought_tokens, max(0, len(trace.token_ids) - horizon)) for trace in traces)


def _roomiest(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors on the device if they fill at most half of what is free there, else where they are."""
    size = sum(tensor.nbytes for tensor in tensors)
    fits = device.type != "cuda" or 2 * size <= _free_bytes(device)
    return [tensor.to(device) for tensor in tensors] if fits else list(tensors)


def _free_bytes(device: torch.device) -> int:
    """What a GPU has free, with what PyTorch holds back of earlier work, such as the cache that wrote the traces."""
    held_back = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held_back


def _seen_NW(examples: Sequence[Examples]) -> Tensor:
    """Where in the states of all examples, put together, each token and its followers are, int64 [N, W]."""
    starts = accumulate((len(example.states_NF) for example in examples[:-1]), initial=0)
    return torch.cat([example.seen_TW + start for example, start in zip(examples, starts, strict=True)])


def _train(
    model: Any, examples: Sequence[Examples], config: FitConfig, progress: Progress | None
) -> tuple[Predictor, float]:
    """Fit in float32 on the model's device, then round the weights to what the file will hold.

    Returns the predictor and the mean loss of the last hundred steps. Raises UsageError where that is not finite.
    """
    held = [
        torch.cat([example.states_NF for example in examples]),
        _seen_NW(examples),
        torch.cat([example.labels_TY for example in examples]),
        counted(examples, config),
    ]
    states_SF, seen_NW, labels_NY, counts_NC = _roomiest(held, model.device)
    num_sets = labels_NY.shape[1] // counts_NC.shape[1]
    predictor = _fresh(config, model.config.hidden_size, num_sets, states_SF).to(model.device)
    betas = (0.9, 0.95) if config.target == "answer" else (0.9, 0.999)
    optimiser = torch.optim.AdamW(predictor.parameters(), lr=config.learning_rate, betas=betas, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: lr_schedule(step, config.steps, config.target))
    draws = torch.Generator().manual_seed(config.seed)
    recent: list[Tensor] = []
    for step in range(config.steps):
        rows_N = torch.randint(len(labels_NY), (config.batch,), generator=draws).to(labels_NY.device)
        batch = (states_SF[seen_NW[rows_N]], labels_NY[rows_N], counts_NC[rows_N])
        states_NWF, wanted_NY, counts = (part.to(model.device) for part in batch)
        step_loss = loss(predictor(states_NWF), targets(wanted_NY, config), counts, config.target)
        optimiser.zero_grad()
        step_loss.backward()  # type: ignore[no-untyped-call]
        if config.target == "answer":
            torch.nn.utils.clip_grad_norm_(predictor.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        recent = [*recent[-99:], step_loss.detach()]
        if progress is not None:
            progress("fit", step + 1, config.steps)
    mean_loss = float(torch.stack(recent).mean())
    if not isfinite(mean_loss):
        raise UsageError(
            f"the loss is {mean_loss} after {config.steps} steps: give a lower lr than {config.learning_rate:g}, or "
            "load the model in another dtype if its states are not finite"
        )
    return predictor.to(torch.bfloat16).float(), mean_loss


def _fresh(config: FitConfig, hidden_size: int, num_sets: int, states_SF: Tensor) -> Predictor:
    """A predictor with the seed's initial weights, drawn without disturbing the caller's random numbers."""
    assert config.granularity is not None, "the columns were chosen by it"
    width = config.width or usual_width(hidden_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        predictor = Predictor(
            target=config.target,
            hidden_size=hidden_size,
            horizons=config.horizons or (),
            offsets=config.offsets or (0,),
            granularity=config.granularity,
            num_sets=num_sets,
            width=width if config.target == "horizon" else None,
        )
    if isinstance(predictor.head, HorizonHead):
        predictor.head.standardise(states_SF)
    return predictor
