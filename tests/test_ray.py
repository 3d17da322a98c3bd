"""Engines on Ray: killed, replaced and handed the same work, they give what one process gives, once."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("ray", reason="Ray is not installed: pip install 'leanthink[ray]'")

from command_line import refused, start
from leanthink.data.problems import from_tasks
from leanthink.data.tasks import registry
from leanthink.data.traces.trace import Trace, TraceWriter, read_traces
from leanthink.engine.sampling import Sampling
from leanthink.entrypoints.cli.options import open_backend
from leanthink.importance.collect import collect
from leanthink.importance.inference_backend import GenerationRequest, LoadedModel
from leanthink.importance.label_file import label_traces, read_labels
from leanthink.integrations.ray import Engines, Plan, Source, Worker, connected, plan, share
from leanthink.models.loading import load
from leanthink.utils.errors import LeanThinkError, LeanThinkWarning, PredictorMismatch, RequestFailed, UsageError
from models import make_model, make_tokenizer
from recorded import trace
from test_eval_cli import keys, keys_so_far, table

SAMPLING = Sampling(temperature=0.7, max_new_tokens=120, seed=3)
PROBLEMS = from_tasks(registry.sample("sums", 1, 4, seed=0))
EVALUATED = ["--tasks", "sums", "--levels", "1", "--count", 6, "--policies", "full,horizon", "--ratios", "2",
             "--recent-window", 8, "--eviction-interval", 16, "--temperature", 0.7, "--max-new-tokens", 150,
             "--max-num-seqs", 1, "--device", "cpu", "--json"]  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of this machine."""
    with connected("local"):
        yield


def open_engines(told: list[str], workers: int = 2, model: str = "tiny") -> Engines:
    source = Source(model=model, device="cpu", dtype=None, predictors={"full": None})
    return Engines(source, workers=workers, tell=told.append)


def processes(told: list[str]) -> list[int]:
    """Of the engines that said that they are there, in that order."""
    return [int(found[1]) for line in told if (found := re.search(r"is process (\d+) on", line))]


def killing(told: list[str], after: int) -> Callable[[int, int], None]:
    """A progress function that kills the engine that came first, once, when so much is done."""

    def kill(done: int, total: int) -> None:
        if done == after:
            os.kill(processes(told)[0], signal.SIGKILL)

    return kill


def kill_after_a_record(folder: Path, told: list[str]) -> None:
    """The engine that came first; stopped before, it is given a request in hand that it cannot finish."""
    while len(processes(told)) < 2 or not (folder / "records.jsonl").exists() or not keys_so_far(folder):
        time.sleep(0.01)
    os.kill(first := processes(told)[0], signal.SIGSTOP)
    time.sleep(1)
    os.kill(first, signal.SIGKILL)


@pytest.mark.slow
def test_an_engine_killed_in_the_middle_of_eval_changes_nothing_in_the_table(inside: Any, tmp_path: Path) -> None:
    whole = inside("eval", *EVALUATED, "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err
    sharded = tmp_path / "sharded"
    told: list[str] = []
    with start("eval", *EVALUATED, "--out", sharded, "--ray", "local", "--ray-workers", 2) as process:
        assert process.stderr is not None
        killer = Thread(target=kill_after_a_record, args=(sharded, told), daemon=True)
        killer.start()
        told.extend(process.stderr)
        out, _ = process.communicate(timeout=120)
    killer.join(timeout=10)
    assert process.returncode == 0, told
    assert len(re.findall(r" died \(.*it is replaced, [1-9]\d* unfinished go to others", "".join(told))) == 1, told
    assert table(out) == table(whole.out)
    assert len(keys(sharded)) == 12
    assert set(keys(sharded)) == set(keys(tmp_path / "whole"))


@pytest.mark.slow
def test_what_a_killed_engine_had_in_hand_is_collected_and_labelled_by_others_once(
    cluster: None, tmp_path: Path
) -> None:
    model, tokenizer = load("tiny", device="cpu")
    alone, shared = tmp_path / "alone.jsonl", tmp_path / "shared.jsonl"
    common: dict[str, Any] = {"samples": 2, "sampling": SAMPLING, "model_name": "tiny"}
    collect(model, tokenizer, PROBLEMS, alone, **common)
    told: list[str] = []
    engines = open_engines(told)
    counts = collect(None, None, PROBLEMS, shared, **common, progress=killing(told, 1), backend=engines)
    assert counts.written == 8
    assert len(read_traces(shared)) == 8
    assert by_key(shared) == by_key(alone)
    assert sum("died" in line for line in told) == 1
    again = collect(None, None, PROBLEMS, shared, **common, resume=True, backend=engines)
    assert (again.written, again.done_before) == (0, 8)

    traces = read_traces(alone)
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("alone", "shared")}
    label_traces(model, traces, paths["alone"], horizons=(4, 16), only_correct=False)
    seen: list[int] = []

    def kill_last(done: int, total: int) -> None:
        seen.append(done)
        if done == 1:
            os.kill(processes(told)[-1], signal.SIGKILL)

    label_traces(
        None, traces, paths["shared"], horizons=(4, 16), only_correct=False, progress=kill_last, backend=engines
    )
    assert seen == list(range(1, 9))
    found = {name: read_labels(path) for name, path in paths.items()}
    assert found["alone"].fingerprint == found["shared"].fingerprint
    assert found["alone"].checksums == found["shared"].checksums
    for key, values_TC in found["alone"].labels.items():
        torch.testing.assert_close(found["shared"].labels[key], values_TC, equal_nan=True)


def by_key(path: Path) -> dict[str, Trace]:
    return {trace.key: trace for trace in read_traces(path)}


class Poison:
    """Ends the process that unpacks it."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


@pytest.mark.slow
def test_work_that_kills_every_engine_ends_in_an_error_after_all_else_is_done(cluster: None) -> None:
    engines = open_engines([], workers=1)
    ask = GenerationRequest(prompt_ids=(1, 2, 3), policy="full", budget=None, sampling=Sampling(max_new_tokens=4))
    asked: list[Any] = [Poison(), ask, ask]
    done: list[int] = []

    def complete() -> None:
        for number, _ in engines.complete(asked, max_rows=1):
            done.append(number)

    with pytest.raises(LeanThinkError, match=r"2 engines died one after the other without a result"):
        complete()
    assert sorted(done) == [1, 2]


@pytest.mark.slow
def test_what_loading_refuses_on_an_engine_is_refused_as_it_would_be_here(cluster: None) -> None:
    with pytest.raises(UsageError, match=r"there is no folder './nowhere'") as caught:
        open_engines([], workers=1, model="./nowhere")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_relative_path_leads_an_engine_to_the_same_files(
    cluster: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    source = Source(model=".", device="cpu", dtype=None, predictors={"horizon": Path("own.safetensors")})
    here = LoadedModel(*load(folder, device="cpu"), {"horizon": folder / "own.safetensors"})
    told: list[str] = []
    assert Engines(source, workers=1, tell=told.append).model_info == here.model_info
    assert len(processes(told)) == 1


def test_an_engine_takes_the_predictor_of_a_relative_only_if_told_to(folder: Path) -> None:
    predictors: dict[str | None, Any] = {"horizon": folder / "other.safetensors"}
    source = Source(model=str(folder), device="cpu", dtype=None, predictors=predictors)
    with pytest.raises(PredictorMismatch):
        next(Worker(source).open())
    with pytest.warns(LeanThinkWarning, match="borrowed from another model"):
        _, about, _ = next(Worker(replace(source, ignore_predictor_mismatch=True)).open())
    assert about.borrowed == {"horizon": "0" * 64}


def test_the_command_says_what_its_engines_borrow(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[Source] = []

    def engines(source: Source, **_: Any) -> Any:
        asked.append(source)
        return SimpleNamespace(model_info=SimpleNamespace(borrowed={"horizon": "0" * 64}))

    monkeypatch.setattr("leanthink.integrations.ray.connected", nullcontext)
    monkeypatch.setattr("leanthink.integrations.ray.Engines", engines)
    files: dict[str | None, Any] = {"full": None, None: "p.safetensors"}
    how: dict[str, Any] = {"ignore_predictor_mismatch": True, "ray": "local", "ray_workers": None}
    with open_backend("tiny", "cpu", None, files, **how):
        (line,) = capfd.readouterr().err.splitlines()
    assert "p.safetensors is borrowed from another model" in line
    assert asked[0].ignore_predictor_mismatch


@given(left=st.integers(1, 10_000), engines=st.integers(1, 64), at_once=st.integers(1, 64))
def test_a_share_is_some_of_what_is_left_and_leaves_an_even_share_to_every_other_engine(
    left: int, engines: int, at_once: int
) -> None:
    count = share(left, engines, at_once)
    assert 1 <= count <= left
    assert count <= -(-left // engines)
    assert count >= min(at_once, -(-left // engines))


def test_shares_shrink_towards_the_end() -> None:
    left, shares = 100, []
    while left:
        shares.append(share(left, 2, 4))
        left -= shares[-1]
    assert shares == [25, 19, 14, 11, 8, 6, 5, 4, 4, 2, 1, 1]


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "expected"),
    [
        ([{"CPU": 2.0}], None, None, Plan(workers=2, cores=1, gpus=0)),
        ([{"CPU": 8.0}], None, 2, Plan(workers=2, cores=4, gpus=0)),
        ([{"CPU": 3.0}, {"CPU": 3.0}], "cpu", 3, Plan(workers=3, cores=1, gpus=0)),  # 2 cores each fit only twice
        ([{"CPU": 3.0}, {"CPU": 3.0}], "cpu", 2, Plan(workers=2, cores=3, gpus=0)),
        ([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 4.0}], None, None, Plan(workers=2, cores=1, gpus=1)),
        ([{"CPU": 16.0, "GPU": 2.0}], "cpu", 4, Plan(workers=4, cores=4, gpus=0)),
        ([{"CPU": 16.0, "GPU": 2.0}], "cuda", 1, Plan(workers=1, cores=1, gpus=1)),
    ],
)
def test_there_is_an_engine_for_each_gpu_or_for_each_share_of_the_cores(
    nodes: list[dict[str, float]], device: str | None, workers: int | None, expected: Plan
) -> None:
    assert plan(nodes, device, workers) == expected


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "told"),
    [
        ([{"CPU": 2.0}], "cuda", None, "has no GPUs"),
        ([{"memory": 2.0}], None, None, "has no cores"),
        ([{"CPU": 2.0}], None, 3, "--ray-workers 3: must be 1 to 2, the cluster has 2 cores"),
        ([{"CPU": 8.0, "GPU": 1.0}], None, 2, "--ray-workers 2: must be 1 to 1, the cluster has 1 GPUs"),
        ([{"CPU": 2.0}], None, 0, "--ray-workers 0"),
    ],
)
def test_more_engines_than_the_cluster_has_room_for_are_refused(
    nodes: list[dict[str, float]], device: str | None, workers: int | None, told: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        plan(nodes, device, workers)


@pytest.mark.parametrize("command", ["eval", "collect", "label"])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ray", "ray://head:10001"], ["ray://head:10001", "--ray auto"]),
        (["--ray", "local", "--device", "cuda:0"], ["--device cuda:0 with --ray"]),
        (["--ray", "local", "--dtype", "float8"], ["unknown dtype 'float8'"]),
        (["--ray-workers", "2"], ["belongs to --ray"]),
    ],
)
def test_what_ray_cannot_do_is_refused_before_anything_is_started(
    command: str, words: list[str], told: list[str], inside: Any, tmp_path: Path
) -> None:
    with TraceWriter(tmp_path / "t.jsonl") as writer:
        writer.write(trace("a"))
    asked = ["--traces", tmp_path / "t.jsonl"] if command == "label" else ["--tasks", "sums"]
    refused(inside(command, *asked, "--out", tmp_path / "out", *words), 2, *told)
    assert not (tmp_path / "out").exists()


def test_without_ray_the_extra_is_named(inside: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "leanthink.integrations.ray")
    asked = ["collect", "--tasks", "sums", "--ray", "local", "--out", tmp_path / "t.jsonl"]
    refused(inside(*asked), 2, "pip install 'leanthink[ray]'")


@pytest.mark.slow
def test_a_request_that_fails_on_an_engine_is_told_when_all_others_are_done(cluster: None, tmp_path: Path) -> None:
    model = make_model("qwen3")
    with torch.no_grad():
        model.get_input_embeddings().weight[20] = torch.nan
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    engines = open_engines([], workers=1, model=str(tmp_path))
    ask = GenerationRequest(prompt_ids=(1, 2, 3), policy="full", budget=None, sampling=Sampling(max_new_tokens=4))
    asked = [replace(ask, prompt_ids=(i, 20) if i in (3, 5) else (i, 4)) for i in range(8)]
    for _ in range(2):  # an engine that had one goes on
        done: list[int] = []
        with pytest.raises(RequestFailed, match=r"request 3 failed: the model's logits are NaN.* \(2 of 8 requests"):
            done.extend(number for number, _ in engines.complete(asked, max_rows=2))  # one by one
        assert sorted(done) == [0, 1, 2, 4, 6, 7]
