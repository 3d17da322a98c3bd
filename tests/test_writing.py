"""One writer at a time, files whole or not at all, lines whole or not at all, and one error where there is no room."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from leanthink.data.problems import Problem
from leanthink.data.traces.trace import TraceWriter, to_line
from leanthink.engine.sampling import Sampling
from leanthink.eval.records import RunFolder
from leanthink.importance.collect import collect
from leanthink.importance.fit import fit
from leanthink.importance.fit_config import FitConfig
from leanthink.importance.label_file import label_traces, read_labels
from leanthink.importance.work_folder import WorkFolder
from leanthink.utils.errors import CannotWrite, DamagedFile, UsageError
from leanthink.utils.file_writing import LineFile, held, replacing, write_json
from models import make_model, make_tokenizer
from recorded import HORIZONS, TRACES, small_model, trace

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def model() -> Any:
    return small_model()


@contextmanager
def elsewhere(path: Path) -> Iterator[None]:
    """Another process holds the lock of this file in here, and then is killed."""
    code = (
        "import sys, time; from pathlib import Path; from leanthink.utils.file_writing import held\n"
        f"with held(Path({str(path)!r})): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
        process.kill()


def writers(model: Any, folder: Path) -> dict[str, tuple[Path, Callable[[], object]]]:
    """For each thing that is written what is locked, and how it is begun."""
    traces, labels, out = folder / "t.jsonl", folder / "l.safetensors", folder / "p.safetensors"
    label_traces(model, TRACES, folder / "before.safetensors", horizons=HORIZONS)
    labelled = read_labels(folder / "before.safetensors")
    problems = [Problem(id="a", problem="?", answer="1")]
    collecting: dict[str, Any] = {"samples": 1, "sampling": Sampling(max_new_tokens=2), "resume": True}
    run: dict[str, Any] = {"settings": {}, "benchmarks": {}, "provenance": {}}
    return {
        "collect": (traces, lambda: collect(make_model(), make_tokenizer(), problems, traces, **collecting)),
        "label": (labels, lambda: label_traces(model, TRACES, labels, horizons=HORIZONS)),
        "fit": (out, lambda: fit(model, TRACES, labelled, FitConfig(steps=1), out_path=out)),
        "predictor": (WorkFolder(out).path / "stages.json", lambda: _make(out)),
        "eval": (folder / "run" / "records.jsonl", lambda: RunFolder(folder / "run", **run)),
    }


def _make(out: Path) -> None:
    with WorkFolder(out).held():
        raise AssertionError("two make one predictor")


@pytest.mark.parametrize("name", ["collect", "label", "fit", "predictor", "eval"])
def test_a_second_process_on_the_same_file_is_refused(name: str, model: Any, tmp_path: Path) -> None:
    path, write = writers(model, tmp_path)[name]
    with elsewhere(path), pytest.raises(UsageError, match="another process writes to"):
        write()
    with held(path):  # what a killed process leaves behind is no lock
        pass
    assert not path.with_name(f"{path.name}.lock").exists()


APPENDS = """
import sys, time
from leanthink.utils.errors import UsageError
from leanthink.data.traces.trace import TraceWriter, read_traces
try:
    with TraceWriter(sys.argv[2], resume=True) as writer:
        for trace in read_traces(sys.argv[1]):
            if trace.key not in {one.key for one in writer.done}:
                writer.write(trace)
                time.sleep(0.05)
except UsageError as error:
    sys.exit("another process" in str(error) and 2)
"""


def test_several_that_collect_into_one_file_write_each_trace_once(tmp_path: Path) -> None:
    given, path = tmp_path / "given.jsonl", tmp_path / "t.jsonl"
    given.write_text("".join(to_line(trace(str(index))) + "\n" for index in range(10)))
    command = [sys.executable, "-c", APPENDS, str(given), str(path)]
    started = [subprocess.Popen(command) for _ in range(3)]
    codes = [process.wait(timeout=60) for process in started]
    assert set(codes) <= {0, 2}
    assert 0 in codes
    assert path.read_bytes() == given.read_bytes()


def test_two_traces_of_one_key_are_refused_wherever_keys_count(model: Any, tmp_path: Path) -> None:
    twice = [trace("a"), trace("a")]
    with pytest.raises(UsageError, match="'a#0' is there twice"):
        label_traces(model, twice, tmp_path / "l.safetensors", horizons=HORIZONS)
    assert not (tmp_path / "l.safetensors").exists()
    path = tmp_path / "t.jsonl"
    path.write_text("".join(to_line(one) + "\n" for one in twice))
    with pytest.raises(DamagedFile, match="'a#0' is there twice"):
        TraceWriter(path, resume=True)


@pytest.mark.parametrize("error", [FULL, SafetensorError("I/O error: No space left on device (os error 28)")])
def test_a_file_that_cannot_be_written_stays_as_it_was(error: Exception, tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    write_json(path, {"a": 1})
    with pytest.raises(CannotWrite, match=r"f.json cannot be written .*No space left on device.*unharmed"):
        _write_half(path, error)
    assert path.read_text() == '{"a": 1}\n'
    assert [found.name for found in tmp_path.iterdir()] == ["f.json"]


def _write_half(path: Path, error: Exception) -> None:
    with replacing(path) as draft:
        draft.write_text('{"a": ')
        raise error


def test_a_line_that_does_not_fit_is_not_begun_and_the_next_one_that_does_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = LineFile(tmp_path / "f.jsonl")
    file.append("first")
    write, room = os.write, [3]

    def full(where: int, data: bytes) -> int:
        if not room[0]:
            raise FULL
        taken, room[0] = room[0], 0
        return write(where, bytes(data)[:taken])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CannotWrite, match="No space left"):
        file.append("second")
    monkeypatch.undo()
    file.append("third")
    file.close()
    assert (tmp_path / "f.jsonl").read_text() == "first\nthird\n"


def test_ctrl_c_leaves_a_line_that_is_whole_and_nothing_of_one_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, write = LineFile(tmp_path / "f.jsonl"), os.write

    def stopped(*given: Any) -> int:
        if len(given) == 2:  # os.write; os.fsync has the file alone
            write(given[0], bytes(given[1])[:3])
        raise KeyboardInterrupt

    for name, line in (("fsync", "whole"), ("write", "half")):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, stopped)
            with pytest.raises(KeyboardInterrupt):
                file.append(line)
    file.close()
    assert (tmp_path / "f.jsonl").read_text() == "whole\n"


@pytest.mark.parametrize("name", ["collect", "label", "fit"])
def test_where_there_is_no_room_it_is_said_and_resumed_later(
    name: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = writers(model, tmp_path)[name]

    def full(*_given: Any, **_more: Any) -> None:
        raise FULL

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWrite, match="cannot be written"):
        write()
    monkeypatch.undo()
    write()
    assert path.exists()


@pytest.mark.parametrize("moment", range(3))
def test_a_process_killed_while_it_writes_leaves_the_old_file_or_the_new_one(moment: int, tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    write_json(path, [0] * 100_000)
    code = (
        f"from pathlib import Path; from leanthink.utils.file_writing import write_json\nprint('now', flush=True)\n"
        f"for i in range(1000): write_json(Path({str(path)!r}), [i] * 100_000)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02 + 0.017 * moment)
        process.kill()
    found = json.loads(path.read_text())
    assert len(found) == 100_000
    assert len(set(found)) == 1
