"""Small DeepCompress runs for tests: a random model that writes a few bytes, and a judge who likes some of them.

As a script it is one rank of a run: `python rl_runs.py FOLDER SETTINGS`, the settings as JSON, with what
torch.distributed wants in the environment; rank 0 prints what was scored, and what became of the weights, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from leanthink.rl.config import DeepCompressConfig
from leanthink.rl.data import from_tasks
from leanthink.rl.trainer import DeepCompressTrainer
from leanthink.rl.trl_reward import STATE
from models import END, make_model, make_tokenizer

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
PROBLEMS = 12
ENDS = [END, *range(40)]  # so many bytes end a response that lengths differ


def likes(row: Any, text: str, *, think_tags: bool) -> bool:
    """Right for about half of all texts, whatever they say."""
    return sum(map(ord, text)) % 2 == 0


def make_policy(**changes: Any) -> Any:
    """A random model that ends its responses early."""
    model = make_model(**changes)
    model.generation_config.eos_token_id = ENDS
    return model


def settings(folder: Path, **changes: Any) -> DeepCompressConfig:
    """Six responses in groups of two, three optimiser steps."""
    chosen: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "max_steps": 3, "per_device_train_batch_size": 6,
        "num_generations": 2, "max_completion_length": 8, "learning_rate": 1e-2, "warmup_steps": 0, "save_steps": 1,
        "logging_steps": 1, "report_to": "none", "disable_tqdm": True, "ema_decay": 0.8, "overlong_buffer": 0,
        "gradient_checkpointing": False, "save_only_model": False, "rollout_rows": 8,
        "all_correct_weight": 0.0, "ema_initial_value": 1.0,
    }  # fmt: skip
    return DeepCompressConfig(**{**chosen, **changes})


class Seen(list[dict[str, Any]]):
    """What was scored, batch after batch."""

    def __call__(self, step: int, number: int, scored: Any) -> None:
        record = {"step": step, "round": number, "average": scored.average, "observed": scored.observed}
        record |= {"beta": scored.beta_B.tolist(), "reward": scored.reward_BG.tolist()}
        record |= {"judged": [[one.id, one.tokens, one.correct] for one in scored.judged]}
        self.append(record)


def make_trainer(
    folder: Path, *, model: Any = None, grader: Any = likes, others: Any = None, **changes: Any
) -> tuple[Any, Seen]:
    """A trainer, and the list that fills with what it scores; `others` go to the trainer itself."""
    seen = Seen()
    trainer = DeepCompressTrainer(
        make_policy() if model is None else model,
        settings(folder, **changes),
        from_tasks(["sums"], [1], PROBLEMS),
        processing_class=make_tokenizer(TEMPLATE),
        grader=grader,
        on_scored=seen,
        **(others or {}),
    )
    return trainer, seen


def average(trainer: Any) -> dict[str, Any]:
    """What the trainer's state keeps of the moving average."""
    kept: dict[str, Any] = trainer.state.stateful_callbacks[STATE]["attributes"]
    return kept


def weights(trainer: Any) -> list[float]:
    """A few numbers that any change of the weights would change."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return [float(weight.detach().double().square().sum()) for weight in model.parameters()]


def main(folder: str, changes: str) -> None:
    """One rank of a run."""
    trainer, seen = make_trainer(Path(folder), **json.loads(changes))
    trainer.train()
    if trainer.accelerator.is_main_process:
        print(json.dumps({"seen": seen, "average": average(trainer), "weights": weights(trainer)}))
    trainer.accelerator.end_training()  # a rank that ends after another could abort


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main(*sys.argv[1:])
