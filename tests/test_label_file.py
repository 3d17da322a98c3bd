from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from leanthink.errors import DamagedFile, PredictorMismatch, UsageError
from leanthink.importance.label_file import default_horizons, label_traces, read_labels
from recorded import HORIZONS, TRACES, small_model, trace


@pytest.fixture(scope="module")
def model() -> Any:
    return small_model()


def test_labels_of_a_file_are_those_of_its_traces(model: Any, tmp_path: Path) -> None:
    path, seen = tmp_path / "l.safetensors", []
    traces = [
        trace("a"),
        trace("wrong", correct=False),
        trace("ungraded", correct=None),
        trace("no thought", thought=0),
        trace("unclosed", answer=0),
        trace("only closed", answer=1),
    ]
    counts = label_traces(model, traces, path, horizons=HORIZONS, progress=lambda *now: seen.append(now))
    assert (counts.labelled, counts.done_before, counts.not_correct, counts.no_thought, counts.no_answer) == (
        3,
        0,
        2,
        1,
        2,
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    found = read_labels(path)
    assert found.horizons == HORIZONS
    assert set(found.labels) == {"a#0", "unclosed#0", "only closed#0"}
    assert found.labels["a#0"].shape == (20, 3)
    assert found.labels["unclosed#0"][:, 0].isnan().all()
    assert found.of(trace("none")) is None


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_labelling_goes_on_where_it_was_stopped(model: Any, tmp_path: Path, stop_after: int) -> None:
    def stop(done: int, total: int) -> None:
        if done == stop_after:
            raise Stopped

    path, whole = tmp_path / "l.safetensors", tmp_path / "whole.safetensors"
    with pytest.raises(Stopped):
        label_traces(model, TRACES[:4], path, horizons=HORIZONS, save_every=2, progress=stop)
    assert len(read_labels(path).labels) == stop_after
    counts = label_traces(model, TRACES[:4], path, horizons=HORIZONS)
    assert (counts.labelled, counts.done_before) == (4 - stop_after, stop_after)
    label_traces(model, TRACES[:4], whole, horizons=HORIZONS)
    assert read_labels(path).checksums == read_labels(whole).checksums
    for key, values in read_labels(whole).labels.items():
        assert torch.equal(values, read_labels(path).labels[key])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["l.safetensors", "whole.safetensors"]


def test_labels_are_on_disk_while_labelling_goes_on(model: Any, tmp_path: Path) -> None:
    path, on_disk = tmp_path / "l.safetensors", []

    def look(done: int, total: int) -> None:
        on_disk.append(len(read_labels(path).labels) if path.exists() else 0)

    label_traces(model, TRACES[:5], path, horizons=HORIZONS, save_every=2, progress=look)
    assert on_disk == [0, 2, 2, 4, 4]


def test_labels_of_other_settings_are_not_mixed(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    label_traces(model, [trace("a")], path, horizons=HORIZONS)
    with pytest.raises(UsageError, match=r"\[2, 8\], asked for are \[4\]"):
        label_traces(model, [trace("a")], path, horizons=(4,))
    with pytest.raises(PredictorMismatch, match="another model"):
        label_traces(small_model(num_hidden_layers=1), [trace("a")], path, horizons=HORIZONS)
    changed = trace("a", seed=1, token_ids=(1,) * 25)
    with pytest.raises(UsageError, match="another trace"):
        label_traces(model, [changed], path, horizons=HORIZONS)
    with pytest.raises(UsageError, match="another trace"):
        read_labels(path).of(changed)
    label_traces(model, [changed], path, horizons=(4,), overwrite=True)
    assert read_labels(path).horizons == (4,)


def test_broken_and_foreign_label_files_are_told_apart(tmp_path: Path, model: Any) -> None:
    path = tmp_path / "l.safetensors"
    with pytest.raises(UsageError, match="no file of labels"):
        read_labels(path)
    label_traces(model, [trace("a")], path, horizons=HORIZONS)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DamagedFile, match="truncated"):
        read_labels(path)
    whole = {"leanthink": "labels", "version": "1", "horizons": "[2]", "fingerprint": "f", "checksums": '{"a#0": 1}'}
    for change in ({"horizons": "["}, {"checksums": "{}"}, {"fingerprint": None}):
        metadata = {name: value for name, value in (whole | change).items() if value is not None}
        save_file({"a#0": torch.zeros(1, 2)}, path, metadata=metadata)
        with pytest.raises(DamagedFile):
            read_labels(path)
    save_file({"a#0": torch.zeros(1, 2)}, path, metadata=whole | {"version": "9"})
    with pytest.raises(UsageError, match="version 9"):
        read_labels(path)
    save_file({"a#0": torch.zeros(1, 2)}, path)
    with pytest.raises(UsageError, match="holds no labels"):
        read_labels(path)


def test_a_file_without_any_trace_to_label_is_empty_and_can_be_gone_on_with(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    assert label_traces(model, [], path, horizons=HORIZONS).labelled == 0
    assert read_labels(path).labels == {}
    assert label_traces(model, [trace("a")], path, horizons=HORIZONS).labelled == 1


def test_long_traces_get_a_longer_horizon() -> None:
    short, long = trace("s"), trace("l", thought=4090, answer=10)
    assert default_horizons([]) == default_horizons([short]) == (32, 64, 128, 256, 512, 1024)
    assert default_horizons([short] * 3 + [long]) == (32, 64, 128, 256, 512, 1024, 2048)
    assert default_horizons([short] * 4 + [long])[-1] == 1024
