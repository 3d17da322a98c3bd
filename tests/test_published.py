"""`examples/deepcompress-published.yaml` is what the released scripts do: golden values, worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import TrainingArguments

from leanthink.rl.run import make_config
from leanthink.rl.trl_reward import DeepCompressReward
from rl_runs import average, make_trainer

FILE = Path(__file__).parent.parent / "examples" / "deepcompress-published.yaml"
GPUS = 8
METHOD = ("length_reward_mode", "alpha", "ema_initial_value", "ema_decay", "all_correct_weight", "oversample",
          "max_num_gen_batches", "dynamic_sampling")  # fmt: skip
SCHEDULE = ("learning_rate", "lr_scheduler_type", "warmup_steps")
pytestmark = pytest.mark.filterwarnings("ignore:nothing to learn")


def published(*names: str) -> dict[str, Any]:
    """These settings of the file."""
    settings = yaml.safe_load(FILE.read_text())
    return {name: settings[name] for name in names}


@pytest.fixture
def args(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The config that the file becomes on 8 GPUs; here without any."""
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda _: GPUS))
    return make_config({**yaml.safe_load(FILE.read_text()), "out": str(tmp_path)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", 0.2),
        ("length_reward_mode", "dual"),
        ("target_length", None),
        ("ema_initial_value", 1.0),
        ("ema_decay", 0.99),
        ("all_correct_weight", 0),
        ("buffer", 2048),
        ("overlong_factor", 1.0),
        ("max_completion_length", 10240),
        ("num_generations", 16),
        ("temperature", 1.0),
        ("top_p", 1.0),
        ("top_k", 0),
        ("repetition_penalty", 1.0),
        ("dynamic_sampling", True),
        ("max_num_gen_batches", 10),
        ("learning_rate", 1e-6),
        ("lr_scheduler_type", "constant_with_warmup"),
        ("warmup_steps", 160),
        ("weight_decay", 0.1),
        ("adam_beta1", 0.9),
        ("adam_beta2", 0.999),
        ("adam_epsilon", 1e-8),
        ("max_grad_norm", 1.0),
        ("epsilon", 0.2),
        ("epsilon_high", 0.28),
        ("delta", None),
        ("beta", 0.0),
        ("entropy_coef", 0.0),
        ("loss_type", "dapo"),
        ("importance_sampling_level", "token"),
        ("scale_rewards", "group"),
        ("mask_truncated_completions", False),
        ("num_iterations", 1),
        ("use_vllm", True),
        ("vllm_importance_sampling_correction", False),
        ("gradient_checkpointing", True),
    ],
)
def test_the_file_has_the_published_value(args: Any, name: str, value: Any) -> None:
    assert getattr(args, name) == value


def test_prompts_groups_and_updates_of_a_step_on_8_gpus(args: Any) -> None:
    groups = args.generation_batch_size // args.num_generations
    assert args.generation_batch_size == 8192
    assert groups == 512
    assert groups * args.oversample == 2048, "prompts of a round"
    assert args.steps_per_generation // args.gradient_accumulation_steps == 16, "updates"
    update = GPUS * args.per_device_train_batch_size * args.gradient_accumulation_steps
    assert update // args.num_generations == 32, "groups of an update"
    assert args.max_steps // 16 == 600
    assert args.save_steps // 16 == 10


def test_the_learning_rate_rises_over_160_updates_and_stays(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, **published(*SCHEDULE))
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=trainer.args.learning_rate)
    scheduler = trainer.create_scheduler(9600, optimizer)
    rates = []
    for _ in range(9601):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert [rates[update] for update in (0, 16, 80, 160, 161, 9600)] == pytest.approx([0, 1e-7, 5e-7, 1e-6, 1e-6, 1e-6])


def test_a_warm_up_counts_updates_not_micro_batches_nor_generation_batches(tmp_path: Path) -> None:
    batches = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "steps_per_generation": 6}
    trainer, seen = make_trainer(tmp_path, **published(*SCHEDULE), **batches, max_steps=4, save_steps=2)
    trainer.train()
    assert {record["step"] for record in seen} == {0, 2}
    rates = [record["learning_rate"] for record in trainer.state.log_history if "learning_rate" in record]
    assert rates == pytest.approx([0, 1e-6 / 160, 2e-6 / 160, 3e-6 / 160])


class Shares:
    """Grades rounds of so many groups of two: one right in the first `mixed`, both in `solved` more, none in others."""

    def __init__(self, groups: int, *rounds: tuple[int, int]) -> None:
        self.groups, self.rounds, self.calls = groups, rounds, 0

    def __call__(self, row: Any, text: str, *, think_tags: bool) -> bool:
        number, response = divmod(self.calls, 2 * self.groups)
        self.calls += 1
        group, (mixed, solved) = response // 2, self.rounds[number]
        return response % 2 == 0 if group < mixed else group < mixed + solved


def test_the_average_takes_all_prompts_of_the_last_round_once_a_generation_batch(tmp_path: Path) -> None:
    # Three places, four prompts for each: rounds of 12, in generation batches of two updates.
    judge = Shares(12, (6, 0), (12, 0), (2, 0), (6, 6))
    batches = {"per_device_train_batch_size": 3, "steps_per_generation": 2, "gradient_accumulation_steps": 1}
    method = published(*METHOD)
    trainer, seen = make_trainer(tmp_path, grader=judge, max_steps=6, save_steps=2, **batches, **method)
    trainer.train()
    assert [(record["step"], record["round"]) for record in seen] == [(0, 0), (2, 0), (4, 0), (4, 1)]
    assert [record["observed"] for record in seen] == pytest.approx([1 / 4, 1 / 2, 1 / 12, 3 / 4])
    # 0.99 * 1 + 0.01 / 4, and so on; both rounds of the third batch go on from the second one's.
    assert [record["average"] for record in seen] == pytest.approx([0.9925, 0.987575, 0.9785325833, 0.98519925])
    assert seen[0]["beta"] == pytest.approx([0.5 - 0.9925] * 6 + [0 - 0.9925] * 6), "with the batch itself in it"
    assert average(trainer)["average"] == pytest.approx(0.98519925)


def test_the_rewards_of_a_group_by_hand() -> None:
    reward = DeepCompressReward(max_length=10240, buffer=2048, **published("alpha", "ema_initial_value", "ema_decay"))
    lengths, correct = torch.tensor([[100, 300, 9216, 300]]), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    total, length = reward._score(lengths, correct, 0.75)
    # Mean 2479, population deviation 3890.4657, z = -0.611495 and -0.560087 for the right ones, β = 0.5 - 0.75.
    torch.testing.assert_close(length[0], torch.tensor([0.0923712, 0.0930104, 0, 0]).double(), rtol=0, atol=1e-6)
    # Half the overlong penalty at 9216 tokens, which is half of the way from 8192 to 10240.
    torch.testing.assert_close(total[0], torch.tensor([1.0923712, 1.0930104, -1.5, -1]).double(), rtol=0, atol=1e-6)
