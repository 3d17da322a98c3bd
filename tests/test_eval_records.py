"""The folder of an evaluation: what survives a kill, what is refused, and that nothing is there twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leanthink.eval.records import RECORDS, RESULT, RUN, RunFolder
from leanthink.utils.errors import DamagedFile, UsageError
from test_eval_aggregated_results import record

SETTINGS = {"model": "tiny", "budgets": (64, 128)}
BENCHMARKS = {"b": {"digest": "1"}}
BIRTH = {"commit": "abc"}


def opened(folder: Path, settings: Any = SETTINGS, benchmarks: Any = BENCHMARKS, **options: Any) -> RunFolder:
    return RunFolder(folder, settings, benchmarks, BIRTH, **options)


def test_a_run_is_resumed_and_each_start_has_its_provenance_record(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        folder.write(record("a"))
        folder.write(record("a", 1))
        assert folder.start == 0
    with opened(tmp_path) as folder:
        assert list(folder.done) == [(record().cell, "a", 0), (record().cell, "a", 1)]
        assert folder.start == 1
        assert len(folder.of_configuration(record().cell)) == 2
        assert folder.of_configuration("another") == []
    assert len(json.loads((tmp_path / RUN).read_text())["births"]) == 2


@pytest.mark.parametrize("cut", [1, 40, -1])
def test_a_line_that_was_cut_off_is_dropped_and_one_that_lacks_its_end_is_kept(tmp_path: Path, cut: int) -> None:
    with opened(tmp_path) as folder:
        folder.write(record("a"))
        first = (tmp_path / RECORDS).read_bytes()
        folder.write(record("b"))
    lines = (tmp_path / RECORDS).read_bytes()
    (tmp_path / RECORDS).write_bytes(lines[: len(first) + cut] if cut > 0 else lines[:cut])
    with opened(tmp_path) as folder:
        assert len(folder.done) == (1 if cut > 0 else 2)
        folder.write(record("c"))
    with opened(tmp_path) as folder:
        assert [id for _, id, _ in folder.done] == (["a", "c"] if cut > 0 else ["a", "b", "c"])


def test_another_run_in_the_folder_is_refused_with_what_differs(tmp_path: Path) -> None:
    opened(tmp_path).__exit__(None, None, None)
    with pytest.raises(UsageError, match=r'other settings \(model: "tiny" there, "big" asked for\)'):
        opened(tmp_path, {**SETTINGS, "model": "big"})
    with pytest.raises(UsageError, match=r"seed: none there, 3 asked for"):
        opened(tmp_path, {**SETTINGS, "seed": 3})
    with pytest.raises(UsageError, match=r"b: .*digest.* there"):
        opened(tmp_path, SETTINGS, {"b": {"digest": "2"}})
    with opened(tmp_path, {**SETTINGS, "model": "big"}, overwrite=True) as folder:
        assert folder.done == {}
        assert folder.start == 0


def test_overwriting_drops_records_and_result(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        folder.write(record("a"))
    (tmp_path / RESULT).write_text("{}")
    with opened(tmp_path, overwrite=True) as folder:
        assert folder.done == {}
    assert not (tmp_path / RESULT).exists()


def test_two_processes_do_not_write_to_one_run(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(UsageError, match="another process writes"):
        opened(tmp_path)
    opened(tmp_path).__exit__(None, None, None)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([b"{}\n", b"{}\n"], "line 1: not a record"),
        ([b"nonsense\n"], "line 1: not a line of JSON"),
        (["twice", "twice"], "line 2: .*a#0 is there twice"),
    ],
)
def test_damage_before_the_last_line_is_named(tmp_path: Path, lines: list[Any], words: str) -> None:
    with opened(tmp_path) as folder:
        folder.write(record("a"))
    good = (tmp_path / RECORDS).read_bytes()
    (tmp_path / RECORDS).write_bytes(b"".join(good if line == "twice" else line for line in lines))
    with pytest.raises(DamagedFile, match=words):
        opened(tmp_path)


def test_records_without_a_header_and_headers_of_another_kind_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        folder.write(record("a"))
    (tmp_path / RUN).write_text('{"eval": 99}')
    with pytest.raises(DamagedFile, match="version 99"):
        opened(tmp_path)
    (tmp_path / RUN).write_text("{")
    with pytest.raises(DamagedFile, match="no header"):
        opened(tmp_path)
    (tmp_path / RUN).unlink()
    with pytest.raises(UsageError, match=r"has records and no run\.json"):
        opened(tmp_path)
