from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanthink.rl import trainer as trainer_module
from leanthink.rl.length_bucketing import balanced_sizes, bucket_by_length, is_text, trim_padding
from rl_runs import make_trainer, weights


def micro_batch(prompts: list[int], responses: list[int], width: int = 9) -> dict[str, torch.Tensor]:
    """Rows with so many tokens, whose ids name their response, padded with 0 to prompts of 5 and responses of width."""
    prompt = torch.tensor([[0] * (5 - p) + [1] * p for p in prompts])
    response = torch.tensor([[1] * r + [0] * (width - r) for r in responses])
    names = torch.tensor(responses)[:, None]
    return {
        "prompt_ids": prompt * 7,
        "prompt_mask": prompt,
        "completion_ids": response * names,
        "completion_mask": response,
        "advantages": names[:, 0] / 10,
        "num_items_in_batch": torch.tensor(sum(responses)),
    }


def test_rows_of_an_update_lie_together_by_length_and_lose_their_padding() -> None:
    given = [micro_batch([1, 4], [2, 7]), micro_batch([3, 2], [3, 9]), micro_batch([1, 1], [8, 1])]
    first, second, third = bucket_by_length(given, 2, even=True)
    assert first["completion_mask"].sum(1).tolist() == [9, 7]
    assert second["completion_mask"].sum(1).tolist() == [3, 2]
    assert third["completion_mask"].sum(1).tolist() == [8, 1], "of another update"
    assert second["completion_ids"].tolist() == [[3, 3, 3], [2, 2, 0]]
    assert second["prompt_ids"].tolist() == [[7, 7, 7], [0, 0, 7]]
    assert first["advantages"].tolist() == pytest.approx([0.9, 0.7])
    assert first["num_items_in_batch"] == given[0]["num_items_in_batch"]


def test_rows_may_be_dealt_out_by_their_tokens() -> None:
    given = [micro_batch([1, 4], [2, 1]), micro_batch([3, 2], [3, 9])]
    long, short = bucket_by_length(given, 2, even=False)
    assert long["completion_mask"].sum(1).tolist() == [9]
    assert short["completion_ids"].tolist() == [[3, 3, 3], [2, 2, 0], [1, 0, 0]]
    assert short["advantages"].tolist() == pytest.approx([0.3, 0.2, 0.1])


def test_the_longest_of_all_ranks_decide_where_rows_are_cut() -> None:
    given = [micro_batch([1, 4], [2, 1]), micro_batch([3, 2], [3, 9])]
    other = torch.tensor([9, 9, 1, 1])  # of another rank
    long, short = bucket_by_length(given, 2, even=False, largest=lambda own: torch.maximum(own, other))
    assert [len(batch["advantages"]) for batch in (long, short)] == balanced_sizes([9, 9, 2, 1], 2) == [2, 2]
    assert long["completion_mask"].sum(1).tolist() == [9, 3]


@given(tokens=st.lists(st.integers(0, 40), min_size=1, max_size=12), data=st.data())
def test_no_other_cut_of_the_sorted_rows_has_a_smaller_largest_part(tokens: list[int], data: st.DataObject) -> None:
    tokens.sort(reverse=True)
    parts = data.draw(st.integers(1, len(tokens)))

    def largest(sizes: Iterable[int]) -> int:
        ends = list(accumulate(sizes, initial=0))
        return max((end - first) * max(1, tokens[first]) for first, end in pairwise(ends))

    sizes = balanced_sizes(tokens, parts)
    assert (len(sizes), sum(sizes)) == (parts, len(tokens))
    assert min(sizes) >= 1
    every = (pairwise((0, *cuts, len(tokens))) for cuts in combinations(range(1, len(tokens)), parts - 1))
    assert largest(sizes) == min(largest(end - first for first, end in cut) for cut in every)


def test_every_table_of_tokens_is_cut_and_nothing_else() -> None:
    batch = micro_batch([2], [4]) | {"advantages": torch.ones(1, 9), "ratio": torch.ones(1, 1)}
    shorter = trim_padding(batch)
    assert shorter["advantages"].shape == (1, 4)
    assert shorter["ratio"].shape == (1, 1)
    masked = batch | {"completion_mask": torch.zeros(1, 9, dtype=torch.int64)}
    assert trim_padding(masked)["completion_ids"].shape == (1, 1), "a response whose tokens all do not count"


def test_images_are_left_alone() -> None:
    assert is_text(micro_batch([1], [1]))
    assert not is_text({**micro_batch([1], [1]), "pixel_values": torch.ones(3)})
    assert not is_text({**micro_batch([1], [1]), "num_images": [1]})


def test_the_update_is_that_of_the_order_of_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    seen: list[int] = []

    def noting(batches: Any, window: int, *, even: bool, largest: Any) -> Any:
        assert not even, "the loss is divided by tokens"
        made = bucket_by_length(batches, window, even=even, largest=largest)
        seen.extend(batch["completion_ids"].shape[1] for batch in made)
        return made

    monkeypatch.setattr(trainer_module, "bucket_by_length", noting)
    cut_anew, scored = make_trainer(tmp_path / "cut", **how)
    cut_anew.train()
    monkeypatch.setattr(trainer_module, "bucket_by_length", lambda batches, window, even, largest: batches)
    as_trl, scored_as_trl = make_trainer(tmp_path / "trl", **how)
    as_trl.train()
    assert len(seen) == 9
    assert len(set(seen)) > 1
    assert scored == scored_as_trl
    torch.testing.assert_close(torch.tensor(weights(cut_anew)), torch.tensor(weights(as_trl)), rtol=1e-5, atol=1e-6)
