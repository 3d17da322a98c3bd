from __future__ import annotations

import base64
import math
import struct
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanthink.data.think_tags import think_tags
from leanthink.data.traces.token_scores import Scores, pack
from leanthink.engine.generation import generate
from leanthink.engine.outputs import decode, token_chars
from leanthink.engine.sampling import Sampling
from leanthink.policies import make_policy
from leanthink.policies.budget import Budget
from leanthink.utils.errors import UsageError
from models import CLOSE, END, OPEN, RandomPredictor, endless, make_tokenizer

TOKENIZER = make_tokenizer()


def test_packed_numbers_are_the_little_endian_half_floats_of_the_standard() -> None:
    scores = Scores(horizons=(4, 16), float16=base64.b64encode(bytes.fromhex("003c00c0ff7b007e")).decode())
    assert scores.tokens == 2
    (one, minus_two), (largest, never) = scores.numbers_TC()
    assert (one, minus_two, largest) == (1.0, -2.0, 65504.0)
    assert math.isnan(never)


@given(st.lists(st.tuples(*[st.floats(width=16, allow_nan=False)] * 3), max_size=20))
def test_what_is_packed_is_unpacked(numbers: list[tuple[float, float, float]]) -> None:
    scores = pack((1, 2, 9), b"".join(struct.pack("<3e", *row) for row in numbers))
    assert (scores.tokens, scores.numbers_TC()) == (len(numbers), numbers)


@pytest.mark.parametrize(
    ("horizons", "float16", "message"),
    [
        ((0,), "", "ascend from at least 1"),
        ((8, 4), "", "ascend"),
        ((True,), "", "ascend"),
        (("4",), "", "ascend"),
        ((), "a", "base64"),
        ((), None, "base64"),
        ((), "ADwé", "base64"),
        ((4, 16), "ADwA", "no whole number of tokens"),
    ],
)
def test_scores_check_themselves(horizons: Any, float16: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Scores(horizons=horizons, float16=float16)


@pytest.mark.parametrize("name", ["dynts", "horizon"])
def test_the_recorded_scores_explain_every_recorded_eviction(name: str) -> None:
    torch.manual_seed(3)
    horizons, offsets = ((4, 8, 16), (0, 1, 3)) if name == "horizon" else ((), (0,))
    target = "horizon" if name == "horizon" else "answer"
    policy = make_policy(name, RandomPredictor(64, target, horizons, offsets=offsets))
    budget, prompts = Budget(slots=16, recent_window=5, eviction_interval=8), [list(range(10, 15)), list(range(20, 41))]
    options: dict[str, Any] = {"policy": policy, "budget": budget, "sampling": Sampling(max_new_tokens=90)}
    model = endless()
    together = generate(model, TOKENIZER, prompts, record=True, **options)
    for prompt, done in zip(prompts, together, strict=True):
        (alone,) = generate(model, TOKENIZER, [prompt], record=True, **options)
        assert alone.evicted_at == done.evicted_at
        assert alone.scores is not None
        assert done.scores is not None
        for row, same in zip(done.scores.numbers_TC(), alone.scores.numbers_TC(), strict=True):
            assert row == pytest.approx(same, rel=2e-3, nan_ok=True)
        assert done.evicted_at is not None
        assert done.scores.horizons == horizons
        numbers = done.scores.numbers_TC()
        unscored = [index for index, row in enumerate(numbers) if math.isnan(row[0])]
        assert unscored == list(range(90 - 1 - (3 if horizons else 0), 90))  # too young, or never fed
        held: list[int] = []
        for now in range(1, 90):  # tokens generated when the youngest of them is fed
            held.append(now - 1)
            lost = [index for index in held if done.evicted_at[index] == now]
            assert bool(lost) == (len(held) == budget.slots + budget.eviction_interval)
            if not lost:
                continue
            kept = [index for index in held if index not in lost]
            assert kept[-budget.recent_window :] == list(range(now - budget.recent_window, now))
            ranked = {
                index: numbers[index][reached(horizons, now - 1 - index)] for index in held[: -budget.recent_window]
            }
            assert max(ranked[i] for i in lost) <= min(ranked[i] for i in kept[: -budget.recent_window])
            held = kept
        assert done.kept_slots == len(prompt) + len(held)


def reached(horizons: tuple[int, ...], age: int) -> int:
    return max((channel for channel, horizon in enumerate(horizons) if horizon <= age), default=0)


def test_nothing_is_recorded_unasked_and_no_score_where_nothing_is_scored() -> None:
    model = endless()
    options: dict[str, Any] = {"sampling": Sampling(max_new_tokens=8)}
    (unasked,) = generate(model, TOKENIZER, "hi", policy="full", **options)
    assert (unasked.token_chars, unasked.scores) == (None, None)
    (asked,) = generate(model, TOKENIZER, "hi", policy="full", record=True, **options)
    assert asked.scores is None
    assert asked.token_chars is not None
    assert sum(asked.token_chars) == len(asked.text)


@given(st.lists(st.integers(0, 258), max_size=30))
def test_the_characters_of_all_tokens_are_the_text_even_where_bytes_are_no_text(ids: list[int]) -> None:
    tags = think_tags(TOKENIZER)
    text = decode(TOKENIZER, ids, tags)
    counts = token_chars(TOKENIZER, ids, text, tags)
    assert len(counts) == len(ids)
    assert sum(counts) == len(text) * bool(ids)
    assert min(counts, default=0) >= 0


def test_each_token_knows_its_characters_of_the_text() -> None:
    ids = [OPEN, *TOKENIZER("aé", add_special_tokens=False).input_ids, CLOSE, *TOKENIZER("xyz").input_ids, END]
    tags = think_tags(TOKENIZER)
    assert token_chars(TOKENIZER, ids, "<think>aé</think>xyz", tags) == (7, 1, 0, 1, 8, 1, 1, 1, 0)
    assert token_chars(TOKENIZER, ids, "<think>aé</think>x", tags) == (
        7,
        1,
        0,
        1,
        8,
        1,
        0,
        0,
        0,
    )  # a stop string cut it
    assert token_chars(TOKENIZER, [], "", tags) == ()
