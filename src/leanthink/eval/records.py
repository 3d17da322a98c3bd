"""The folder of an evaluation: a header that a resumed run must match, and one line for each finished request.

run.json        settings, benchmarks, and the provenance of each time it was started
records.jsonl   append-only; a last line that was cut off is dropped when it is opened again
result.json     written when all is done: per problem, what `leanthink compare` reads
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from leanthink.utils.errors import DamagedFile, UsageError
from leanthink.utils.file_reading import (
    BOOLEAN,
    COUNT,
    INTEGER,
    NOT_NEGATIVE,
    OBJECT,
    STRING,
    TEXT,
    check_kinds,
    parse_json,
    reading,
)
from leanthink.utils.file_writing import LineFile, Lock, write_json

VERSION = 1
RUN, RECORDS, RESULT = "run.json", "records.jsonl", "result.json"
Key = tuple[str, str, int]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One finished request of a configuration.

    Attributes:
        cell: name of the configuration.
        id, sample: which problem, and which of its samples.
        seed: of its sampling.
        right: whether the answer is the gold.
        finished: it ended by itself, not at a limit.
        vote: what it says the answer is, in a form in which equal numbers and texts are equal; None: nothing.
        answer: the text after the thought.
        prompt_tokens, thought_tokens, answer_tokens: counts.
        peak_slots, kept_slots: slots at the fullest moment and at the end, prompt included.
        slot_steps: slots held at each step, added up.
        evictions: how many.
        peak_kv_bytes: bytes of the keys and values in `peak_slots`.
        start: how many times the run had been started before.
        seconds: since its configuration was started after this start; None where several configurations ran at a time.
    """

    cell: str
    id: str
    sample: int
    seed: int
    right: bool
    finished: bool
    vote: str | None
    answer: str
    prompt_tokens: int
    thought_tokens: int
    answer_tokens: int
    peak_slots: int
    kept_slots: int
    slot_steps: int
    evictions: int
    peak_kv_bytes: int
    start: int
    seconds: float | None

    @property
    def key(self) -> Key:
        """What it is known by: no two records of a run have the same."""
        return (self.cell, self.id, self.sample)


_NAMES = {field.name for field in fields(Record)}
KINDS = {
    **dict.fromkeys(("cell", "id"), TEXT),
    "answer": STRING,
    **dict.fromkeys(("sample", "prompt_tokens", "thought_tokens", "answer_tokens", "peak_slots", "kept_slots"), COUNT),
    **dict.fromkeys(("slot_steps", "evictions", "peak_kv_bytes", "start"), COUNT),
    **dict.fromkeys(("right", "finished"), BOOLEAN),
    "seed": INTEGER,
    "vote": STRING.or_null(),
    "seconds": NOT_NEGATIVE.or_null(),
}


def from_line(line: bytes) -> Record:
    """A record from its line. Raises UsageError for anything else."""
    try:
        found = parse_json(line)
    except ValueError as error:
        raise UsageError(f"not a line of JSON ({error})") from None
    if not isinstance(found, dict) or set(found) != _NAMES:
        raise UsageError("not a record of an evaluation of this version")
    check_kinds(found, KINDS)
    return Record(**found)


class RunFolder:
    """An open run: what is done, and the file that the rest is appended to. Use as a context manager.

    Args:
        folder: where; made if it is not there.
        settings: all that decides the records; what was started with others is refused.
        benchmarks: what a header says of each, by name.
        provenance: of this start.
        overwrite: drop what is there.

    Raises:
        UsageError: the folder has another run, another process writes to it, or it has files that are no run.
        DamagedFile: a line before the last cannot be read, or is there twice.
        CannotWrite: there is no room for it.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        benchmarks: Mapping[str, Any],
        provenance: Mapping[str, str],
        *,
        overwrite: bool = False,
    ) -> None:
        self.path = folder
        with ExitStack() as held:
            held.callback(Lock(folder / RECORDS).release)
            self._file = LineFile(folder / RECORDS)
            held.callback(self._file.close)
            self.header = self._start(settings, benchmarks, provenance, overwrite)
            self._file.drop_cut_off_line(from_line)
            self.done = {record.key: record for record in read_records(folder / RECORDS)}
            self._held = held.pop_all()
        self.start = len(self.header["births"]) - 1

    def _start(
        self, settings: Mapping[str, Any], benchmarks: Mapping[str, Any], provenance: Mapping[str, str], overwrite: bool
    ) -> dict[str, Any]:
        """The header, written before the first record."""
        fresh: dict[str, Any] = {"eval": VERSION, "settings": dict(settings), "benchmarks": dict(benchmarks)}
        fresh = json.loads(json.dumps(fresh, allow_nan=False))  # as it will be read: tuples are lists
        path = self.path / RUN
        if overwrite:
            (self.path / RESULT).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            self._file.clear()
        provenances = []
        if path.exists():
            known = read_header(self.path)
            _refuse_other(known, fresh, self.path)
            provenances = known["births"]
        elif (self.path / RECORDS).stat().st_size:
            raise UsageError(f"{self.path} has records and no {RUN}: give another folder, or --overwrite")
        fresh["births"] = [*provenances, dict(provenance)]
        write_json(path, fresh, indent=1)
        return fresh

    def write(self, record: Record) -> None:
        """Append one record; it is on the disk when this returns."""
        assert record.key not in self.done, record.key
        self._file.append(json.dumps(asdict(record), allow_nan=False))
        self.done[record.key] = record

    def of_configuration(self, name: str) -> list[Record]:
        """The records of a configuration."""
        return [record for record in self.done.values() if record.cell == name]

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._held.close()


def check_header(header: Mapping[str, Any]) -> None:
    """Raise UsageError unless the parts of a header are what they are read as."""
    check_kinds(header, {"settings": OBJECT, "benchmarks": OBJECT, "births": OBJECT.listed("a list of objects")})
    check_kinds(header["benchmarks"], dict.fromkeys(header["benchmarks"], OBJECT))


def read_header(folder: Path) -> dict[str, Any]:
    """The header of a run. Raises DamagedFile."""
    path = folder / RUN
    with reading(path, "header of an evaluation", "give another folder, or --overwrite"):
        header = parse_json(path.read_bytes())
        version = header["eval"]
    if version != VERSION:
        raise DamagedFile(f"{path} is of version {version!r}, this LeanThink reads {VERSION}: evaluate again")
    with reading(path, "header of an evaluation", "give another folder, or --overwrite"):
        check_header(header)
    found: dict[str, Any] = header
    return found


def read_records(path: Path) -> list[Record]:
    """All records of a run. Raises DamagedFile for a line that cannot be read, or is there twice."""
    records: dict[Key, Record] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = from_line(line)
            except UsageError as error:
                raise DamagedFile(f"{path}, line {number}: {error}") from None
            if record.key in records:
                raise DamagedFile(f"{path}, line {number}: {record.cell}, {record.id}#{record.sample} is there twice")
            records[record.key] = record
    return list(records.values())


def _refuse_other(known: Mapping[str, Any], fresh: Mapping[str, Any], folder: Path) -> None:
    """Raise UsageError, naming what differs, unless both headers ask for the same."""
    differing = [
        f"{name}: {_shown(known[part].get(name))} there, {_shown(fresh[part].get(name))} asked for"
        for part in ("settings", "benchmarks")
        for name in sorted({*known[part], *fresh[part]})
        if known[part].get(name) != fresh[part].get(name)
    ]
    if differing:
        raise UsageError(
            f"{folder} holds a run with other settings ({'; '.join(differing)}): "
            "give the same ones to go on with it, another --out, or --overwrite"
        )


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value)
