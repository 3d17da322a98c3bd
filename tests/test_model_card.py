"""The card of a trained model: what it says of base, data, recipe and numbers, and what a hub reads of it."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("trl", reason="TRL is not installed: pip install 'leanthink[train]'")
from huggingface_hub import ModelCard

from leanthink.rl.model_card import RECIPE, Origin, model_card, public_name

SETTINGS = SimpleNamespace(**(dict.fromkeys(RECIPE) | {"length_reward_mode": "dual", "seed": 0}))
HISTORY: list[dict[str, Any]] = [
    {"step": 1, "accuracy": 0.25, "thought_tokens": 800.4},
    {"step": 2, "accuracy": math.nan, "thought_tokens": None},
    {"step": 2, "eval_accuracy": 0.5},
    {"step": 3, "accuracy": 0.75, "thought_tokens": 400.4},
    {"step": 3, "train_runtime": 1.0},
]


def card(origin: Origin, history: list[dict[str, Any]] = HISTORY) -> str:
    return model_card(origin, settings=SETTINGS, problems=9, steps=3, history=history, title="mine")


def test_it_names_base_data_recipe_and_numbers() -> None:
    text = card(Origin(base="tiny", data={"tasks": ["sums"], "count": 3}, more={"lora": {"r": 4}}))
    assert "# mine\n\n`tiny`, trained" in text
    assert "9 problems: tasks `['sums']`, count `3`." in text
    assert "3 optimiser steps." in text
    assert "| length_reward_mode | `dual` |\n| seed | `0` |\n| lora | `{'r': 4}` |" in text
    assert "| right, share of responses | 0.250 | 0.750 |\n| thought tokens | 800 | 400 |" in text
    assert "| right, share of held-out responses | 0.500 | 0.500 |" in text
    assert "thought tokens, held out" not in text, "it was not measured"
    assert "None" not in text


def test_a_hub_reads_its_head() -> None:
    found = ModelCard(card(Origin(base="Qwen/Qwen3-4B", data={"dataset": "someone/problems"}))).data.to_dict()
    assert found["base_model"] == "Qwen/Qwen3-4B"
    assert found["datasets"] == ["someone/problems"]
    assert found["pipeline_tag"] == "text-generation"
    assert "leanthink" in found["tags"]


def test_what_is_no_hub_id_is_not_linked_and_where_it_lies_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "problems.jsonl").touch()
    text = card(Origin(base=public_name(str(tmp_path)), data={"problems": str(tmp_path / "problems.jsonl")}))
    assert str(tmp_path.parent) not in text
    assert f"`{tmp_path.name}`, trained" in text
    assert "9 problems: problems `problems.jsonl`." in text
    assert "base_model" not in text


def test_a_run_without_logs_says_so() -> None:
    assert "Nothing was logged." in card(Origin(base="tiny"), [])
