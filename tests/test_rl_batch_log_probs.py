"""Log-probabilities that later updates of a generation batch need: TRL's own, of what is kept alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from trl import GRPOTrainer

from leanthink.rl.trainer import DeepCompressTrainer
from rl_runs import make_trainer

OLD = "old_per_token_logps"
BATCH = {"per_device_train_batch_size": 2, "max_steps": 4, "save_strategy": "no"}  # micro-batches of two responses
BOUNDED = {"rollout_policy": "sinks", "rollout_budget": {"slots": 8, "recent_window": 4, "eviction_interval": 4}}


class Forwards:
    """Responses that the policy has scored, and the micro-batches that the loss was given."""

    def __init__(self, trainer: Any) -> None:
        self.scored, self.batches = 0, list[dict[str, torch.Tensor]]()
        own = DeepCompressTrainer._get_per_token_logps_and_entropies
        loss = trainer.compute_loss

        def counted(given: Any, model: Any, ids: torch.Tensor, *others: Any, **more: Any) -> Any:
            found = own(given, model, ids, *others, **more)
            self.scored += 0 if torch.is_grad_enabled() or found[0] is None else len(ids)
            return found

        def watched(model: Any, inputs: dict[str, torch.Tensor], *others: Any, **more: Any) -> Any:
            self.batches.append(inputs)
            return loss(model, inputs, *others, **more)

        self.counted = patch.object(DeepCompressTrainer, "_get_per_token_logps_and_entropies", counted)
        trainer.compute_loss = watched

    @property
    def keys(self) -> list[bool]:
        """In which of the micro-batches TRL's key stands."""
        return [OLD in batch for batch in self.batches]


def trained(folder: Path, **changes: Any) -> tuple[Forwards, torch.Tensor]:
    """A run, and its last weights."""
    trainer, _ = make_trainer(folder, **BATCH, **changes)
    forwards = Forwards(trainer)
    with forwards.counted:
        trainer.train()
    return forwards, torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])


@pytest.mark.parametrize(
    ("changes", "keys", "responses"),
    [
        # Two updates of a batch of six micro-batches: the second has them. Two batches in four steps.
        ({"steps_per_generation": 6, "gradient_accumulation_steps": 3}, 2 * ([False] * 3 + [True] * 3), 12),
        # One update takes all of them.
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 3}, [False] * 12, 0),
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 6}, [False] * 24, 0),
        # An update takes parts of two batches, or a batch is passed twice: all have them.
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 2}, [True] * 8, 18),
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 2, "num_iterations": 2}, [True] * 8, 8),
        # What a bounded cache has sampled is scored once, to be weighed.
        ({"steps_per_generation": 6, "gradient_accumulation_steps": 3, **BOUNDED}, 2 * ([False] * 3 + [True] * 3), 24),
    ],
)
def test_they_are_of_what_is_kept_for_updates_that_need_them(
    tmp_path: Path, changes: dict[str, Any], keys: list[bool], responses: int
) -> None:
    forwards, _ = trained(tmp_path, **changes, oversample=2, max_num_gen_batches=3)
    assert forwards.keys == keys
    assert forwards.scored == responses


@pytest.mark.parametrize("changes", [{}, {"loss_type": "bnpo"}, {"dynamic_sampling": False}, {"num_iterations": 2}])
def test_a_run_is_that_with_the_log_probabilities_of_trl(tmp_path: Path, changes: dict[str, Any]) -> None:
    changes = {"steps_per_generation": 6, "gradient_accumulation_steps": 3, **changes}
    _, ours = trained(tmp_path / "ours", **changes)
    with patch.object(DeepCompressTrainer, "_scores_later", False):
        theirs_forwards, theirs = trained(tmp_path / "theirs", **changes)
    assert all(theirs_forwards.keys)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_they_are_those_of_the_policy_before_the_first_update(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, **BATCH, steps_per_generation=6, gradient_accumulation_steps=3)
    start = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    forwards = Forwards(trainer)
    trainer.args.max_steps = 2
    trainer.train()
    moved = max(float((weight - start[name]).abs().max()) for name, weight in trainer.model.state_dict().items())
    assert moved > 1e-3
    trainer.model.load_state_dict(start)
    for batch in forwards.batches[3:6]:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        scored = batch["completion_mask"].bool()
        with torch.no_grad():
            wanted, _, _ = GRPOTrainer._get_per_token_logps_and_entropies(
                trainer, trainer.model, ids, mask, scored.shape[1]
            )
        torch.testing.assert_close(batch[OLD][scored], wanted[scored], rtol=1e-4, atol=1e-5)
