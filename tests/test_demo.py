"""The demonstration on a small random model: what it shows, counts, writes and draws."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from leanthink.data.traces.trace import Trace, read_traces
from leanthink.entrypoints import cli
from leanthink.entrypoints.demo import (
    Plan,
    as_table,
    compare,
    demo,
    output_files,
    sample_problems,
    show_thought,
    summarize,
    wilson_interval,
)
from leanthink.entrypoints.demo_plot import draw_kept, held_slots, held_steps
from leanthink.models.predictor import Predictor
from leanthink.models.tiny.model import build_model, tiny_config
from leanthink.models.tiny.tokenizer import build_tokenizer
from leanthink.policies.budget import Budget
from leanthink.utils.errors import UsageError

PLAN = Plan(
    tasks=(("multiply", 1), ("sums", 1)),
    count=2,
    budget=Budget(slots=12, recent_window=4, eviction_interval=6),
    max_new_tokens=50,
)


@pytest.fixture(scope="module")
def reasoner() -> tuple[Any, Any, dict[str, Predictor]]:
    model = build_model(tiny_config(layers=2, hidden=64, heads=2, kv_heads=1, mlp=96), seed=0).eval()
    torch.manual_seed(0)
    predictors = {
        "horizon": Predictor(target="horizon", hidden_size=64, horizons=(4, 16)),
        "dynts": Predictor(target="answer", hidden_size=64),
    }
    return model, build_tokenizer(), predictors


def make_trace(**changes: Any) -> Trace:
    fields: dict[str, Any] = {
        "id": "a", "sample": 0, "problem": "1 + 1?", "gold": "2", "model": "m", "policy": "horizon", "budget": None,
        "seed": 0, "temperature": 0.0, "prompt_ids": (1, 2), "token_ids": (5, 6, 7, 8), "text": "", "thought_tokens": 2,
        "answer_tokens": 2, "finish_reason": "stop", "correct": True, "peak_slots": 4, "kept_slots": 4, "evictions": 1,
        "peak_kv_bytes": 400, "full_kv_bytes": 500, "evicted_at": (2, None, None, None),
    }  # fmt: skip
    return Trace(**fields | changes)


def test_a_token_is_held_from_its_own_step_through_the_one_that_evicts_it():
    assert held_steps(make_trace()) == [(1, 3), (2, 4), (3, 4)]
    assert held_slots(make_trace()) == [3, 4, 4]


def test_a_trace_without_evictions_recorded_cannot_be_drawn(tmp_path):
    with pytest.raises(UsageError, match="--record"):
        draw_kept(make_trace(evicted_at=None), tmp_path / "kept.png")
    assert not (tmp_path / "kept.png").exists()


def test_without_matplotlib_the_message_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"leanthink\[eval\]"):
        draw_kept(make_trace(), tmp_path / "kept.png")


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)]
)
def test_the_interval_is_wilsons(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_a_row_has_the_means_of_its_traces():
    other = make_trace(id="b", correct=False, thought_tokens=3, answer_tokens=1, peak_slots=7, peak_kv_bytes=700)
    row = summarize("horizon", [make_trace(), other], seconds=4.0)
    assert (row.policy, row.problems, row.accuracy) == ("horizon", 2, 0.5)
    assert (row.thought_tokens, row.peak_slots, row.peak_kv_bytes) == (2.5, 5.5, 550)
    assert row.tokens_per_second == 2.0
    assert (row.low, row.high) == wilson_interval(1, 2)


def test_the_demonstration_streams_compares_and_draws(tmp_path, reasoner, monkeypatch):
    model, tokenizer, predictors = reasoner
    drawn: list[str] = []
    draw = lambda trace, path: (drawn.append(trace.key), draw_kept(trace, path))  # noqa: E731
    monkeypatch.setattr("leanthink.entrypoints.demo.draw_kept", draw)
    told: list[tuple[str, int, int]] = []
    shown = io.StringIO()
    rows = demo(
        model,
        tokenizer,
        tmp_path,
        plan=PLAN,
        predictors=predictors,
        console=Console(file=shown, width=100),
        progress=lambda policy, done, total: told.append((policy, done, total)),
    )
    assert [row.policy for row in rows] == ["full", "horizon", "dynts", "sinks", "random"]
    assert told == [(policy, done, 4) for policy in PLAN.policies for done in (0, 1, 2, 3, 4)]
    files = output_files(tmp_path, PLAN)
    assert {path for path in tmp_path.iterdir()} == set(files.values())
    assert files["picture"].read_bytes().startswith(b"\x89PNG")
    first = sample_problems(PLAN)[0].id
    assert drawn == [f"{first}#0"]
    streamed = next(trace for trace in read_traces(files["horizon"]) if trace.id == first)
    assert f"slots held {streamed.kept_slots:>6}" in shown.getvalue()
    assert f"full cache {len(streamed.prompt_ids) + len(streamed.token_ids) - 1:>6}" in shown.getvalue()


def test_the_picture_holds_as_many_slots_as_the_run_did(tmp_path, reasoner):
    model, tokenizer, predictors = reasoner
    compare(model, tokenizer, PLAN, tmp_path, model_name="m", predictors=predictors)
    for policy in PLAN.policies:
        for trace in read_traces(output_files(tmp_path, PLAN)[policy]):
            held = held_slots(trace)
            assert max(held) == trace.peak_slots
            assert held[-1] == trace.kept_slots
            assert (trace.evictions > 0) == (policy != "full")


def test_the_table_names_every_policy_and_the_budget():
    shown = io.StringIO()
    Console(file=shown, width=100).print(as_table([summarize("horizon", [make_trace()], 1.0)], PLAN))
    assert "horizon" in shown.getvalue()
    assert "budget 12 + 6" in shown.getvalue()


def test_a_plan_without_horizon_is_refused_before_anything_runs(tmp_path, reasoner):
    model, tokenizer, _ = reasoner
    with pytest.raises(UsageError, match="add it"):
        demo(model, tokenizer, Path(tmp_path), plan=Plan(policies=("full",)), console=Console(file=io.StringIO()))
    assert not list(tmp_path.iterdir())


def test_on_a_terminal_the_demonstration_strikes_through_what_was_evicted(reasoner, monkeypatch):
    model, tokenizer, predictors = reasoner
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard")
    show_thought(model, tokenizer, PLAN, shown, predictors)
    last = shown.file.getvalue().rpartition("<think>")[2]
    assert "\x1b[2;9m" in last
    assert "evicted from the cache" in last
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Console(file=io.StringIO(), width=100, force_terminal=True)
    show_thought(model, tokenizer, PLAN, plain, predictors)
    assert "\x1b[2;9m" not in plain.file.getvalue()
    assert "<think>" in plain.file.getvalue()


def test_the_command_says_beforehand_how_long_it_takes_and_counts_all_policies(tmp_path, monkeypatch, capfd):
    def few(_model, _tokenizer, _out, *, plan, console, progress):
        console.print("the thought")
        for policy in plan.policies:
            for done in range(plan.problems + 1):
                progress(policy, done, plan.problems)
        return [summarize("horizon", [make_trace()], 1.0)]

    monkeypatch.setattr("leanthink.entrypoints.demo.demo", few)
    assert cli.run(["demo", "--out", str(tmp_path / "demo")]) == 0
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "leanthink: one thought, then 5 policies on 12 problems: up to two minutes on two cores"
    assert said[1] == "the thought"
    assert said[2] == "leanthink: random: 60 of 60"


def test_the_picture_explains_itself(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_given, **_options: saved.append(figure))
    draw_kept(make_trace(budget={"slots": 2, "window": 1, "interval": 1}), tmp_path / "kept.png")
    (figure,) = saved
    assert figure.get_suptitle() == "What the cache kept: policy horizon, 2 + 1 thought slots\n1 + 1?"
    for axes in figure.axes:
        assert axes.get_title()
        assert axes.get_xlabel()
    assert figure.axes[0].get_ylabel() == "step: tokens generated so far"
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == ["in the cache", "evicted", "slots held, 4 at most", "slots of a full cache, 5"]
    evicted = [bar.get_height() for bar in figure.axes[0].containers[1]]
    assert evicted == [1, 0, 0], "the first token went at step 2: it is held through it, and gone at step 3"
