"""Target `lines` of bench/fuzz.py: lines of traces, of an evaluation's records and of problems, and their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fuzz_mutations import JSON_WORDS
from fuzz_target import Target, plain_json, promised, scratch

from leanthink.data.problems import read_problems
from leanthink.data.traces.token_scores import pack
from leanthink.data.traces.trace import Trace, TraceWriter, from_line, read_traces, to_line
from leanthink.eval import records
from leanthink.utils.errors import LeanThinkError

PROVENANCE = {"commit": "c"}
COUNTS = dict.fromkeys(("peak_slots", "kept_slots", "evictions", "peak_kv_bytes"), 1)
PROBLEM = {"id": 1, "problem": "1+1", "answer": 2}
HEADER = {
    "eval": records.VERSION, "settings": {"a": 1}, "benchmarks": {"b": {"problems": 1}}, "births": [PROVENANCE],
}  # fmt: skip


def target() -> Target:
    """Each input is taken for a line, and for a whole file of each kind."""
    folder = scratch()
    path = folder / "lines.jsonl"
    uses: tuple[Callable[[Path], object], ...] = (
        read_traces, read_problems, check_resumed_traces,
        lambda path: check_resumed_records(path, folder), lambda path: check_header(path, folder),
    )  # fmt: skip

    def run(data: bytes) -> None:
        for read, write in ((from_line, to_line), (records.from_line, written)):
            with promised(LeanThinkError):
                check_line(data, read, write)
        for use in uses:
            path.write_bytes(data)
            with promised(LeanThinkError):
                use(path)

    one_trace, one_record = trace(), record()
    line = to_line(one_trace)
    seeds = (line, line + "\n" + line[:40], written(one_record), json.dumps(PROBLEM), json.dumps(HEADER))
    fields = sorted({*asdict(one_trace), *asdict(one_record), *HEADER})
    words = [json.dumps(name).encode() + b":" for name in fields]
    return Target(
        run=run,
        seeds=tuple(seed.encode() for seed in seeds),
        words=(*words, b"\n", *JSON_WORDS),
        unpack=plain_json,
    )


def trace() -> Trace:
    """A small trace that has all fields."""
    return Trace(
        id="p", sample=0, problem="1+1", gold="2", model="m", policy="horizon", budget={"slots": 4}, seed=1,
        temperature=0.5, prompt_ids=(1, 2), token_ids=(3, 4, 5), text="a2b", thought_tokens=2, answer_tokens=1,
        finish_reason="stop", correct=True, full_kv_bytes=9, evicted_at=(2, None, None), token_chars=(1, 1, 1),
        scores=pack((2,), b"\0" * 6), fingerprint="f", **COUNTS,
    )  # fmt: skip


def record() -> records.Record:
    """A record that has all fields."""
    return records.Record(
        cell="c", id="p", sample=0, seed=1, right=True, finished=True, vote="2", answer="2", prompt_tokens=2,
        thought_tokens=2, answer_tokens=1, slot_steps=1, start=0, seconds=0.5, **COUNTS,
    )  # fmt: skip


def written(record: records.Record) -> str:
    """Its line."""
    return json.dumps(asdict(record), allow_nan=False)


def check_line(data: bytes, read: Callable[[bytes], Any], write: Callable[[Any], str]) -> None:
    """What is read stands in one line, and is the same after it was written and read."""
    found = read(data)
    line = write(found)
    assert "\n" not in line
    assert read(line.encode()) == found, "another after it was written and read"


def check_resumed_traces(path: Path) -> None:
    """A writer that goes on with a file knows its traces, and leaves them as they are."""
    before = path.read_bytes()
    with TraceWriter(path, resume=True) as writer:
        assert writer.done == read_traces(path)
    after = path.read_bytes()
    assert before.startswith(after.removesuffix(b"\n")), "lines were changed"


def check_resumed_records(path: Path, folder: Path) -> None:
    """A run that is resumed knows each record of the file by its own key."""
    (folder / records.RUN).unlink(missing_ok=True)
    (folder / records.RECORDS).write_bytes(b"")
    with records.RunFolder(folder, {}, {}, PROVENANCE):
        pass
    (folder / records.RECORDS).write_bytes(path.read_bytes())
    with records.RunFolder(folder, {}, {}, PROVENANCE) as found:
        assert all(key == record.key for key, record in found.done.items())


def check_header(path: Path, folder: Path) -> None:
    """A run with the file as its header can be resumed with its own settings; with others it is refused."""
    (folder / records.RUN).write_bytes(path.read_bytes())
    found = records.read_header(folder)
    records.check_header(found)
    (folder / records.RECORDS).write_bytes(b"")
    for settings in (found["settings"], {"another": 1}):
        with records.RunFolder(folder, settings, found["benchmarks"], PROVENANCE):
            pass
