from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from leanthink.importance.batches import BATCH_TOKENS, batches_by_length, padded
from leanthink.importance.inference_backend import LoadedModel
from leanthink.importance.label_file import default_horizons, label_traces, read_labels
from leanthink.importance.labels import Thought, label_batch, packed
from leanthink.utils.errors import DamagedFile, PredictorMismatch, UsageError
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


def test_traces_of_another_model_are_refused_and_nothing_is_written(model: Any, tmp_path: Path) -> None:
    own = LoadedModel(model, None, {}).model_info.fingerprint
    path = tmp_path / "l.safetensors"
    traces = [trace("a"), trace("b", fingerprint=own), trace("c", fingerprint="0f", model="other")]
    with pytest.raises(UsageError, match=r"'c#0' was written by 'other'.*collect traces with this one"):
        label_traces(model, traces, path, horizons=HORIZONS)
    assert not path.exists()
    assert label_traces(model, traces[:2], path, horizons=HORIZONS).labelled == 2


def test_tokens_that_the_model_does_not_know_are_refused(model: Any, tmp_path: Path) -> None:
    strange = trace("a")
    strange = replace(strange, token_ids=(*strange.token_ids[:-1], 20))
    with pytest.raises(UsageError, match="token 20, and the model's vocabulary has 20"):
        label_traces(model, [strange], tmp_path / "l", horizons=HORIZONS)


CPU = torch.device("cpu")


@pytest.mark.parametrize("most_tokens", [1, 7, 12, 13, 40, 1000])
def test_batches_hold_every_sequence_once_and_no_more_tokens_than_allowed(
    most_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BATCH_TOKENS, "cpu", most_tokens)
    lengths = [3, 6, 12, 6, 1, 5, 6]
    batches = list(batches_by_length(lengths, CPU))
    assert [index for batch in batches for index in batch] == [2, 1, 3, 6, 5, 0, 4]
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= most_tokens
    for batch, following in pairwise(batches):
        assert (len(batch) + 1) * lengths[batch[0]] > most_tokens, following
    assert list(batches_by_length([], CPU)) == []


def test_a_processor_labels_one_trace_at_a_time_and_a_gpu_many() -> None:
    assert list(batches_by_length([1, 1], CPU)) == [[0], [1]]
    assert list(batches_by_length([900] * 3, torch.device("cuda"))) == [[0, 1, 2]]


def test_shorter_sequences_are_padded_on_the_right() -> None:
    assert padded([(5, 6, 7), [8], [9, 4]], CPU).tolist() == [[5, 6, 7], [8, 0, 0], [9, 4, 0]]


def test_traces_labelled_in_batches_get_the_labels_they_get_alone(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, together, seen, batch_sizes = tmp_path / "alone", tmp_path / "together", [], []
    label_traces(model, TRACES, alone, horizons=HORIZONS)
    monkeypatch.setitem(BATCH_TOKENS, "cpu", 3 * 33)
    hook = model.model.register_forward_pre_hook(
        lambda _module, _inputs, options: batch_sizes.append(len(options["input_ids"])), with_kwargs=True
    )
    counts = label_traces(model, TRACES, together, horizons=HORIZONS, progress=lambda *now: seen.append(now))
    hook.remove()
    assert batch_sizes == [3, 3, 3, 3]
    assert counts.labelled == len(TRACES)
    assert seen == [(done, len(TRACES)) for done in range(1, len(TRACES) + 1)]
    one, other = read_labels(alone), read_labels(together)
    assert one.checksums == other.checksums
    for key, values in one.labels.items():
        torch.testing.assert_close(other.labels[key], values, rtol=1e-4, atol=1e-6)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("batch_tokens", [1, 2 * 29])
@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_labelling_goes_on_where_it_was_stopped(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int, batch_tokens: int
) -> None:
    monkeypatch.setitem(BATCH_TOKENS, "cpu", batch_tokens)

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
        torch.testing.assert_close(read_labels(path).labels[key], values, rtol=1e-4, atol=1e-6)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["l.safetensors", "whole.safetensors"]


@pytest.mark.parametrize("batch_tokens", [1, 90])
def test_labels_are_on_disk_while_labelling_goes_on(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_tokens: int
) -> None:
    monkeypatch.setitem(BATCH_TOKENS, "cpu", batch_tokens)
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
    whole = {"leanthink": "labels", "version": "2", "horizons": "[2]", "fingerprint": "f", "checksums": '{"a#0": 1}'}
    for change in ({"horizons": "["}, {"checksums": "{}"}, {"fingerprint": None}):
        metadata = {name: value for name, value in (whole | change).items() if value is not None}
        save_file({"a#0": torch.zeros(1, 2)}, path, metadata=metadata)
        with pytest.raises(DamagedFile):
            read_labels(path)
    save_file({"a#0": torch.zeros(1, 2)}, path, metadata=whole | {"version": "1"})
    with pytest.raises(UsageError, match="version 1, not 2: label the traces anew"):
        read_labels(path)
    save_file({"a#0": torch.zeros(1, 2)}, path)
    with pytest.raises(UsageError, match="holds no labels"):
        read_labels(path)


def test_a_file_without_any_trace_to_label_is_empty_and_can_be_resumed(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    assert label_traces(model, [], path, horizons=HORIZONS).labelled == 0
    assert read_labels(path).labels == {}
    assert label_traces(model, [trace("a")], path, horizons=HORIZONS).labelled == 1


def test_a_file_to_be_overwritten_stays_until_there_is_something_else(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    label_traces(model, [trace("a")], path, horizons=HORIZONS)
    before = path.read_bytes()
    foreign = trace("b", token_ids=(10**6,) * 25)
    with pytest.raises(UsageError, match="the model's vocabulary has"):
        label_traces(model, [foreign], path, horizons=HORIZONS, overwrite=True)
    assert path.read_bytes() == before
    with pytest.raises(UsageError, match="the model's vocabulary has"):
        label_traces(model, [foreign], tmp_path / "new", horizons=HORIZONS)
    assert not (tmp_path / "new").exists(), "nothing to be refused by the next attempt"


def test_long_traces_get_a_longer_horizon() -> None:
    short, long = trace("s"), trace("l", thought=4090, answer=10)
    assert default_horizons([]) == default_horizons([short]) == (16, 32, 64, 128, 256, 512, 1024)
    assert default_horizons([short] * 3 + [long]) == (16, 32, 64, 128, 256, 512, 1024, 2048)
    assert default_horizons([short] * 4 + [long])[-1] == 1024


def test_labels_of_index_sets_are_written_and_resumed(model: Any, tmp_path: Path) -> None:
    path, whole = tmp_path / "l.safetensors", tmp_path / "whole.safetensors"
    label_traces(model, TRACES[:2], path, horizons=HORIZONS, granularity="head")
    label_traces(model, TRACES[:4], path, horizons=HORIZONS, granularity="head")
    label_traces(model, TRACES[:4], whole, horizons=HORIZONS, granularity="head")
    found, expected = read_labels(path), read_labels(whole)
    assert found.granularity == "head"
    for one in TRACES[:4]:
        assert torch.equal(found.sets_of(one), expected.sets_of(one))
        thought = Thought.of(one)
        (labels,) = label_batch(model, [thought], HORIZONS, granularity="head")
        assert torch.equal(found.sets_of(one), packed(labels.sets_XTH))
        assert torch.equal(found.of(one), labels.values_TC)


def test_labels_of_another_granularity_are_refused(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    label_traces(model, TRACES[:1], path, horizons=HORIZONS, granularity="model")
    with pytest.raises(UsageError, match="granularity 'model', asked for is 'layer': give another file"):
        label_traces(model, TRACES[:1], path, horizons=HORIZONS, granularity="layer")
    with pytest.raises(UsageError, match="unknown granularity 'token'"):
        label_traces(model, TRACES[:1], tmp_path / "m", horizons=HORIZONS, granularity="token")  # type: ignore[arg-type]
