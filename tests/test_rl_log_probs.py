from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl import GRPOTrainer

from leanthink.rl.log_probs import UNSCORED, left_aligned
from leanthink.rl.rollout_weight_sync import RolloutModel
from leanthink.utils.errors import UsageError
from models import make_model
from rl_runs import make_trainer

sizes = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 7)), min_size=1, max_size=5)


def padded(rows: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids, counted from 10, and mask of rows of so many prompt and response tokens: 5 columns and 7."""
    mask = torch.tensor([[0] * (5 - p) + [1] * (p + r) + [0] * (7 - r) for p, r in rows])
    return (mask.flatten().cumsum(0).view_as(mask) + 9) * mask, mask


def test_by_hand() -> None:
    rows = left_aligned(
        torch.tensor([[0, 11, 12, 0, 0], [13, 14, 15, 16, 0]]), torch.tensor([[0, 1, 1, 0, 0], [1, 1, 1, 1, 0]]), 3
    )
    assert rows.ids_NW[1].tolist() == [13, 14, 15, 16]
    assert rows.ids_NW[0, :2].tolist() == [11, 12]
    assert rows.labels_NW.tolist() == [[UNSCORED, 12, UNSCORED, UNSCORED], [UNSCORED, UNSCORED, 15, 16]]
    assert rows.back(torch.tensor([[1.0, 2, 0, 0], [3, 4, 5, 6]])).tolist() == [[0, 1, 2, 0, 0], [3, 4, 5, 6, 0]]


@given(sizes=sizes)
def test_every_token_moves_once_and_comes_back(sizes: list[tuple[int, int]]) -> None:
    ids, mask = padded(sizes)
    rows = left_aligned(ids, mask, 7)
    assert rows.ids_NW.shape[1] == max(p + r for p, r in sizes)
    for i, (p, r) in enumerate(sizes):
        own = ids[i][mask[i].bool()]
        assert torch.equal(rows.ids_NW[i, : p + r], own)
        assert rows.labels_NW[i].tolist() == [UNSCORED] * p + own[p:].tolist() + [UNSCORED] * (
            rows.ids_NW.shape[1] - p - r
        )
    moved = torch.where(rows.ids_NW > 0, rows.ids_NW, 0).float()
    assert torch.equal(rows.back(moved), ids.float())


@pytest.mark.parametrize("chunk", [None, 2])
def test_log_probabilities_entropies_and_gradients_are_those_of_padded_rows(tmp_path: Path, chunk: int | None) -> None:
    trainer, _ = make_trainer(tmp_path, model=make_model())
    ids, mask = padded([(2, 7), (5, 1), (1, 4), (3, 0)])
    seen: list[set[str]] = []
    hook = trainer.model.model.register_forward_pre_hook(
        lambda _module, _args, given: seen.append({k for k, v in given.items() if v is not None}), with_kwargs=True
    )

    def found(way: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        trainer.model.zero_grad()
        log_probs, entropies, _ = way(trainer, trainer.model, ids, mask, 7, chunk, compute_entropy=True)
        log_probs.sin().sum().backward()
        gradients = torch.cat([weight.grad.flatten() for weight in trainer.model.parameters()])
        return log_probs.detach(), entropies.detach(), gradients

    ours = found(type(trainer)._get_per_token_logps_and_entropies)
    assert all("attention_mask" not in names for names in seen)
    hook.remove()
    theirs = found(GRPOTrainer._get_per_token_logps_and_entropies)
    scored = mask[:, -7:].bool()
    torch.testing.assert_close(ours[0][scored], theirs[0][scored], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1][scored], theirs[1][scored], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-4, atol=1e-5)
    assert not ours[0][~scored].any()
    assert ours[0][scored].all()


def test_weights_that_are_no_numbers_end_a_run_with_a_word() -> None:
    model = make_model()
    copy = RolloutModel(model, torch.float32)
    copy.sync_weights()
    with torch.no_grad():
        next(iter(model.parameters()))[0, 0] = torch.nan
    with pytest.raises(UsageError, match=r"no longer finite.*learning_rate"):
        copy.sync_weights()
