"""One recorded request and its JSONL form: written by `collect`, read by labels, evaluation, viewer and tests."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from leanthink.data.traces.token_scores import Scores
from leanthink.utils.errors import DamagedFile, UsageError, unknown
from leanthink.utils.file_reading import (
    BOOLEAN,
    COUNT,
    COUNTS,
    INTEGER,
    NOT_NEGATIVE,
    STRING,
    TEXT,
    TOKEN_IDS,
    Kind,
    check_kinds,
    is_int,
    parse_json,
)
from leanthink.utils.file_writing import LineFile, Lock

VERSION = 3


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One finished request; all counts are tokens or slots, all `_bytes` are bytes.

    `token_ids` are all generated tokens: thought, `</think>` where the model wrote it, answer and end token.
    `thought_tokens` counts what precedes `</think>`, `answer_tokens` the rest. `evicted_at[i]` is the number of
    generated tokens at the moment token i lost its slot, None if it never did; the field is None where nothing was
    recorded. `budget` holds the fields of a Budget, None for the full cache. `token_chars[i]` is the number of
    characters of `text` that token i adds, and `scores` what its policy scored the generated tokens; both are None
    where nothing was recorded, and in files of version 1. `fingerprint` is that of the model that wrote the trace, None
    in files before version 3.

    Raises:
        UsageError: a field has the wrong type or the counts contradict each other.
    """

    id: str
    sample: int
    problem: str
    gold: str | None
    model: str
    policy: str
    budget: Mapping[str, int] | None
    seed: int
    temperature: float
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    thought_tokens: int
    answer_tokens: int
    finish_reason: Literal["stop", "length"]
    correct: bool | None
    peak_slots: int
    kept_slots: int
    evictions: int
    peak_kv_bytes: int
    full_kv_bytes: int
    evicted_at: tuple[int | None, ...] | None = None
    token_chars: tuple[int, ...] | None = None
    scores: Scores | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        check_kinds({name: getattr(self, name) for name in KINDS}, KINDS)  # a JSON file can hold anything
        generated = len(self.token_ids)
        if self.thought_tokens + self.answer_tokens != generated:
            raise UsageError(
                f"thought_tokens={self.thought_tokens} and answer_tokens={self.answer_tokens} must add up "
                f"to the number of token_ids, which is {generated}"
            )
        if self.evicted_at is not None and len(self.evicted_at) != generated:
            raise UsageError(f"evicted_at has {len(self.evicted_at)} entries for {generated} token_ids: give one each")
        if self.token_chars is not None and (len(self.token_chars), sum(self.token_chars)) != (
            generated,
            len(self.text),
        ):
            raise UsageError(
                f"token_chars has {len(self.token_chars)} entries that add up to {sum(self.token_chars)}, for "
                f"{generated} token_ids and {len(self.text)} characters of text"
            )
        if self.scores is not None and self.scores.tokens != generated:
            raise UsageError(f"scores has numbers of {self.scores.tokens} tokens for {generated} token_ids")

    @property
    def key(self) -> str:
        """`id#sample`: what labels and resumed runs know this request by."""
        return trace_key(self.id, self.sample)


def trace_key(problem_id: str, sample: int) -> str:
    """The name of one sample of one problem, unique within a file of traces."""
    return f"{problem_id}#{sample}"


def request_seed(seed: int, problem_id: str, sample: int) -> int:
    """The sampling seed of one sample of one problem, 0 <= seed < 2^48: the same whatever else is generated."""
    digest = hashlib.sha256(f"{seed}/{trace_key(problem_id, sample)}".encode()).digest()
    return int.from_bytes(digest[:6])


KINDS = {
    **dict.fromkeys(("id", "model", "policy"), TEXT),
    **dict.fromkeys(("problem", "text"), STRING),
    **dict.fromkeys(("sample", "thought_tokens", "answer_tokens", "peak_slots", "kept_slots", "evictions"), COUNT),
    **dict.fromkeys(("peak_kv_bytes", "full_kv_bytes"), COUNT),
    **dict.fromkeys(("gold", "fingerprint"), STRING.or_null()),
    **dict.fromkeys(("prompt_ids", "token_ids"), TOKEN_IDS),
    "seed": INTEGER,
    "temperature": NOT_NEGATIVE,
    "finish_reason": Kind("'stop' or 'length'", lambda reason: reason in ("stop", "length")),
    "correct": BOOLEAN.or_null(),
    "budget": Kind(
        "an object of integers", lambda budget: isinstance(budget, Mapping) and all(map(is_int, budget.values()))
    ).or_null(),
    "evicted_at": COUNT.or_null().listed("a list of integers >= 0 and nulls").or_null(),
    "token_chars": COUNTS.or_null(),
    "scores": Kind("an object of horizons and float16", lambda scores: isinstance(scores, Scores)).or_null(),
}
_NAMES = tuple(field.name for field in fields(Trace))
_SINCE = {"token_chars": 2, "scores": 2, "fingerprint": 3}


def to_line(trace: Trace) -> str:
    """The trace as one line of JSON, without the line end."""
    record: dict[str, Any] = {"trace": VERSION} | {name: getattr(trace, name) for name in _NAMES}
    if trace.budget is not None:
        record["budget"] = dict(trace.budget)
    if trace.scores is not None:
        record["scores"] = asdict(trace.scores)
    return json.dumps(record, allow_nan=False)


def from_line(line: str | bytes) -> Trace:
    """The trace that `to_line` wrote, of this version or an earlier one, which knew fewer fields.

    Raises:
        UsageError: not JSON, another version, a field missing, unknown or of the wrong type.
    """
    try:
        record = parse_json(line)
    except ValueError as error:
        raise UsageError(f"not a line of JSON ({error})") from None
    if not isinstance(record, dict) or "trace" not in record:
        raise UsageError('not a trace: a JSON object with the field "trace" was expected')
    version = record.pop("trace")
    if not is_int(version) or not 1 <= version <= VERSION:
        raise UsageError(
            f"trace version {version!r}: this LeanThink reads versions 1 to {VERSION}; collect the traces again"
        )
    names = [name for name in _NAMES if version >= _SINCE.get(name, 1)]
    for name in record:
        if name not in names:
            raise unknown("trace field", name, names)
    missing = [name for name in names if name not in record]
    if missing:
        raise UsageError(f"the trace lacks the field {missing[0]!r}")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
    }
    if values.get("scores") is not None:
        values["scores"] = _scores(values["scores"])
    return Trace(**values)


def _scores(record: Any) -> Scores:
    if (
        not isinstance(record, dict)
        or set(record) != {"horizons", "float16"}
        or not isinstance(record["horizons"], list)
    ):
        raise UsageError(f"scores must be an object of horizons and float16, or null, got {str(record)[:80]!r}")
    return Scores(horizons=tuple(record["horizons"]), float16=record["float16"])


@dataclass(frozen=True, kw_only=True)
class Place:
    """A trace and where its line lies in its file: `start` and `size` are bytes."""

    trace: Trace
    start: int
    size: int


def iter_traces(path: str | os.PathLike[str]) -> Iterator[Trace]:
    """The traces of a file, one at a time; raises like `trace_places`."""
    return (place.trace for place in trace_places(path))


def trace_places(path: str | os.PathLike[str]) -> Iterator[Place]:
    """The traces of a file and where they lie, one at a time; blank lines are skipped.

    Raises:
        UsageError: there is no such file.
        DamagedFile: a line cannot be read; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no file of traces at {path}: write one with `leanthink collect`")
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            start, end = end, end + len(line)
            if not line.strip():
                continue
            try:
                yield Place(trace=from_line(line), start=start, size=len(line))
            except UsageError as error:
                cut_off = not line.endswith(b"\n")
                cure = "; the line is cut off, `leanthink collect --resume` drops it and goes on" if cut_off else ""
                raise DamagedFile(f"{path}, line {number}: {error}{cure}") from None


def read_traces(path: str | os.PathLike[str]) -> list[Trace]:
    """All traces of a file, in file order; raises like `iter_traces`."""
    return list(iter_traces(path))


class TraceWriter:
    """Appends traces to a file, each on the disk once it is written: a killed run loses at most the one in hand.

    An existing file is refused unless `overwrite` (start anew) or `resume` (read `done`, drop a last line that was cut
    off, go on). What is to be overwritten is kept until the first trace is written, and a new file into which nothing
    was written is removed. Use as a context manager.

    Raises:
        UsageError: the file exists and neither was asked for, or both were, or another process writes to it.
        DamagedFile: resuming a file with a bad line anywhere but at its cut-off end, or with a trace twice.
        CannotWrite: there is no room for it.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume: bool = False, overwrite: bool = False) -> None:
        self.path = Path(path)
        if resume and overwrite:
            raise UsageError("resume and overwrite exclude each other: give one of them")
        if self.path.exists() and not (resume or overwrite):
            raise UsageError(f"{self.path} exists: resume goes on with it, overwrite replaces it")
        self.done: list[Trace] = []
        with ExitStack() as held:
            held.callback(Lock(self.path).release)
            self._is_new, self._start_anew = not self.path.exists(), overwrite
            self._file = LineFile(self.path)
            held.callback(self._file.close)
            if resume:
                self._file.drop_cut_off_line(from_line)
                self.done = _unique(self.path)
            self._held = held.pop_all()

    def write(self, trace: Trace) -> None:
        """Append one trace; it is on the disk when this returns."""
        line = to_line(trace)
        if self._start_anew:
            self._file.clear()
            self._start_anew = False
        self._is_new = False
        self._file.append(line)

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        with self._held:
            if self._is_new:
                self.path.unlink()


def check_unique(traces: Iterable[Trace]) -> None:
    """Refuse two traces of one key, which labels and resumed runs would take for the same (UsageError)."""
    seen: set[str] = set()
    for trace in traces:
        if trace.key in seen:
            raise UsageError(f"the trace {trace.key!r} is there twice: leave one of them out")
        seen.add(trace.key)


def _unique(path: Path) -> list[Trace]:
    found = read_traces(path)
    try:
        check_unique(found)
    except UsageError as error:
        raise DamagedFile(f"{path}: {error}") from None
    return found
