from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leanthink.data.grading import math_verify_pool
from leanthink.data.problems import Problem, from_tasks
from leanthink.data.tasks import registry
from leanthink.data.think_tags import ThinkTags, set_think_tags
from leanthink.data.traces.trace import Trace, read_traces, request_seed
from leanthink.engine.generation import generate
from leanthink.engine.sampling import Sampling
from leanthink.importance import collect as collecting
from leanthink.importance.collect import Collected, collect
from leanthink.importance.inference_backend import LoadedModel
from leanthink.policies.budget import Budget
from leanthink.utils.errors import UsageError
from models import make_model, make_tokenizer

PROBLEMS = [Problem(id=f"p{n}", problem=f"What is {n} + {n}?", answer=str(2 * n)) for n in range(3)]
SAMPLING = Sampling(temperature=0.9, max_new_tokens=24, seed=5)


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("qwen3")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@dataclasses.dataclass(frozen=True)
class Finished:
    """As much of a Completion as collecting reads."""

    text: str
    token_ids: tuple[int, ...] = (1, 2, 3)
    thought_tokens: int = 1
    answer_tokens: int = 2
    finish_reason: str = "stop"
    peak_slots: int = 1
    kept_slots: int = 1
    evictions: int = 0
    peak_kv_bytes: int = 1
    full_kv_bytes: int = 1
    evicted_at: None = None
    token_chars: None = None
    scores: None = None


def answering(*completions: Finished) -> Callable[..., Iterator[tuple[int, Finished]]]:
    """A stand-in for a model's `complete`: finishes the requests in reverse order with these completions."""

    def fake(self: LoadedModel, asked: Any, **options: Any) -> Iterator[tuple[int, Finished]]:
        assert len(asked) == len(completions)
        return reversed(list(enumerate(completions)))

    return fake


def by_key(path: Path) -> dict[str, Trace]:
    return {trace.key: trace for trace in read_traces(path)}


def test_every_sample_of_every_problem_is_written_as_it_would_be_generated_alone(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    path, seen = tmp_path / "t.jsonl", []
    counts = collect(
        model, tokenizer, PROBLEMS, path, samples=2, sampling=SAMPLING, progress=lambda *now: seen.append(now)
    )
    found = by_key(path)
    assert set(found) == {f"p{n}#{sample}" for n in range(3) for sample in range(2)}
    assert counts == Collected(written=6, done_before=0, correct=sum(bool(t.correct) for t in found.values()))
    assert seen == [(n, 6) for n in range(1, 7)]
    one = found["p2#1"]
    seed = request_seed(5, "p2", 1)
    alone = generate(
        model,
        tokenizer,
        [PROBLEMS[2].problem],
        policy="full",
        budget=None,
        sampling=dataclasses.replace(SAMPLING, seed=seed),
    )[0]
    assert one.token_ids == alone.token_ids
    assert (one.seed, one.temperature, one.policy, one.budget) == (seed, 0.9, "full", None)
    assert one.prompt_ids == tuple(tokenizer(PROBLEMS[2].problem).input_ids)
    assert (one.problem, one.gold) == (PROBLEMS[2].problem, "4")
    assert one.thought_tokens == alone.thought_tokens
    assert found["p2#0"].token_ids != one.token_ids


def test_a_stopped_collection_loses_no_finished_trace_and_goes_on_to_the_same_end(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    path, whole = tmp_path / "t.jsonl", tmp_path / "whole.jsonl"
    with pytest.raises(KeyboardInterrupt):
        collect(model, tokenizer, PROBLEMS, path, samples=2, sampling=SAMPLING, max_rows=2, progress=stop)
    assert len(read_traces(path)) == 2
    with path.open("a") as file:
        file.write('{"trace": 1, "id": "p')
    counts = collect(model, tokenizer, PROBLEMS, path, samples=2, sampling=SAMPLING, resume=True)
    assert (counts.written, counts.done_before) == (4, 2)
    collect(model, tokenizer, PROBLEMS, whole, samples=2, sampling=SAMPLING)
    assert by_key(path) == by_key(whole)
    again = collect(model, tokenizer, PROBLEMS, path, samples=2, sampling=SAMPLING, resume=True)
    assert (again.written, again.done_before, again.correct) == (0, 6, counts.correct)


def test_traces_of_a_bounded_cache_record_budget_and_evictions(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    budget = Budget(slots=6, recent_window=2, eviction_interval=3, max_answer_slots=8)
    collect(model, tokenizer, PROBLEMS, path, samples=1, sampling=SAMPLING, policy="window", budget=budget, record=True)
    for trace in read_traces(path):
        assert trace.budget == {"slots": 6, "window": 2, "interval": 3, "answer": 8}
        assert trace.evicted_at is not None
        assert (trace.evictions > 0) == any(at is not None for at in trace.evicted_at)
        assert trace.token_chars is not None
    assert any(trace.evictions for trace in read_traces(path))


def test_an_existing_file_is_refused_before_anything_is_generated(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("mine\n")
    monkeypatch.setattr(LoadedModel, "complete", None)
    with pytest.raises(UsageError, match="exists"):
        collect(model, tokenizer, PROBLEMS, path, samples=1, sampling=SAMPLING)
    assert path.read_text() == "mine\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": Sampling(temperature=0.5, max_new_tokens=24, seed=5)}, "of temperature 0.9, asked for is 0.5"),
        ({"sampling": Sampling(temperature=0.9, max_new_tokens=24, seed=6)}, "another prompt or seed"),
        ({"instruction": "Be brief."}, "another prompt or seed"),
        ({"policy": "random", "budget": Budget(slots=8, recent_window=2)}, "of policy 'full', asked for is 'random'"),
        ({"model_name": "other"}, "asked for is 'other'"),
    ],
)
def test_a_file_of_other_settings_is_not_resumed(
    change: dict[str, Any], message: str, model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.jsonl"
    monkeypatch.setattr(LoadedModel, "complete", answering(Finished("")))
    collect(model, tokenizer, PROBLEMS[:1], path, samples=1, sampling=SAMPLING)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=message):
        collect(model, tokenizer, PROBLEMS, path, **({"samples": 1, "sampling": SAMPLING, "resume": True} | change))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "thought_tokens", "correct"),
    [
        (r"hm \boxed{4}</think>\boxed{4}", 1, True),
        (r"hm \boxed{4}</think>\boxed{5}", 1, False),
        (r"hm \boxed{4}", 1, False),  # never closed its thought
        (r"\boxed{4}", 0, True),  # the prompt had closed it
        (r"hm</think>so 3 + 1 = 4.", 1, True),
    ],
)
def test_only_the_answer_is_graded(
    text: str,
    thought_tokens: int,
    correct: bool,
    model: Any,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finished = Finished(text, thought_tokens=thought_tokens, answer_tokens=3 - thought_tokens)
    monkeypatch.setattr(LoadedModel, "complete", answering(finished))
    counts = collect(model, tokenizer, PROBLEMS[2:], tmp_path / "t.jsonl", samples=1, sampling=SAMPLING)
    assert read_traces(tmp_path / "t.jsonl")[0].correct is correct
    assert counts.correct == correct


def test_a_model_without_tags_has_all_of_its_text_graded(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoadedModel, "complete", answering(Finished(r"so \boxed{4}", (1, 2, 3), 3, 0)))
    monkeypatch.setattr(collecting, "think_tags", lambda tokenizer: ThinkTags(open_id=None, close_id=None))
    collect(model, tokenizer, PROBLEMS[2:], tmp_path / "t.jsonl", samples=1, sampling=SAMPLING)
    assert read_traces(tmp_path / "t.jsonl")[0].correct is True


@pytest.mark.parametrize(
    ("text", "correct"), [(r"[THINK]\boxed{3}[/THINK]\boxed{4}", True), (r"[THINK]\boxed{4}", False)]
)
def test_what_follows_tags_of_another_name_is_graded(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, correct: bool
) -> None:
    named = make_tokenizer()
    set_think_tags(named, "[THINK]", "[/THINK]")
    monkeypatch.setattr(LoadedModel, "complete", answering(Finished(text, (1, 2, 3), 2, 1)))
    collect(model, named, PROBLEMS[2:], tmp_path / "t.jsonl", samples=1, sampling=SAMPLING)
    assert read_traces(tmp_path / "t.jsonl")[0].correct is correct


@pytest.mark.parametrize(
    ("problems", "samples", "message"),
    [
        ([], 1, "no problem"),
        (PROBLEMS, 0, "samples=0"),
        ([PROBLEMS[0], PROBLEMS[0]], 1, "two problems have the id 'p0'"),
        ([Problem(id="a", problem="?", answer=r"\sqrt{2}")], 1, "math-verify"),
    ],
)
def test_what_cannot_be_collected_or_graded_is_refused_before_the_file_is_made(
    problems: list[Problem],
    samples: int,
    message: str,
    model: Any,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(math_verify_pool, "is_available", lambda: False)
    with pytest.raises(UsageError, match=message):
        collect(model, tokenizer, problems, tmp_path / "t.jsonl", samples=samples, sampling=SAMPLING)
    assert not (tmp_path / "t.jsonl").exists()


def test_a_backend_needs_a_name_for_its_traces(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    backend = LoadedModel(model, tokenizer, {"full": None})
    asked: dict[str, Any] = {"samples": 1, "sampling": SAMPLING, "backend": backend}
    with pytest.raises(UsageError, match="without model_name"):
        collect(None, None, PROBLEMS, tmp_path / "t.jsonl", **asked)
    assert not (tmp_path / "t.jsonl").exists()
    collect(None, None, PROBLEMS, tmp_path / "t.jsonl", **asked, model_name="mine")
    assert {found.model for found in read_traces(tmp_path / "t.jsonl")} == {"mine"}


def test_embedded_tasks_need_nothing_installed_and_take_any_right_answer(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(math_verify_pool, "is_available", lambda: False)
    (task,) = registry.sample("countdown", 1, 1, seed=0)
    box = f"\\boxed{{(({task.answer}))}}"
    monkeypatch.setattr(LoadedModel, "complete", answering(Finished(f"</think>{box}", (1, 2, 3), 0, 3)))
    collect(model, tokenizer, from_tasks([task]), tmp_path / "t.jsonl", samples=1, sampling=SAMPLING)
    (trace,) = read_traces(tmp_path / "t.jsonl")
    assert (trace.id, trace.gold, trace.correct) == (task.id, task.answer, True)


def test_seeds_differ_by_seed_problem_and_sample_and_by_nothing_else() -> None:
    seeds = {request_seed(seed, name, sample) for seed in (0, 1) for name in ("a", "b") for sample in range(5)}
    assert len(seeds) == 20
    assert request_seed(3, "a", 2) == 256_183_970_766_028
    assert all(0 <= seed < 2**48 for seed in seeds)
