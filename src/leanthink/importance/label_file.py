"""Labels of many traces in one safetensors file: written so that a stopped run goes on, read by fitting."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from leanthink.data.traces.trace import Trace, check_unique
from leanthink.policies.policy import GRANULARITIES, Granularity
from leanthink.utils.errors import DamagedFile, PredictorMismatch, UsageError, unknown
from leanthink.utils.file_reading import COUNT, STRING, Kind, check_kinds, is_int, is_number, parse_json, reading
from leanthink.utils.file_writing import held, replacing

if TYPE_CHECKING:
    from leanthink.importance.answer_start import AnswerFrom
    from leanthink.importance.inference_backend import InferenceBackend

VERSION = "2"
CURE = "label the traces anew"
KINDS = {
    "checksums": Kind("an object of integers", lambda given: isinstance(given, dict)),
    "horizons": Kind(
        "a list of integers >= 1 that ascend",
        lambda given: isinstance(given, list) and all(map(is_int, given)) and [0, *given] == sorted({0, *given}),
    ),
    "answer_from": Kind("a text, a share or null", lambda given: isinstance(given, str | None) or is_number(given)),
}
QUICK_SECONDS = 0.5  # to save a file, whose size then does not matter
SETS = "sets of "  # before a trace's key, for the labels of its index sets
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """The labels of a file.

    labels: for each trace key a float32 [T, 1 + H], see `leanthink.importance.labels.Labels`.
    checksums: for each trace key the `checksum` of the trace that was labelled.
    granularity: of the index sets that have labels of their own; of "model" the columns of `labels` are all there is.
    sets: for each trace key uint8 [X, T, H], see `leanthink.importance.labels.packed`.
    answer_from: what `label_traces` was given; None: behind the closed thought.
    """

    horizons: tuple[int, ...]
    fingerprint: str
    labels: Mapping[str, Tensor]
    checksums: Mapping[str, int]
    granularity: Granularity = "model"
    sets: Mapping[str, Tensor] = field(default_factory=dict)
    answer_from: AnswerFrom | None = None

    def of(self, trace: Trace) -> Tensor | None:
        """Labels of this trace, [T, 1 + H]; None where the file has none.

        Raises:
            UsageError: the file has labels under this key, but of another trace.
        """
        if trace.key not in self.labels:
            return None
        if self.checksums[trace.key] != checksum(trace):
            raise UsageError(f"the labels of {trace.key!r} belong to another trace of that name: label the traces anew")
        return self.labels[trace.key]

    def sets_of(self, trace: Trace) -> Tensor:
        """Labels of this trace for each index set, in eight bits: uint8 [X, T, H]. As `of`, of a labelled trace."""
        assert self.of(trace) is not None
        return self.sets[trace.key]

    def as_labelled(self, trace: Trace) -> Trace:
        """This labelled trace, its thought ending where the labels say. Raises like `of`."""
        labels_TC = self.of(trace)
        assert labels_TC is not None
        T = len(labels_TC)
        return replace(trace, thought_tokens=T, answer_tokens=len(trace.token_ids) - T)


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """How the traces of one call fared: labelled now, labelled before, left out for a reason."""

    labelled: int
    done_before: int
    not_correct: int
    no_thought: int
    no_answer_start: int  # of those right: in which no answer begins as asked
    no_answer: int  # among those labelled: traces without a single answer row, useless for the answer label


@dataclass(kw_only=True)
class _LabelWriter:
    """The labels gathered so far and the file they go to."""

    path: Path
    horizons: tuple[int, ...]
    fingerprint: str
    granularity: Granularity = "model"
    answer_from: AnswerFrom | None = None
    labels: dict[str, Tensor] = field(default_factory=dict)
    checksums: dict[str, int] = field(default_factory=dict)
    sets: dict[str, Tensor] = field(default_factory=dict)

    def save(self) -> None:
        """Replace the file in one step: a reader, or a run stopped here, sees the old file or the new one."""
        metadata = {
            "leanthink": "labels",
            "version": VERSION,
            "horizons": json.dumps(self.horizons),
            "fingerprint": self.fingerprint,
            "checksums": json.dumps(self.checksums),
            "granularity": self.granularity,
            "answer_from": json.dumps(self.answer_from),
        }
        tensors = self.labels | {SETS + key: codes_XTH for key, codes_XTH in self.sets.items()}
        with replacing(self.path) as draft:
            save_file(tensors, draft, metadata=metadata)


def checksum(trace: Trace) -> int:
    """CRC-32 over the tokens of a trace: tells two traces of the same name apart."""
    return zlib.crc32(json.dumps([trace.prompt_ids, trace.token_ids]).encode())


def read_labels(path: str | os.PathLike[str]) -> LabelFile:
    """The labels of a file.

    Raises:
        UsageError: no such file, a safetensors file that holds no labels, or another version.
        DamagedFile: truncated, or no safetensors file at all.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no file of labels at {path}: write one with `leanthink label`")
    with reading(path, "file of labels", CURE), safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("leanthink") != "labels":
            raise UsageError(f"{path} is a safetensors file but holds no labels: write one with `leanthink label`")
        if metadata.get("version") != VERSION:
            raise UsageError(f"{path} has version {metadata.get('version')}, not {VERSION}: {CURE}")
        metadata = {"granularity": "model", "answer_from": "null"} | metadata
        about = {name: parse_json(metadata[name]) for name in ("checksums", "horizons", "answer_from")}
        check_kinds(about, KINDS)
        check_kinds(metadata, {"fingerprint": STRING, "granularity": STRING})
        checksums, granularity = about["checksums"], metadata["granularity"]
        check_kinds(checksums, dict.fromkeys(checksums, COUNT))
        names = set(file.keys())
        with_sets = checksums if granularity != "model" else ()
        found = LabelFile(
            horizons=tuple(about["horizons"]),
            fingerprint=metadata["fingerprint"],
            labels={key: file.get_tensor(key) for key in checksums},
            checksums=checksums,
            granularity=granularity,
            sets={key: file.get_tensor(SETS + key) for key in with_sets},
            answer_from=about["answer_from"],
        )
    if granularity not in GRANULARITIES or len(names) != len(found.labels) + len(found.sets):
        raise DamagedFile(f"{path} has labels and checksums of different traces: {CURE}")
    for kind, values in ((torch.float32, found.labels), (torch.uint8, found.sets)):
        for key, tensor in values.items():
            if tensor.dtype != kind:
                raise DamagedFile(f"{path}: the labels of {key!r} are {tensor.dtype}, not {kind}: {CURE}")
    for key, values_TC in found.labels.items():
        shapes = [values_TC.shape[1:], *([found.sets[key].shape[1:]] if found.sets else [])]
        H, T = len(found.horizons), len(values_TC)
        if values_TC.ndim != 2 or shapes != [(1 + H,), *([(T, H)] if found.sets else [])]:
            raise DamagedFile(f"{path}: the labels of {key!r} do not fit its horizons {list(found.horizons)}: {CURE}")
    return found


def label_traces(
    model: Any,
    traces: Iterable[Trace],
    path: str | os.PathLike[str],
    *,
    horizons: Sequence[int],
    granularity: Granularity = "head",
    answer_from: AnswerFrom | None = None,
    only_correct: bool = True,
    overwrite: bool = False,
    save_every: int = 50,
    progress: Progress | None = None,
    backend: InferenceBackend | None = None,
) -> LabelCounts:
    """Label traces into one file; a file of the same model and horizons is resumed, trace by trace.

    On a GPU traces of like length share a forward pass. The file is replaced in one step after every `save_every`
    traces, unless saving would take more than a tenth of the time, and at the end, however the end comes, so that
    Ctrl-C loses only the batch in hand. `progress(done, total)` is called after each trace. Traces of another model are
    refused, as far as they say which wrote them. Wrong traces and traces without a thought are left out and counted.
    Where a `backend` is given, it labels in place of `model`, which may then be None.

    `answer_from` is for models that write no think tags: the answer begins at the last occurrence of this text, which
    takes a `backend` with a tokenizer, or after this share of the generated tokens. Traces in which none begins are
    left out and counted.

    Raises:
        UsageError: two traces of one key, or of another model; another process writes to the file; it holds other
            horizons, granularity or `answer_from`, or labels of another trace of the same name; `answer_from` is given,
            and a trace has an answer of its own; or horizons that do not ascend, an unknown granularity.
        PredictorMismatch: the file holds labels of another model.
        DamagedFile: the file cannot be read.
        CannotWrite: there is no room for it; what it held before is unharmed.
    """
    from leanthink.importance.answer_start import check_answer_from
    from leanthink.importance.inference_backend import LoadedModel
    from leanthink.importance.labels import check_horizons

    backend = backend or LoadedModel(model, None, {})
    if granularity not in GRANULARITIES:
        raise unknown("granularity", granularity, GRANULARITIES)
    asked = _LabelWriter(
        path=Path(path),
        horizons=check_horizons(horizons),
        fingerprint=backend.model_info.fingerprint,
        granularity=granularity,
        answer_from=None if answer_from is None else check_answer_from(answer_from),
    )
    given = list(traces)
    check_unique(given)
    _check_model(given, asked.fingerprint)
    with held(asked.path):
        return _label(backend, given, asked, only_correct, overwrite, save_every, progress)


def _label(
    backend: InferenceBackend,
    given: Sequence[Trace],
    asked: _LabelWriter,
    only_correct: bool,
    overwrite: bool,
    save_every: int,
    progress: Progress | None,
) -> LabelCounts:
    """`label_traces`, of what was checked."""
    from leanthink.importance.answer_start import with_answers
    from leanthink.importance.labels import Thought, packed

    answer_from, granularity = asked.answer_from, asked.granularity
    writer = asked if overwrite or not asked.path.exists() else _resumed(asked)
    right = [trace for trace in given if trace.correct or not only_correct]
    split = right if answer_from is None else with_answers(right, answer_from, backend.tokenizer)
    thinking = [trace for trace in split if trace.thought_tokens > 0]
    todo = [trace for trace in thinking if not _is_done(writer, trace)]
    thoughts = [Thought.of(trace, closing_tokens=1 if answer_from is None else 0) for trace in todo]
    found = backend.label(thoughts, writer.horizons, granularity)
    done, saved_at, saving = 0, time.monotonic(), 0.0  # traces, seconds
    try:
        for done, (index, labels) in enumerate(found, start=1):
            trace = todo[index]
            writer.checksums[trace.key] = checksum(trace)
            writer.labels[trace.key] = labels.values_TC
            if granularity != "model":
                writer.sets[trace.key] = packed(labels.sets_XTH)
            now = time.monotonic()
            if done % save_every == 0 and (saving < QUICK_SECONDS or now - saved_at >= 10 * saving):
                writer.save()
                saved_at = time.monotonic()
                saving = saved_at - now
            if progress is not None:
                progress(done, len(todo))
    finally:
        if done or not todo:  # a file to be overwritten stays until there is something else
            writer.save()
    return LabelCounts(
        labelled=len(todo),
        done_before=len(thinking) - len(todo),
        not_correct=len(given) - len(right),
        no_thought=len(split) - len(thinking),
        no_answer_start=len(right) - len(split),
        no_answer=sum(thought.answer_rows == 0 for thought in thoughts),
    )


def _check_model(traces: Sequence[Trace], fingerprint: str) -> None:
    """Another model's attention says nothing about what this one will read again."""
    for trace in traces:
        if trace.fingerprint not in (None, fingerprint):
            raise UsageError(
                f"the trace {trace.key!r} was written by {trace.model!r}, another model than the one given: give that "
                "one, or collect traces with this one"
            )


def _resumed(asked: _LabelWriter) -> _LabelWriter:
    """The same with what its file already holds; refuses a file of something else."""
    found = read_labels(asked.path)
    if found.fingerprint != asked.fingerprint:
        raise PredictorMismatch(
            f"{asked.path} holds labels of another model ({found.fingerprint[:12]}; this one is "
            f"{asked.fingerprint[:12]}): give another file, or overwrite this one"
        )
    if found.horizons != asked.horizons:
        raise UsageError(
            f"{asked.path} holds labels for the horizons {list(found.horizons)}, asked for are {list(asked.horizons)}: "
            "give another file, or overwrite this one"
        )
    if found.granularity != asked.granularity:
        raise UsageError(
            f"{asked.path} holds labels of granularity {found.granularity!r}, asked for is {asked.granularity!r}: "
            "give another file, or overwrite this one"
        )
    if found.answer_from != asked.answer_from:
        raise UsageError(
            f"{asked.path} holds labels with answer_from {found.answer_from!r}, asked for is {asked.answer_from!r}: "
            "give another file, or overwrite this one"
        )
    return replace(asked, labels=dict(found.labels), checksums=dict(found.checksums), sets=dict(found.sets))


def _is_done(writer: _LabelWriter, trace: Trace) -> bool:
    if trace.key not in writer.labels:
        return False
    if writer.checksums[trace.key] != checksum(trace):
        raise UsageError(
            f"{writer.path} holds labels of another trace {trace.key!r}: give another file, or overwrite this one"
        )
    return True


def default_horizons(traces: Iterable[Trace]) -> tuple[int, ...]:
    """16 to 1024 in doublings, and 2048 where at least a quarter of the traces have twice as many tokens."""
    from leanthink.importance.labels import HORIZONS

    is_long = [len(trace.token_ids) >= 2 * 2048 for trace in traces]
    return (*HORIZONS, 2048) if is_long and 4 * sum(is_long) >= len(is_long) else HORIZONS
