"""From problems to a predictor in one command: what it makes, how it goes on, what it refuses and what it tells."""

from __future__ import annotations

import json
import shlex
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from command_line import refused
from leanthink.data.problems import Problem
from leanthink.data.tasks import registry
from leanthink.data.traces.trace import read_traces, to_line
from leanthink.engine.sampling import Sampling
from leanthink.entrypoints.cli.progress import ProgressBar
from leanthink.importance import damage as damaging
from leanthink.importance import expect as expecting
from leanthink.importance import fit as fitting
from leanthink.importance.damage import damage
from leanthink.importance.expect import budget_at, expect
from leanthink.importance.fit_config import FitConfig
from leanthink.importance.labels import Thought
from leanthink.importance.make_predictor import Plan, check_lengths
from leanthink.importance.work_folder import WorkFolder
from leanthink.models.predictor import Predictor, read_metadata
from leanthink.policies import make_policy
from leanthink.policies.budget import Budget
from leanthink.utils.errors import DamagedFile, UsageError
from recorded import small_model, trace

SAMPLED = ["--tasks", "multiply", "--levels", "1,2", "--count", 2, "--max-new-tokens", 60]
FIT = ["--horizons", "4,16", "--steps", 6, "--batch", 32]
SMALL = [*SAMPLED, *FIT]


def content(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a predictor's file says, and its weights; it may be written in any order."""
    return read_metadata(path), {name: weight.tolist() for name, weight in load_file(path).items()}


def without_seconds(document: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(document)
    assert list(found.pop("seconds")) == ["collect", "label", "fit", "expect"]
    return found


def test_one_command_makes_what_collect_label_and_fit_make(folder: Path, inside: Any, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    run = inside("predictor", "--model", folder, *SMALL, "--out", out, "--json")
    assert run.code == 0, run.err
    assert f"leanthink: traces and labels go to {out}.work" in run.err
    traces, labels, other = (tmp_path / name for name in ("t.jsonl", "l.safetensors", "q.safetensors"))
    sets = ["--granularity", "head", "--all", "--model", folder]
    assert inside("collect", "--model", folder, *SAMPLED, "--temperature", 0.8, "--out", traces).code == 0
    assert read_traces(tmp_path / "p.safetensors.work" / "traces.jsonl") == read_traces(traces)
    asked = [problem.id for level in (1, 2) for problem in registry.sample("multiply", level, 2, 0, "train")]
    by_problem = sorted(read_traces(traces), key=lambda one: asked.index(one.id))  # not as they were finished
    traces.write_text("".join(to_line(one) + "\n" for one in by_problem))
    for words in (
        ["label", "--traces", traces, "--horizons", "4,16", *sets, "--out", labels],
        ["fit", "--traces", traces, "--labels", labels, *FIT, *sets, "--out", other],
    ):
        assert inside(*words).code == 0
    assert content(out) == content(other)
    found, metadata = without_seconds(run.out), read_metadata(out)
    assert (found["problems"], found["traces"], found["tokens"]) == (4, 4, 240)
    assert found["correct"] == sum(bool(one.correct) for one in read_traces(traces))
    assert (found["data"], found["metrics"]) == (metadata["data"], metadata["metrics"])
    assert (found["metrics"]["held_out_traces"], found["bytes"]) == (1, out.stat().st_size)
    assert found["expected"]["budget"] == {"slots": 12, "window": 3, "interval": 3, "answer": 1024}
    assert found["expected"]["tokens"] == 60 - 15
    assert list(found["expected"]["kl"]) == list(found["expected"]["changed"]) == ["horizon", "sinks"]
    assert found["expected"]["kl"]["sinks"] > 0


def test_the_report_says_what_was_held_out_and_ends_with_a_command_that_uses_it(
    folder: Path, inside: Any, tmp_path: Path
) -> None:
    out = tmp_path / "my predictor"
    run = inside("predictor", "--model", folder, *SMALL, "--out", out)
    assert run.code == 0, run.err
    *told, empty, last = run.out.splitlines()
    assert told[0].startswith(f"{out}, 0.")
    assert told[1].startswith("4 traces of 4 problems: 0.0% right, 240 tokens; fitted to 3, whose mean thought is 60")
    assert told[2].startswith("seconds: collect ")
    assert told[3] == "held out: 1 traces of other problems, 60 tokens"
    assert [line.split()[0] for line in told[4:8]] == ["train", "held-out", "4:", "16:"]
    assert told[8].startswith(
        "what to expect at 4x fewer slots than the mean thought, on 1 held-out thoughts (45 tokens"
    )
    assert [line.split(":")[0] for line in told[9:]] == ["horizon", "sinks"]
    assert empty == ""
    used = inside(*shlex.split(last)[1:], "--max-new-tokens", 30, "--json")
    assert used.code == 0, used.err
    assert json.loads(used.out)["evictions"] == 5
    refused(inside("predictor", "--model", folder, *SMALL, "--out", out), 2, f"{out} exists", "--resume", "--overwrite")


def test_dynts_is_fitted_where_answers_are_said_to_begin(folder: Path, inside: Any, tmp_path: Path) -> None:
    out = tmp_path / "p"
    fitted = ["--target", "answer", "--answer-from", 0.8, "--steps", 6, "--batch", 32, "--all"]
    run = inside("predictor", "--model", folder, *SAMPLED, *fitted, "--out", out)
    assert run.code == 0, run.err
    metadata = read_metadata(out)
    assert (metadata["target"], metadata["data"]["answer_from"]) == ("answer", 0.8)
    assert "(45 tokens after an eviction)" in run.out, "a policy ranks all that is generated"
    *_, dynts, _, _, last = run.out.splitlines()
    assert dynts.startswith("dynts: mean KL")
    assert "--policy dynts --budget 12 --recent-window 3 --eviction-interval 3" in last


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An uninterrupted run, for those that are interrupted."""
    out = tmp_path_factory.mktemp("whole") / "p.safetensors"
    from leanthink.entrypoints import cli

    assert cli.run([str(word) for word in ["predictor", "--model", folder, *SMALL, "--out", out]]) == 0
    return content(out)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What progress was told, stage by stage, and where Ctrl-C comes: at this many done of a stage."""
    seen = SimpleNamespace(stages=[], stop=None)

    def update(self: ProgressBar, what: str, done: int, total: int) -> None:
        seen.stages += [] if what in seen.stages else [what]
        if seen.stop == (what, done):
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressBar, "update", update)
    return seen


EVERY = ["traces", "labels", "traces read", "training steps", "thoughts with evictions"]


@pytest.mark.parametrize(
    ("what", "done", "left", "again"),
    [
        ("traces", 2, "2 traces and the labels of 0", EVERY),
        ("labels", 2, "4 traces and the labels of 2", EVERY[1:]),
        ("traces read", 1, "4 traces and the labels of 4", EVERY[2:]),
        ("training steps", 3, "4 traces and the labels of 4", EVERY[2:]),
        ("thoughts with evictions", 1, "4 traces and the labels of 4", EVERY[4:]),
    ],
)
def test_a_stopped_run_goes_on_at_its_stage_and_comes_to_the_same_end(
    what: str,
    done: int,
    left: str,
    again: list[str],
    folder: Path,
    whole: Any,
    inside: Any,
    watched: Any,
    tmp_path: Path,
) -> None:
    out = tmp_path / "p.safetensors"
    words = ["predictor", "--model", folder, *SMALL, "--out", out]
    watched.stop = (what, done)
    stopped = inside(*words)
    assert stopped.code == 130
    assert stopped.out == ""
    assert stopped.err.splitlines()[-2:] == [
        f"leanthink: {out}.work holds {left}; the same command with --resume goes on from there",
        "leanthink: interrupted",
    ]
    refused(inside(*words), 2, "exists", "--resume to go on with it, or --overwrite to replace it")
    watched.stop, watched.stages = None, []
    resumed = inside(*words, "--resume", "--json")
    assert resumed.code == 0, resumed.err
    assert watched.stages == again
    assert content(out) == whole
    watched.stages = []
    finished = inside(*words, "--resume", "--json")
    assert watched.stages == [], "all of it is done"
    assert without_seconds(finished.out) == without_seconds(resumed.out)


def test_more_samples_are_added_and_fitted_to_anew(folder: Path, inside: Any, watched: Any, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    words = ["predictor", "--model", folder, *SMALL, "--out", out, "--json"]
    assert inside(*words).code == 0
    before = read_traces(tmp_path / "p.safetensors.work" / "traces.jsonl")
    watched.stages = []
    found = without_seconds(inside(*words, "--samples", 2, "--resume").out)
    assert watched.stages == EVERY
    assert (found["problems"], found["traces"], found["data"]["traces"]) == (4, 8, 6)
    after = read_traces(tmp_path / "p.safetensors.work" / "traces.jsonl")
    assert after[:4] == before
    fewer = without_seconds(inside(*words, "--resume").out)
    assert (fewer["traces"], fewer["data"]["traces"]) == (4, 3)


def test_overwrite_begins_anew_and_what_it_left_can_be_resumed(
    folder: Path, inside: Any, watched: Any, tmp_path: Path
) -> None:
    out = tmp_path / "p.safetensors"
    words = ["predictor", "--model", folder, *SMALL, "--out", out, "--json"]
    assert inside(*words).code == 0
    old = content(out)
    watched.stop = ("traces", 2)
    assert inside(*words, "--seed", 1, "--overwrite").code == 130
    assert content(out) == old, "the predictor stays until there is another"
    watched.stop = None
    assert inside(*words, "--seed", 1, "--resume").code == 0
    assert content(out) != old
    traces = read_traces(tmp_path / "p.safetensors.work" / "traces.jsonl")
    assert len({one.key for one in traces}) == len(traces) == 4


def test_old_traces_are_not_taken_for_those_of_an_overwrite_that_was_stopped_before_its_first(
    folder: Path, inside: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.safetensors"
    words = ["predictor", "--model", folder, *SMALL, "--out", out, "--json"]
    assert inside(*words).code == 0

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(import_module("leanthink.importance.make_predictor"), "collect", stopped)
        assert inside(*words, "--max-new-tokens", 40, "--overwrite").code == 130
    assert out.exists(), "the predictor stays until there is another"
    assert inside(*words, "--max-new-tokens", 40, "--resume").code == 0
    traces = read_traces(tmp_path / "p.safetensors.work" / "traces.jsonl")
    assert {len(one.token_ids) for one in traces} == {40}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--think-tags", "[A]", "[/A]"], ["think_tags ['<think>', '</think>'], asked for is ['[A]', '[/A]']"]),
        (["--dtype", "bfloat16"], ["dtype 'float32', asked for is 'bfloat16'"]),
    ],
)
def test_what_model_and_tokenizer_add_to_the_settings_is_not_mixed(
    changed: list[str], words: list[str], folder: Path, inside: Any, watched: Any, tmp_path: Path
) -> None:
    out = tmp_path / "p.safetensors"
    asked = ["predictor", "--model", folder, *SMALL, "--out", out, "--json"]
    watched.stop = ("traces", 2)
    assert inside(*asked).code == 130
    watched.stop = None
    before = (tmp_path / "p.safetensors.work" / "traces.jsonl").read_bytes()
    mixed = inside(*asked, "--resume", *changed)
    assert mixed.code == 2
    assert all(word in mixed.err.splitlines()[-1] for word in ["traces.jsonl was made with", *words])
    assert (tmp_path / "p.safetensors.work" / "traces.jsonl").read_bytes() == before
    assert inside(*asked, "--resume", "--granularity", "head").code == 0, "the default, spelt out"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--temperature", 0.5], ["traces.jsonl was made with temperature 0.8, asked for is 0.5"]),
        (["--model", "no/such"], ["traces.jsonl was made with model"]),
        (["--horizons", "4"], ["labels.safetensors was made with horizons [4, 16], asked for is [4]"]),
        (["--answer-from", "0.5"], ["labels.safetensors was made with answer_from None, asked for is 0.5"]),
        (["--correct-only"], ["labels.safetensors was made with only_correct False, asked for is True"]),
        (["--steps", 7], ["p.safetensors was made with steps 6, asked for is 7", "another output file"]),
    ],
)
def test_other_settings_than_those_of_the_run_are_refused_before_the_model_is_loaded(
    changed: list[object],
    words: list[str],
    folder: Path,
    inside: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = Plan(
        problems=[Problem(id="a", problem="?", answer="1"), Problem(id="b", problem="?", answer="1")],
        model=str(folder),
        fit_config=FitConfig(horizons=(4, 16), steps=6, batch=32, granularity="head", only_correct=False),
        sampling=Sampling(temperature=0.8, max_new_tokens=60),
    )
    made = WorkFolder(tmp_path / "p.safetensors")
    made.path.mkdir()
    for path in (made.out, made.traces, made.labels):
        path.touch()
    for stage, settings in plan.settings.items():
        with made.stage(stage, settings):
            pass
    monkeypatch.setattr(import_module("leanthink.models.loading"), "load_tiny", None)
    monkeypatch.setattr(import_module("leanthink.models.loading"), "AutoModelForCausalLM", None)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = inside("predictor", "--model", folder, *SMALL, "--out", made.out, "--resume", *changed)
    refused(result, 2, *words)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--out NEW", ["--tasks", "--problems"]),
        ("--tasks sums --problems GOOD --out NEW", ["--tasks", "--problems"]),
        ("--problems BAD --out NEW", ["bad.jsonl, line 2"]),
        ("--problems GOOD --problems BAD --out NEW", ["bad.jsonl, line 2"]),
        ("--problems EMPTY --out NEW", ["empty.jsonl holds no problem"]),
        ("--problems NONE --out NEW", ["no file of problems"]),
        ("--problems GOOD --problems GOOD --out NEW", ["two files of problems are called good"]),
        ("--problems GOOD --limit 1 --out NEW", ["one problem is too few", "at least two"]),
        ("--problems GOOD --limit 0 --out NEW", ["--limit"]),
        ("--problems GOOD --samples 0 --out NEW", ["samples=0"]),
        ("--problems GOOD --samples 2 --temperature 0 --out NEW", ["--temperature"]),
        ("--problems GOOD --max-num-seqs 0 --out NEW", ["--max-num-seqs"]),
        ("--problems GOOD --horizons 16,8 --out NEW", ["ascending"]),
        ("--problems GOOD --horizons 16,x --out NEW", ["--horizons", "16,x"]),
        ("--problems GOOD --horizons 64,512 --max-new-tokens 512 --out NEW", ["horizon 512", "at most 512 tokens"]),
        ("--problems GOOD --answer-from 1.5 --out NEW", ["cannot begin from 1.5"]),
        ("--problems GOOD --granularity heads --out NEW", ["'heads'", "Did you mean 'head'?"]),
        ("--problems GOOD --target answers --out NEW", ["'answers'", "'answer'"]),
        ("--problems GOOD --target answer --horizons 16 --out NEW", ["horizons", "'horizon'"]),
        ("--problems GOOD --dtype float8 --out NEW", ["'float8'"]),
        ("--problems GOOD --out FOLDER", ["is a folder"]),
        ("--problems GOOD --out GOOD", ["good.jsonl exists", "--resume", "--overwrite"]),
        ("--problems GOOD --out NEW --resume --overwrite", ["exclude each other"]),
    ],
)
def test_what_can_be_refused_is_refused_before_the_model_is_loaded(
    arguments: str, words: list[str], inside: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = '{"id": "1", "problem": "1 + 1?", "answer": "2"}\n'
    places = {name: tmp_path / f"{name.lower()}.jsonl" for name in ("GOOD", "BAD", "EMPTY", "NONE", "NEW")}
    places["GOOD"].write_text(line + line.replace('"1"', '"2"', 1))
    places["BAD"].write_text(line + '{"id": "2",\n')
    places["EMPTY"].write_text("\n")
    monkeypatch.setattr(import_module("leanthink.models.loading"), "load_tiny", None)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    filled = [str(places.get(word, tmp_path if word == "FOLDER" else word)) for word in shlex.split(arguments)]
    refused(inside("predictor", *filled), 2, *words)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_damaged_record_is_told_and_traces_stay(inside: Any, tmp_path: Path) -> None:
    made = WorkFolder(tmp_path / "p.safetensors")
    made.path.mkdir()
    for text in ("{", '{"fit": {}}', "[1]"):
        (made.path / "stages.json").write_text(text)
        with pytest.raises(DamagedFile, match="remove it; traces and labels stay"):
            WorkFolder(made.out)


def test_problems_of_several_files_may_have_the_same_ids(folder: Path, inside: Any, tmp_path: Path) -> None:
    for name in ("some", "others"):
        lines = [{"problem": f"{n} + {n}? ({name})", "answer": str(2 * n)} for n in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = ["--problems", tmp_path / "some.jsonl", "--problems", tmp_path / "others.jsonl", "--limit", 2]
    out = tmp_path / "p"
    run = inside("predictor", "--model", folder, *files, *FIT, "--max-new-tokens", 30, "--out", out, "--json")
    assert run.code == 0, run.err
    traces = read_traces(tmp_path / "p.work" / "traces.jsonl")
    assert {one.id for one in traces} == {"some/1", "some/2", "others/1", "others/2"}


def test_traces_that_cannot_be_fitted_to_stay_and_are_resumed(
    folder: Path, inside: Any, watched: Any, tmp_path: Path
) -> None:
    out = tmp_path / "p"
    words = ["predictor", "--model", folder, *SMALL, "--out", out, "--json"]
    refused_run = inside(*words, "--correct-only")
    assert refused_run.code == 2
    assert "too few of 4 traces can be fitted to: 4 are not correct, 0 have no thought" in refused_run.err
    assert watched.stages == ["traces"]
    watched.stages = []
    assert inside(*words, "--resume").code == 0
    assert watched.stages == EVERY[1:]


def test_traces_too_few_or_too_short_are_refused_before_they_are_labelled() -> None:
    two = [trace("a", thought=30, answer=5), trace("b", thought=12, answer=4, correct=False)]
    check_lengths(two, FitConfig(only_correct=False))
    check_lengths(two, FitConfig(only_correct=False, horizons=(8, 34)))
    with pytest.raises(UsageError, match="horizon 35: the longest of 2 traces has 35 tokens"):
        check_lengths(two, FitConfig(only_correct=False, horizons=(8, 35)))
    with pytest.raises(UsageError, match="horizon 16: the longest of 2 traces has 16 tokens"):
        check_lengths([two[1], trace("c", thought=10, answer=2)], FitConfig(only_correct=False))
    with pytest.raises(UsageError, match="too few of 2 traces can be fitted to: 1 are not correct, 0 have no thought"):
        check_lengths(two, FitConfig(only_correct=True))
    with pytest.raises(UsageError, match="0 are not correct, 1 have no thought"):
        check_lengths([two[0], trace("d", thought=0)], FitConfig(only_correct=False))
    with pytest.raises(UsageError, match="too few of 2"):
        check_lengths([two[0], trace("a", 1)], FitConfig(only_correct=False))
    check_lengths(two[:1], FitConfig(val_share=0))


def test_a_fit_does_not_hang_on_the_order_in_which_traces_were_finished() -> None:
    problems = [Problem(id=name, problem="?", answer="1") for name in "ab"]
    plan = Plan(problems=problems, model="m", fit_config=FitConfig(), sampling=Sampling(), samples=2)
    there = [trace("b", 1), trace("c"), trace("a", 1), trace("a"), trace("b", 2)]
    assert [one.key for one in plan.own(there)] == ["a#0", "a#1", "b#1"]


def test_the_budget_that_is_simulated_holds_a_quarter_of_the_mean_thought() -> None:
    assert budget_at(4, 1210.0) == Budget(slots=302 - 64)
    assert budget_at(4, 308.0) == Budget(slots=77 - 19, recent_window=19, eviction_interval=19)
    assert budget_at(4, 16.0) == Budget(slots=3, recent_window=1, eviction_interval=1)
    assert budget_at(4, 15.9) is None


def predictor_of(model: Any, **changes: Any) -> Predictor:
    torch.manual_seed(0)
    given: dict[str, Any] = {"target": "horizon", "horizons": (2, 8), "granularity": "head", "num_sets": 4} | changes
    return Predictor(hidden_size=model.config.hidden_size, **given).eval()


def test_what_to_expect_is_the_mean_over_the_tokens_of_held_out_thoughts() -> None:
    model, seen = small_model(), list[tuple[int, int]]()
    predictor, traces = predictor_of(model), [trace("a", thought=20), trace("b", thought=5), trace("c", thought=31)]
    found = expect(model, predictor, traces, thought_tokens=40.0, progress=lambda *now: seen.append(now))
    budget = Budget(slots=8, recent_window=2, eviction_interval=2)
    assert found is not None
    assert (found.budget, found.traces, found.tokens) == (budget, 2, 10 + 21)
    assert seen == [(1, 2), (2, 2)]
    policies = [make_policy("horizon", predictor), make_policy("sinks")]
    each = [damage(model, Thought.of(one), policies, budget) for one in (traces[0], traces[2])]
    for index, name in enumerate(("horizon", "sinks")):
        kl_N = torch.cat([one[index].kl_N for one in each])
        assert found.kl[name] == pytest.approx(float(kl_N.mean()))
        changed_N = torch.cat([one[index].changed_N for one in each])
        assert found.changed[name] == pytest.approx(int(changed_N.sum()) / 31)
    assert expect(model, predictor, traces[1:2], thought_tokens=40.0) is None
    assert expect(model, predictor, traces, thought_tokens=9.0) is None
    assert expect(model, predictor, [], thought_tokens=40.0) is None


def test_many_held_out_thoughts_are_sampled_and_long_ones_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    answer = predictor_of(model, target="answer", horizons=(), granularity="model", num_sets=1)
    monkeypatch.setattr(expecting, "MOST_TRACES", 2)
    monkeypatch.setitem(expecting.MASK_BYTES, "cpu", 18 * 18)
    traces = [trace(str(number), thought=14 + number) for number in range(4)]
    found = expect(model, answer, traces, thought_tokens=40.0)
    assert found is not None
    assert list(found.kl) == ["dynts", "sinks"]
    assert (found.traces, found.tokens) == (2, (14 - 10) + (15 - 10)), "the first and third, both within 18 tokens"


def test_damage_does_not_hang_on_how_many_positions_are_compared_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, thought = small_model(), Thought.of(trace("a", thought=30))
    policies, budget = [make_policy("sinks")], Budget(slots=6, recent_window=2, eviction_interval=2)
    (whole,) = damage(model, thought, policies, budget)
    monkeypatch.setattr(damaging, "POSITIONS", 7)
    (pieces,) = damage(model, thought, policies, budget)
    assert len(whole.kl_N) == 30 - 8
    torch.testing.assert_close(pieces.kl_N, whole.kl_N)
    assert torch.equal(pieces.changed_N, whole.changed_N)
    (short,) = damage(model, Thought.of(trace("b", thought=8)), policies, budget)
    assert len(short.kl_N) == len(short.changed_N) == 0


def test_memory_that_torch_holds_back_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"memory_reserved": 100, "memory_allocated": 40, "mem_get_info": (10, 200)}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert fitting._free_bytes(torch.device("cuda")) == 70
