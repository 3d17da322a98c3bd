"""A sentence instead of a traceback, whatever a file holds: wrong types, depths, numbers, halves of files."""

from __future__ import annotations

import http.client
import json
import pickle
import shutil
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from leanthink.data.problems import read_problems
from leanthink.data.traces.trace import from_line, read_traces, to_line
from leanthink.entrypoints.cli import run
from leanthink.entrypoints.viewer.server import list_traces, make_server
from leanthink.importance.label_file import label_traces, read_labels
from leanthink.models.loading import load
from leanthink.models.predictor import read_metadata
from leanthink.models.tiny import predictors_path
from leanthink.utils.errors import DamagedFile, LeanThinkError, UsageError
from leanthink.utils.file_reading import WrongField, parse_json, reading
from recorded import trace

WRONG: list[Any] = [None, 0, -1, 2**70, 0.5, "x", [], ["x"], [None], {}, {"x": 0}, {"layers": "x"}, [2, 1], True]


def test_json_that_is_nested_too_deeply_or_has_huge_numbers_is_a_value_error() -> None:
    for text in ("[" * 200_000, '{"a":' * 200_000, "1" * 5000, b"\xff", b"[" * 200_000):
        with pytest.raises(ValueError, match=r".") as caught:
            parse_json(text)
        assert not isinstance(caught.value, RecursionError)


def test_whatever_a_parser_raises_is_one_damaged_file_and_our_own_errors_stay() -> None:
    for error in (struct.error("x"), AttributeError("y"), RecursionError(), pickle.UnpicklingError("z"), MemoryError()):
        with (
            pytest.raises(DamagedFile, match=r"f cannot be read.* no thing .*: do this"),
            reading("f", "thing", "do this"),
        ):
            raise error
    with pytest.raises(DamagedFile, match="f cannot be read, a must be"), reading("f", "thing", "do this"):
        raise WrongField("a must be")
    for ours in (UsageError("a"), FileNotFoundError(2, "no such file")):
        with pytest.raises(type(ours)), reading("f", "thing", "do this"):
            raise ours


def rewritten(path: Path, name: str, value: str) -> Path:
    """A safetensors file with another text in one field of its metadata."""
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    other = path.with_name("other.safetensors")
    save_file(load_file(path), other, metadata={**metadata, name: value})
    return other


def texts() -> Iterator[str]:
    yield from map(json.dumps, WRONG)
    yield from ("", "[" * 200_000, "1" * 5000, '"\\ud800"', "{")


@pytest.mark.parametrize(
    "name",
    [
        "target",
        "horizons",
        "offsets",
        "granularity",
        "num_sets",
        "width",
        "hidden_size",
        "base_shape",
        "data",
        "metrics",
    ],
)
def test_a_predictor_with_other_metadata_is_read_or_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    model, _ = load("tiny")
    path = Path(shutil.copy(predictors_path() / "horizon.safetensors", tmp_path))
    for text in texts():
        _sentence_or_nothing(lambda other: _load_predictor(other, model), rewritten(path, name, text))


def _load_predictor(path: Path, model: Any) -> None:
    from leanthink.models.predictor import load_predictor

    read_metadata(path)
    load_predictor(path, model)


@pytest.mark.parametrize("name", ["horizons", "checksums", "granularity", "answer_from"])
def test_labels_with_other_metadata_are_read_or_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    model, _ = load("tiny")
    path = tmp_path / "labels.safetensors"
    label_traces(model, [trace("a")], path, horizons=(2,), only_correct=False)
    for text in texts():
        _sentence_or_nothing(read_labels, rewritten(path, name, text))


def _sentence_or_nothing(read: Any, path: Path) -> None:
    with suppress(LeanThinkError):
        read(path)


@pytest.mark.parametrize("token", [-1, 2**31, 2**70])
def test_a_trace_of_token_ids_that_no_model_has_is_refused(token: int, tmp_path: Path) -> None:
    record = json.loads(to_line(trace("a")))
    record["token_ids"][0] = token
    with pytest.raises(UsageError, match=r"token_ids must be a list of integers from 0 to 2\^31 - 1"):
        from_line(json.dumps(record))
    record["token_ids"][0] = 100_000
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps(record) + "\n")
    model, _ = load("tiny")
    with pytest.raises(UsageError, match="the traces have the token 100000"):
        label_traces(model, read_traces(path), tmp_path / "l.safetensors", horizons=(2,), only_correct=False)


@pytest.mark.parametrize("bad", ['{"id": "\\ud800", "problem": "p", "answer": "1"}', "[" * 200_000])
def test_problems_that_are_no_text_name_their_line(bad: str, tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text('{"problem": "p", "answer": "1"}\n' + bad + "\n")
    with pytest.raises(UsageError, match=r"line 2: .*(surrogate|nested)"):
        read_problems(path)


@pytest.mark.parametrize("cut", [3, 9, 20, 27, 60])
def test_a_gguf_file_cut_in_its_header_is_a_sentence(
    cut: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    key = b"general.architecture"
    whole = (
        b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, 4) + b"llam"
    )
    path = tmp_path / "model.gguf"
    path.write_bytes(whole[:cut])
    assert run(["generate", "x", "--model", str(path)]) in (1, 2)
    assert _one_line(capsys).startswith("leanthink: ")


def test_weights_that_are_another_pickle_are_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load("tiny")
    model.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for content in (
        pickle.dumps(print),
        pickle.dumps({"a": 1}),
        b"",
        b"PK\x03\x04",
    ):
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        assert run(["generate", "x", "--model", str(tmp_path)]) in (1, 2)
        assert "cannot" in _one_line(capsys)


def test_a_file_of_keys_that_is_not_utf_8_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys").write_bytes("schlüssel\n".encode("latin-1"))
    assert run(["serve", "--keys", str(tmp_path / "keys")]) == 1
    assert "no text in UTF-8" in _one_line(capsys)


def _one_line(capsys: pytest.CaptureFixture[str]) -> str:
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("leanthink: ")]
    assert len(told) == 1, told
    return told[0]


def test_the_viewer_answers_a_broken_host_and_address(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text(to_line(trace("a")) + "\n")
    with make_server(list_traces([path]), host="127.0.0.1", port=0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            for where, host, status in (
                ("/viewer/traces/0.json", "[::", 403),
                ("/viewer/traces/0.json", "[x]", 403),
                ("http://[/viewer", "localhost", 400),
                ("/viewer/traces/0.json", "localhost:x", 200),
            ):
                connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=5)
                connection.putrequest("GET", where, skip_host=True)
                connection.putheader("Host", host)
                connection.endheaders()
                assert connection.getresponse().status == status, (where[:30], host)
                connection.close()
        finally:
            server.shutdown()
            thread.join()
    assert "Traceback" not in capfd.readouterr().err
