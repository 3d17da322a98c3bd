"""What a fuzzer found or began with, replayed: only promised errors, little time, the same when it is read again."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from leanthink.data.traces.trace import TraceWriter
from leanthink.eval.records import RunFolder
from leanthink.utils.errors import DamagedFile, UsageError, unknown
from leanthink.utils.file_reading import is_int, is_number, parse_json

BENCH = Path(__file__).parent.parent / "bench"
sys.path.append(str(BENCH))
import fuzz  # noqa: E402
from fuzz_target import bounded  # noqa: E402


@pytest.fixture(scope="module")
def target(request: pytest.FixtureRequest) -> Any:
    return fuzz.target_of(request.param)


def _kept() -> list[Any]:
    files = ((name, path) for name in fuzz.TARGETS for path in sorted((fuzz.CORPORA / name).glob("*")))
    return [pytest.param(name, path, id=f"{name}-{path.name}") for name, path in files]


@pytest.mark.parametrize("target", fuzz.TARGETS, indirect=True)
def test_what_a_fuzzer_begins_with_is_read(target: Any) -> None:
    for data in target.seeds:
        bounded(target.run, data)


@pytest.mark.parametrize(("target", "path"), _kept(), indirect=["target"])
def test_what_a_fuzzer_found_is_read_or_refused_in_a_sentence(target: Any, path: Path) -> None:
    bounded(target.run, path.read_bytes())


@pytest.mark.parametrize("target", ["bodies"], indirect=True)
@pytest.mark.parametrize("depth", [90, 600])
def test_a_switch_of_the_chat_template_may_be_deep(target: Any, depth: int) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"": "deep"}}
    target.run(json.dumps(body).replace('"deep"', "[" * depth + "]" * depth).encode())


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e400", '{"a": [Infinity]}'])
def test_json_has_finite_numbers_alone(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no JSON|too large"):
        parse_json(text)
    assert parse_json("[1.5, 1e308, -0.0]") == [1.5, 1e308, 0.0]
    assert not any(map(is_number, (10**400, -(10**400), float("inf"), float("nan"), True, "1")))
    assert all(map(is_number, (0, -1, 10**300, 1e308, 0.5)))


@pytest.mark.parametrize("around", ["[]", '{"a":}'])
def test_json_of_more_than_a_hundred_levels_is_refused(around: str) -> None:
    for many in (100, 101, 300):
        text = around[:-1] * many + "0" + around[-1] * many
        if many == 100:
            assert parse_json(text) == parse_json(text.encode())
        else:
            with pytest.raises(ValueError, match="nested too deeply"):
                parse_json(text)
    assert len(parse_json("[" + "[]," * 1000 + "[]]")) == 1001


def test_integers_have_64_bits() -> None:
    assert all(map(is_int, (0, -(2**63), 2**63 - 1)))
    assert not any(map(is_int, (2**63, -(2**63) - 1, 10**400, True, 1.0)))


def test_a_message_can_be_printed_whatever_it_quotes() -> None:
    for error in (unknown("field", "x" * 10**6, ["a"]), DamagedFile("\udfff" * 10**5 + ": do this"), UsageError("so")):
        assert len(str(error).encode()) < 2000
    assert str(DamagedFile("x" * 3000 + ": do this")).endswith("x: do this")
    assert str(UsageError("x" * 1900 + "\ud800")) == "x" * 1400 + " [...] " + "x" * 494 + "\\ud800"
    assert str(UsageError("x" * 1900)) == "x" * 1900


def test_a_file_that_is_refused_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text("{}\n{}\n")
    (tmp_path / "records.jsonl").write_text("{}\n")
    before = _descriptors()
    for _ in range(3):
        with pytest.raises(DamagedFile):
            TraceWriter(path, resume=True)
        with pytest.raises(UsageError):
            RunFolder(tmp_path, {}, {}, {})
    assert _descriptors() == before


def _descriptors() -> int:
    return len(os.listdir("/dev/fd"))
