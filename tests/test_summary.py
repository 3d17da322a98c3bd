"""The line that `leanthink generate` ends with: its sums, and which bound ended the request."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from leanthink.engine.generation import generate
from leanthink.engine.outputs import Completion
from leanthink.engine.sampling import Sampling
from leanthink.entrypoints.cli.summary import summary
from leanthink.policies.budget import Budget
from models import CONTEXT, make_model, make_tokenizer

BUDGET = Budget(slots=12, recent_window=4, eviction_interval=6, max_answer_slots=30)


def completed(**changes: Any) -> Any:
    facts: dict[str, Any] = {
        "text": "", "thought": "", "answer": "", "token_ids": (0,) * 60, "prompt_tokens": 27, "thought_tokens": 40,
        "answer_tokens": 20, "finish_reason": "stop", "peak_slots": 0, "kept_slots": 0, "slot_steps": 0,
        "evictions": 3, "peak_kv_bytes": 2_000_000, "full_kv_bytes": 4_000_000, "reserved_kv_bytes": 0,
    }  # fmt: skip
    return Completion(**{**facts, **changes})


@pytest.mark.parametrize(
    ("facts", "parts"),
    [
        ({"peak_slots": 60, "kept_slots": 60}, "60 slots held at most (27 prompt + 14 thought + 19 answer; 2.0"),
        ({"peak_slots": 64, "kept_slots": 64}, "64 slots held at most (27 prompt + 12 + 6 thought + 19 answer; 2.0"),
        (
            {"peak_slots": 45, "kept_slots": 41, "answer_tokens": 3, "thought_tokens": 57},
            "45 slots held at most (27 prompt + 12 + 6 thought + 0 answer; 2.0",
        ),
        (
            {"peak_slots": 45, "kept_slots": 45, "answer_tokens": 0, "thought_tokens": 60},
            "45 slots held at most (27 prompt + 12 + 6 thought + 0 answer; 2.0",
        ),
    ],
)
def test_the_slots_held_are_told_as_a_sum(facts: dict[str, Any], parts: str) -> None:
    line = summary(completed(**facts), Sampling(), BUDGET, CONTEXT)
    assert parts in line
    assert line.endswith("86 with a full cache (4.0 MB)")


@pytest.mark.parametrize("budget", [None, BUDGET, replace(BUDGET, slots=40), replace(BUDGET, slots=200)])
def test_the_sum_is_that_of_a_real_request(budget: Budget | None) -> None:
    policy = "full" if budget is None else "sinks"
    (completion,) = generate(
        make_model(), make_tokenizer(), [[1, 2, 3]], policy=policy, budget=budget, sampling=Sampling(max_new_tokens=90)
    )
    line = summary(completion, Sampling(max_new_tokens=90), budget, CONTEXT)
    total, terms = re.search(r"(\d+) slots held at most \((.*?);", line).groups()  # type: ignore[union-attr]
    assert sum(map(int, re.findall(r"\d+", terms))) == int(total) == completion.peak_slots


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, ""),
        ({"answer_tokens": 30, "token_ids": (0,) * 70}, ", cut off at the 30 slots of the answer (--max-answer-slots)"),
        ({"token_ids": (0,) * 100}, ", cut off at 100 tokens (--max-new-tokens)"),
        ({"token_ids": (0,) * 73}, ", cut off at the model's context of 100 tokens"),
    ],
)
def test_an_answer_that_was_cut_off_says_by_which_bound(facts: dict[str, Any], words: str) -> None:
    reason = "length" if words else "stop"
    completion = completed(**{"peak_slots": 60, "kept_slots": 60, "finish_reason": reason, **facts})
    line = summary(completion, Sampling(max_new_tokens=100), BUDGET, 100)
    assert line.startswith(f"40 tokens of thought, {completion.answer_tokens} of answer{words}; 60 slots")


def test_generate_ends_with_that_line(folder: Any, inside: Any) -> None:
    asked = [
        "generate",
        "hi",
        "--model",
        folder,
        "--policy",
        "sinks",
        "--budget",
        12,
        "--recent-window",
        4,
        "--eviction-interval",
        6,
    ]
    err = inside(*asked, "--max-new-tokens", 40).err
    assert "40 tokens of thought, 0 of answer, cut off at 40 tokens (--max-new-tokens); 24 slots held at most " in err
    assert "(6 prompt + 12 + 6 thought + 0 answer; " in err
