"""Packs documents end to end into flat training batches, in worker processes, in an order fixed by the seed."""

# T tokens of a batch   N offsets
from __future__ import annotations

import multiprocessing
import queue
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanthink.models.tiny.tokenizer import PAD, Document, encode_document
from leanthink.utils.errors import LeanThinkError, UsageError

Sample = Callable[[random.Random], Document]
NO_TARGET = -100


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """The fixed shape of a batch: `tokens` in one row, at most `documents` in it, each at most `max_length` tokens."""

    tokens: int
    documents: int
    max_length: int

    def __post_init__(self) -> None:
        if not 2 <= self.max_length <= self.tokens:
            raise UsageError(f"a batch of {self.tokens} tokens cannot hold a document of {self.max_length}: use more")
        if self.room < 1:
            raise UsageError(f"{self.documents} documents leave no room for the padding: use {1 - self.room} more")

    @property
    def room(self) -> int:
        """Documents a batch may hold: the rest of the offsets cut the padding into pieces of `max_length`."""
        return self.documents - -(-self.tokens // self.max_length)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One packed row. Padding is cut into documents of its own, because every token must lie in one."""

    rows_3T: NDArray[np.int16]  # token ids; targets, NO_TARGET where nothing is learned; positions in the document
    offsets_N: NDArray[np.int32]  # [documents + 1], starts at 0, ends at T, repeats T once the documents are used up
    num_documents: int
    num_tokens: int  # without padding
    num_targets: int
    num_too_long: int  # documents passed over since the worker's last batch: longer than max_length


def packed(documents: Iterator[Document], shape: BatchShape) -> Iterator[Batch]:
    """Fill each batch with the next documents until one does not fit; that one opens the next batch."""
    held: list[tuple[NDArray[np.uint16], int]] = []
    used = too_long = 0
    for document in documents:
        ids_T, given = encode_document(document)
        if len(ids_T) > shape.max_length:
            too_long += 1
            continue
        if used + len(ids_T) > shape.tokens or len(held) == shape.room:
            yield laid_out(held, shape, too_long)
            held, used, too_long = [], 0, 0
        held.append((ids_T, given))
        used += len(ids_T)
    if held:
        yield laid_out(held, shape, too_long)


def laid_out(held: list[tuple[NDArray[np.uint16], int]], shape: BatchShape, num_too_long: int = 0) -> Batch:
    """The batch that holds these encoded documents in this order."""
    lengths = [len(ids_T) for ids_T, _ in held]
    used = sum(lengths)
    padding = shape.tokens - used
    pieces = [min(shape.max_length, padding - at) for at in range(0, padding, shape.max_length)]
    lengths_N = np.zeros(shape.documents, np.int32)
    lengths_N[: len(lengths) + len(pieces)] = lengths + pieces
    offsets_N = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths_N, dtype=np.int32)])
    rows_3T = np.full((3, shape.tokens), PAD, np.int16)
    np.concatenate([ids_T for ids_T, _ in held], out=rows_3T[0, :used], casting="unsafe")
    rows_3T[1, :-1] = rows_3T[0, 1:]
    rows_3T[1, used - 1 :] = NO_TARGET
    for (_, given), start in zip(held, offsets_N.tolist(), strict=False):
        rows_3T[1, start : start + given - 1] = NO_TARGET
        rows_3T[1, start - 1] = NO_TARGET
    rows_3T[2] = np.arange(shape.tokens) - np.repeat(offsets_N[:-1], lengths_N)
    return Batch(
        rows_3T=rows_3T,
        offsets_N=offsets_N,
        num_documents=len(held),
        num_tokens=used,
        num_targets=int((rows_3T[1] != NO_TARGET).sum()),
        num_too_long=num_too_long,
    )


def sampled(sample: Sample, seed: str) -> Iterator[Document]:
    """Documents without end."""
    rng = random.Random(seed)
    while True:
        yield sample(rng)


@contextmanager
def batch_stream(sample: Sample, shape: BatchShape, *, seed: int, num_workers: int) -> Iterator[Iterator[Batch]]:
    """Batches without end, from each worker in turn, each worker with a random stream of its own.

    Workers are forked: open this before the process touches CUDA. With 0 workers this process does the work.

    Raises:
        LeanThinkError: (while iterating) a worker failed; its traceback is in the message.
    """
    if num_workers == 0:
        yield packed(sampled(sample, f"{seed}/0"), shape)
        return
    context = multiprocessing.get_context("fork")
    queues = [context.Queue(maxsize=4) for _ in range(num_workers)]
    processes = [
        context.Process(target=_work, args=(sample, shape, f"{seed}/{index}", results), daemon=True)
        for index, results in enumerate(queues)
    ]
    for process in processes:
        process.start()
    try:
        yield _in_turn(queues, processes)
    finally:
        for process in processes:
            process.kill()
            process.join()
        for results in queues:
            results.cancel_join_thread()
            results.close()


def _work(sample: Sample, shape: BatchShape, seed: str, results: Any) -> None:
    try:
        for batch in packed(sampled(sample, seed), shape):
            results.put(batch)
    except Exception:  # the process edge: the parent raises what happened here
        results.put(traceback.format_exc())


def _in_turn(queues: list[Any], processes: list[Any]) -> Iterator[Batch]:
    while True:
        for results, process in zip(queues, processes, strict=True):
            yield _next(results, process)


def _next(results: Any, process: Any) -> Batch:
    while True:
        try:
            given = results.get(timeout=5)
        except queue.Empty:
            if not process.is_alive():
                raise LeanThinkError(f"a data worker died with exit code {process.exitcode}") from None
            continue
        if isinstance(given, Batch):
            return given
        raise LeanThinkError(f"a data worker failed:\n{given}")
