"""What is said of budgets that will probably be too small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leanthink.engine.request import PolicyMaker
from leanthink.models.loading import load
from leanthink.models.predictor import Predictor, mean_thought
from leanthink.policies import Policy, make_policy
from leanthink.policies.budget import Budget
from leanthink.policies.budget_hints import budget_hints, thought_tokens_of
from server import serving


def horizon(thought_tokens: float | None) -> Policy:
    predictor = Predictor(target="horizon", hidden_size=8, horizons=(16,))
    predictor.thought_tokens = thought_tokens
    return make_policy("horizon", predictor)


def test_the_shipped_predictor_knows_the_mean_thought_of_its_model() -> None:
    maker = PolicyMaker(*load("tiny", device="cpu"))
    assert thought_tokens_of(maker.make("horizon", None)) == pytest.approx(5520796 / 4561)
    assert thought_tokens_of(maker.make("r-kv", None)) is None


@pytest.mark.parametrize(
    ("data", "mean"),
    [
        ({"thought_tokens": 812.5, "traces": 1, "tokens": 9, "recipe": {"tokens_per_trace": 9}}, 812.5),
        ({"traces": 4, "tokens": 100, "recipe": {"tokens_per_trace": None}}, 25.0),
        ({"traces": 4, "tokens": 100, "recipe": {"tokens_per_trace": 25}}, None),  # a sample of each thought
        ({}, None),
    ],
)
def test_a_predictors_file_tells_the_mean_thought(data: dict[str, Any], mean: float | None) -> None:
    assert mean_thought(data) == mean


@pytest.mark.parametrize(
    ("policy", "budget", "words"),
    [
        (horizon(1200.0), Budget(slots=236, eviction_interval=64), []),  # exactly 4 times less
        (horizon(1200.0), Budget(slots=235, eviction_interval=64), ["hold 4.01 times less", "budget of 236 or more"]),
        (
            horizon(1200.0),
            Budget(slots=36, recent_window=8, eviction_interval=64),
            ["hold 12 times less", "budget of 236 or more"],
        ),
        (horizon(None), Budget(slots=33, eviction_interval=64), []),
        (make_policy("r-kv"), Budget(slots=33, eviction_interval=64), []),
        (make_policy("r-kv"), Budget(slots=32, recent_window=32), ["window=32 fills the budget of 32 slots", "'r-kv'"]),
        (make_policy("sinks"), Budget(slots=32, recent_window=31), []),
        (make_policy("window"), Budget(slots=32, recent_window=32), []),
        (make_policy("full"), None, []),
    ],
)
def test_a_budget_below_what_was_measured_or_with_nothing_to_rank_gets_a_hint(
    policy: Policy, budget: Budget | None, words: list[str]
) -> None:
    told = " ".join(budget_hints(policy, budget))
    assert bool(told) == bool(words)
    for word in words:
        assert word in told


def test_two_reasons_are_two_hints() -> None:
    assert len(budget_hints(horizon(1200.0), Budget(slots=32))) == 2


def test_the_command_line_tells_both_reasons_in_a_line_each(folder: Path, inside: Any) -> None:
    asked = ["generate", "hi", "--max-new-tokens", 3]
    lines = inside(*asked, "--budget", 32).err.splitlines()
    assert [line.startswith("leanthink: ") for line in lines] == [True] * 3
    assert "window=32 fills" in lines[0]
    assert "this model's mean thought, 1210 tokens" in lines[1]
    assert "give a budget of 239 or more" in lines[1]
    assert len(inside(*asked).err.splitlines()) == 1  # the default budget is enough for `tiny`
    assert len(inside(*asked, "--budget", 239).err.splitlines()) == 1
    assert len(inside(*asked, "--budget", 238).err.splitlines()) == 2


def test_a_server_tells_it_of_its_own_budget_at_the_start(tmp_path: Path, folder: Path) -> None:
    small = ["--model", folder, "--policy", "sinks", "--budget", 8, "--recent-window", 8, "--kv-gib", 0.1]
    with serving(tmp_path / "log", *small) as server:
        (hint,) = [line for line in server.log.read_text().splitlines() if "nothing is left" in line]
        assert hint.startswith("leanthink: recent_window=8 fills the budget of 8 slots")
        (ready,) = [line for line in server.lines() if line["event"] == "ready"]
        assert (ready["policy"], ready["sampling"]) == ("sinks", {"temperature": 0.0})
