"""The prompts of the rounds of dynamic sampling: none twice, as long as there are others."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from leanthink.rl.round_prompts import RoundPrompts


def rows_of(*texts: str) -> list[dict[str, Any]]:
    return [{"prompt": [{"role": "user", "content": text}], "id": str(i)} for i, text in enumerate(texts)]


def prompts_of(*texts: str, seed: int = 0) -> tuple[RoundPrompts, list[dict[str, Any]]]:
    rows = rows_of(*texts)
    return RoundPrompts(Dataset.from_list(rows), seed), rows


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["id"] for row in rows]


def test_the_batch_comes_first_then_all_others_then_the_same_again() -> None:
    prompts, rows = prompts_of(*"abcdefg")
    prompts.begin(0, [rows[3], rows[1]])
    first = ids(prompts.take(4))
    second = ids(prompts.take(4))
    assert first[:2] == ["3", "1"]
    assert sorted(first + second[:3]) == list("0123456")
    assert second[3] == "3"
    assert ids(prompts.take(20)) == [*(first + second[:3])[1:], *(first + second[:3]) * 2][:20]


def test_rows_of_equal_text_are_one_prompt() -> None:
    prompts, rows = prompts_of("a", "b", "a", "a", "c", "b")
    prompts.begin(0, [rows[2]])
    taken = prompts.take(3)
    assert taken[0] == rows[2]
    assert sorted(row["prompt"][0]["content"] for row in taken) == ["a", "b", "c"]


def test_a_batch_larger_than_the_data_repeats() -> None:
    prompts, rows = prompts_of("a", "b")
    prompts.begin(0, rows)
    assert ids(prompts.take(5)) == ["0", "1", "0", "1", "0"]


@pytest.mark.parametrize(("step", "seed"), [(1, 0), (0, 1)])
def test_the_order_depends_on_step_and_seed_alone(step: int, seed: int) -> None:
    texts = [str(number) for number in range(40)]

    def order(step: int, seed: int, *before: int) -> list[str]:
        prompts, rows = prompts_of(*texts, seed=seed)
        for earlier in before:
            prompts.begin(earlier, rows[:2])
            prompts.take(6)
        prompts.begin(step, rows[:2])
        return ids(prompts.take(10))

    assert order(2, 0) == order(2, 0, 0, 0, 1), "as in a run that was resumed there"
    assert order(step, seed) != order(0, 0)


def test_a_second_batch_of_a_step_takes_what_the_first_one_left() -> None:
    prompts, rows = prompts_of(*"abcdefghij")
    prompts.begin(0, rows[:2])
    first = ids(prompts.take(5))
    prompts.begin(0, [rows[int(first[4])]])  # its own prompts are as they come
    second = ids(prompts.take(10))
    assert second[0] == first[4]
    assert not {*second[1:6]} & {*first}
    assert {*second[6:]} == {*first[:4]}
    other, _ = prompts_of(*"abcdefghij")
    other.begin(0, [rows[int(first[4])]])
    assert ids(other.take(10)) != second
