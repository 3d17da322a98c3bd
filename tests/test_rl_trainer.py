from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOTrainer

from leanthink.data.think_tags import think_tags
from leanthink.rl import trainer as module
from leanthink.rl.config import DeepCompressConfig
from leanthink.rl.data import from_tasks
from leanthink.rl.rewards import ALL_CORRECT_WEIGHT
from leanthink.rl.trl_reward import DeepCompressReward
from leanthink.utils.errors import UsageError
from models import END, make_model, make_tokenizer
from rl_runs import PROBLEMS, TEMPLATE, average, likes, make_policy, make_trainer, settings, weights

SCRIPT = Path(__file__).parent / "rl_runs.py"
pytestmark = pytest.mark.filterwarnings("ignore:nothing to learn")


def ranks(folder: Path, count: int, **changes: Any) -> dict[str, Any]:
    """What rank 0 of so many processes prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared["ACCELERATE_DEBUG_MODE"] = "1"  # ranks that gather unequally much are told of: NCCL would wait for ever
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), json.dumps(changes)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    outputs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * count, outputs[0][1][-2000:]
    found: dict[str, Any] = json.loads(outputs[0][0].splitlines()[-1])
    return found


@pytest.mark.slow
def test_two_ranks_whose_groups_straddle_them_are_one(tmp_path: Path) -> None:
    two_batches = {"oversample": 2, "steps_per_generation": 1, "gradient_accumulation_steps": 2}
    alone, seen = make_trainer(tmp_path / "one", **two_batches)
    alone.train()
    two = ranks(tmp_path / "two", 2, per_device_train_batch_size=3, **two_batches)  # a rank has one group and a half
    assert two["seen"] == seen
    assert any(record["round"] for record in seen), "no dynamic sampling to compare"
    assert len({tokens for record in seen for _, tokens, _ in record["judged"]}) > 2, "no lengths to compare"
    assert two["average"] == average(alone)
    torch.testing.assert_close(torch.tensor(two["weights"]), torch.tensor(weights(alone)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_ranks_cut_their_micro_batches_alike(tmp_path: Path) -> None:
    accumulated = {"gradient_accumulation_steps": 3, "max_steps": 2}
    alone, seen = make_trainer(tmp_path / "one", per_device_train_batch_size=8, **accumulated)
    alone.train()
    two = ranks(tmp_path / "two", 2, per_device_train_batch_size=4, **accumulated)
    assert two["seen"] == seen
    torch.testing.assert_close(torch.tensor(two["weights"]), torch.tensor(weights(alone)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", [2, 4, 5])  # in the first epoch, at its end, in the second
def test_a_run_that_goes_on_is_the_run_that_was_not_interrupted(tmp_path: Path, step: int) -> None:
    changes = {"max_steps": 6, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    whole, seen = make_trainer(tmp_path, **changes)
    whole.train()
    resumed, again = make_trainer(tmp_path, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert again == [record for record in seen if record["step"] >= step]
    assert again
    assert average(resumed) == average(whole)
    assert weights(resumed) == weights(whole)


def test_evaluation_leaves_average_and_later_steps_alone(tmp_path: Path) -> None:
    plain, seen = make_trainer(tmp_path / "plain")
    plain.train()
    evaluated, also = make_trainer(
        tmp_path / "evaluated",
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=8,
        num_generations_eval=4,
        others={"eval_dataset": from_tasks(["sums"], [1], 4, split="held-out")},
    )
    evaluated.train()
    assert also == seen
    assert average(evaluated) == average(plain)
    found = [record["eval_accuracy"] for record in evaluated.state.log_history if "eval_accuracy" in record]
    assert len(found) == 3


def test_epochs_bring_the_same_problems_in_another_order(tmp_path: Path) -> None:
    trainer, seen = make_trainer(tmp_path, max_steps=8)
    trainer.train()
    firsts = [[id for id, _, _ in record["judged"]] for record in seen if record["round"] == 0]
    assert len(firsts) == 8  # four batches an epoch
    assert sorted(chain(*firsts[:4])) == sorted(chain(*firsts[4:]))
    assert firsts[:4] != firsts[4:]


def test_rounds_bring_every_problem_before_one_comes_again(tmp_path: Path) -> None:
    trainer, seen = make_trainer(tmp_path, grader=Judge(9, 6), max_num_gen_batches=6)
    full_batch(trainer)
    rounds = [[id for id, _, _ in record["judged"]] for record in seen]
    assert len(rounds) == 6
    assert all(ids[::2] == ids[1::2] for ids in rounds)
    assert sorted(chain(*(ids[::2] for ids in rounds[:4]))) == sorted(trainer.train_dataset["id"])
    assert rounds[4:] == rounds[:2], "with other seeds"
    assert [record["judged"] for record in seen[4:]] != [record["judged"] for record in seen[:2]]


def test_generation_batches_of_one_step_get_other_problems_also_after_a_resume(tmp_path: Path) -> None:
    changes = {"steps_per_generation": 1, "gradient_accumulation_steps": 2, "max_steps": 3, "max_num_gen_batches": 2}
    never = {"grader": lambda *_, **__: False, "save_steps": 1}
    trainer, seen = make_trainer(tmp_path, **changes, **never)
    trainer.train()
    groups = [[id for id, _, _ in record["judged"]][::2] for record in seen]
    assert [(record["step"], record["round"]) for record in seen] == [
        (step, number) for step in range(3) for _ in range(2) for number in range(2)
    ]
    for first, second, third, fourth in zip(*(groups[i::4] for i in range(4)), strict=True):
        assert not {*first, *second} & {*fourth}, "replacements are of problems that the step has not had"
        assert len({*third, *fourth}) == 6
    resumed, again = make_trainer(tmp_path, **changes, **never)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert again == seen[4:]


def test_rows_of_rounds_of_other_widths_are_padded_as_trl_pads() -> None:
    rows = [torch.tensor([0, 1]), torch.tensor([3, 4, 5])]
    assert module.stacked_rows("prompt_ids", rows, 9).tolist() == [[9, 0, 1], [3, 4, 5]]
    assert module.stacked_rows("prompt_mask", rows, 9).tolist() == [[0, 0, 1], [3, 4, 5]]
    assert module.stacked_rows("completion_ids", rows, 9).tolist() == [[0, 1, 9], [3, 4, 5]]
    assert module.stacked_rows("sampling_per_token_logps", rows, 9).tolist() == [[0, 1, 0], [3, 4, 5]]
    assert module.stacked_rows("advantages", [torch.tensor(1), torch.tensor(2)], 9).tolist() == [1, 2]


class Judge:
    """Grades by the round: rounds before `mixed_from` are all right, later ones are mixed in every second group."""

    def __init__(self, mixed_from: int, responses: int, *, right: bool = True) -> None:
        self.mixed_from, self.responses, self.right, self.calls = mixed_from, responses, right, 0

    def __call__(self, row: Any, text: str, *, think_tags: bool) -> bool:
        number, place = divmod(self.calls, self.responses)
        self.calls += 1
        return self.right if number < self.mixed_from or place // 2 % 2 else place % 2 == 0


def full_batch(trainer: Any) -> dict[str, Any]:
    """What a generation batch became."""
    trainer.model.train()
    rows = [trainer.train_dataset[i // 2] for i in range(6)]
    batch: dict[str, Any] = trainer._generate_and_score_completions(rows)
    return batch


def test_dynamic_sampling_keeps_the_groups_that_are_told_apart_until_the_batch_is_full(tmp_path: Path) -> None:
    trainer, seen = make_trainer(tmp_path, grader=Judge(1, 6))
    batch = full_batch(trainer)
    assert [record["round"] for record in seen] == [0, 1, 2]  # none, then two of three each
    assert [record["observed"] for record in seen] == pytest.approx([1, 2 / 3, 2 / 3])  # before groups are dropped
    advantages = batch["advantages"].view(3, 2)
    assert (advantages.sign() == torch.tensor([1, -1])).all()
    kept = [record["judged"][i] for record in seen[1:] for i in (0, 1, 4, 5)][:6]
    assert batch["completion_mask"].sum(1).tolist() == [tokens for _, tokens, _ in kept]
    assert int(batch["num_items_in_batch"]) == int(batch["completion_mask"].sum())
    assert batch["prompt_ids"].shape == batch["prompt_mask"].shape
    for ids, mask, (id, _, _) in zip(batch["prompt_ids"], batch["prompt_mask"], kept, strict=True):
        rows = {row["id"]: row["problem"] for row in trainer.train_dataset}
        assert trainer.processing_class.decode(ids[mask.bool()]) == rows[id] + "<think>"
    metrics = trainer._metrics["train"]
    assert metrics["dynamic_sampling/rounds"] == [3]
    assert metrics["dynamic_sampling/kept"] == [8 / 18]
    assert metrics["dynamic_sampling/filled"] == [0]
    assert average(trainer)["average"] == pytest.approx(0.8 + 0.2 * 2 / 3)  # once, with the last round


def test_what_is_missing_after_the_last_round_is_filled_with_what_teaches_nothing(tmp_path: Path) -> None:
    trainer, seen = make_trainer(tmp_path, grader=Judge(1, 6), max_num_gen_batches=2)
    batch = full_batch(trainer)
    assert len(seen) == 2
    assert batch["advantages"][4:].tolist() == [0, 0]
    assert batch["advantages"][:4].abs().min() > 0.5
    assert int(batch["num_items_in_batch"]) == int(batch["completion_mask"][:4].sum())
    assert trainer._metrics["train"]["dynamic_sampling/filled"] == [pytest.approx(1 / 3)]


def test_an_oversampled_round_begins_with_the_batch_and_may_fill_it_alone(tmp_path: Path) -> None:
    trainer, seen = make_trainer(tmp_path, grader=Judge(0, 12), oversample=2)
    batch = full_batch(trainer)
    (record,) = seen
    assert [id for id, _, _ in record["judged"][:6]] == [trainer.train_dataset[i // 2]["id"] for i in range(6)]
    assert len(record["judged"]) == 12
    mixed = [record["judged"][i] for i in (0, 1, 4, 5, 8, 9)]
    assert batch["completion_mask"].sum(1).tolist() == [tokens for _, tokens, _ in mixed]
    assert trainer._metrics["train"]["dynamic_sampling/kept"] == [0.5]
    first = [id for id, _, _ in record["judged"]]
    trainer.state.global_step = 1
    full_batch(trainer)
    more = [id for id, _, _ in seen[1]["judged"]]
    assert more[:6] == first[:6]
    assert more[6:] != first[6:]
    assert more[::2] == more[1::2]


def test_a_batch_with_nothing_to_learn_from_has_advantages_of_zero_whatever_the_overlong_penalty(
    tmp_path: Path,
) -> None:
    trainer, _ = make_trainer(tmp_path, grader=Judge(9, 6, right=False), max_num_gen_batches=2, overlong_buffer=8)
    batch = full_batch(trainer)
    assert batch["advantages"].tolist() == [0] * 6
    assert int(batch["num_items_in_batch"]) == 0


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_batch_that_teaches_nothing_is_told_of_and_passed_over(
    tmp_path: Path, beta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, _ = make_trainer(tmp_path, grader=Judge(9, 6), max_num_gen_batches=1, max_steps=2, beta=beta)
    losses, compute, before = [], GRPOTrainer._compute_loss, weights(trainer)
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", lambda *given: losses.append(1) or compute(*given))
    with pytest.warns(match="of 3 groups 3 all right, 0 all wrong"):
        trainer.train()
    assert len(losses) == (2 if beta else 0), "beta is a term of its own, of a copy of the starting model"
    assert beta or weights(trainer) == before


def test_without_dynamic_sampling_a_batch_is_taken_as_it_comes(tmp_path: Path) -> None:
    trainer, seen = make_trainer(tmp_path, grader=Judge(9, 6), dynamic_sampling=False)
    batch = full_batch(trainer)
    assert len(seen) == 1
    assert batch["advantages"].tolist() == [0] * 6


def test_mastered_groups_stay_with_a_share_of_their_advantages(tmp_path: Path) -> None:
    ours = {"all_correct_weight": 0.25, "ema_initial_value": 0.0}
    trainer, seen = make_trainer(tmp_path, grader=Judge(9, 6), **ours)
    batch = full_batch(trainer)
    assert len(seen) == 1
    rewards = torch.tensor(seen[0]["reward"]).view(3, 2)
    for advantages, (left, right) in zip(batch["advantages"].view(3, 2), rewards.tolist(), strict=True):
        # Two numbers lie sqrt(1/2) of their deviation from their mean; TRL adds 1e-4 to the deviation.
        wanted = 0.0 if left == right else math.copysign(0.25 * math.sqrt(0.5), left - right)
        torch.testing.assert_close(advantages, torch.tensor([wanted, -wanted]), rtol=1e-2, atol=1e-6)
    assert any(left != right for left, right in rewards.tolist())
    mixed, _ = make_trainer(tmp_path / "mixed", grader=Judge(0, 6), **ours)
    strong = full_batch(mixed)["advantages"].view(3, 2).abs()[:, 0]
    assert [float(value) > 0.5 for value in strong] == [True, True, False], "the second group, all right, comes last"
    wrong, rounds = make_trainer(tmp_path / "wrong", grader=Judge(9, 6, right=False), max_num_gen_batches=2, **ours)
    assert full_batch(wrong)["advantages"].tolist() == [0] * 6  # all wrong is still dropped
    assert len(rounds) == 2


def test_groups_that_are_all_right_and_short_enough_teach_nothing_and_are_told_as_that(tmp_path: Path) -> None:
    given = {"all_correct_weight": 0.25, "target_length": 7}
    trainer, seen = make_trainer(tmp_path, grader=Judge(9, 6), **given)
    batch = full_batch(trainer)
    silent = sum(left == right for left, right in torch.tensor(seen[0]["reward"]).view(3, 2).tolist())
    assert 0 < silent == sum(not row.any() for row in batch["advantages"].view(3, 2))
    assert trainer._metrics["train"]["dynamic_sampling/filled"] == [pytest.approx(silent / 3)]


def test_what_is_mastered_takes_no_place_from_what_tells_right_from_wrong(tmp_path: Path) -> None:
    trainer, seen = make_trainer(tmp_path, grader=Judge(0, 12), oversample=2, all_correct_weight=0.25)
    batch = full_batch(trainer)
    mixed = [seen[0]["judged"][i] for i in (0, 1, 4, 5, 8, 9)]  # every second of six groups, for three places
    assert batch["completion_mask"].sum(1).tolist() == [tokens for _, tokens, _ in mixed]
    assert trainer._metrics["train"]["dynamic_sampling/kept"] == [1]


@pytest.mark.parametrize("slots", [8, 4096])
def test_tokens_sampled_under_a_budget_weigh_as_the_whole_cache_makes_them_likelier(tmp_path: Path, slots: int) -> None:
    budget = {"slots": slots, "recent_window": 4, "eviction_interval": 4, "max_answer_slots": 8}
    changes = {"rollout_policy": "sinks", "rollout_budget": budget, "max_completion_length": 48, "model": make_model()}
    trainer, _ = make_trainer(tmp_path, grader=Judge(0, 6), rollout_ratio_cap=1.5, **changes)
    batch = full_batch(trainer)
    mask = batch["completion_mask"].bool()
    weights = (batch["advantages"] / batch["advantages"][:, :1])[mask]  # nothing is evicted before the first token
    (kl,), (mean,) = (trainer._metrics["train"][f"rollouts/{name}"] for name in ("kl", "weight"))
    if slots == 4096:
        assert abs(kl) < 1e-5
        torch.testing.assert_close(weights, torch.ones_like(weights), rtol=1e-4, atol=1e-4)
    else:
        assert kl > 0.1
        assert float(weights.max()) == pytest.approx(1.5, abs=1e-4)
        assert float(weights.min()) < 0.9
    assert mean == pytest.approx(float(weights.mean()), abs=1e-3)
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_further_rewards_are_added(tmp_path: Path) -> None:
    def longer(completion_ids: Any, **others: Any) -> list[float]:
        return [5.0 * len(ids) for ids in completion_ids]

    trainer, seen = make_trainer(
        tmp_path, grader=Judge(9, 6), others={"reward_funcs": [longer]}, all_correct_weight=1.0
    )
    batch = full_batch(trainer)
    tokens = torch.tensor([tokens for _, tokens, _ in seen[0]["judged"]]).view(-1, 2)
    longer_first = (tokens[:, 0] - tokens[:, 1]).sign()
    assert longer_first.any()
    assert torch.equal(batch["advantages"].view(-1, 2)[:, 0].sign(), longer_first.float())


def test_the_reward_serves_a_plain_grpo_trainer(tmp_path: Path) -> None:
    reward = DeepCompressReward(max_length=8, grader=likes)
    trainer = GRPOTrainer(
        model=make_policy(),
        reward_funcs=reward,
        args=settings(tmp_path, max_steps=1),
        train_dataset=from_tasks(["sums"], [1], PROBLEMS),
        processing_class=make_tokenizer(TEMPLATE),
    )
    reward.attach(trainer)
    trainer.train()
    assert average(trainer)["step"] == 0
    assert "pass_ratio/average" in trainer.state.log_history[0]


def test_lora_trains_the_adapters_and_generates_with_them(tmp_path: Path) -> None:
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer, seen = make_trainer(tmp_path, others={"peft_config": lora}, gradient_checkpointing=True)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert len({record["step"] for record in seen}) == 3
    assert (tmp_path / "checkpoint-3" / "adapter_model.safetensors").is_file()
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])


def test_ours_is_the_default_of_the_dual_rule_alone(tmp_path: Path) -> None:
    plain = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    ours = DeepCompressConfig(**plain)
    assert (ours.length_reward_mode, ours.ema_initial_value) == ("dual", "observed")
    assert ours.all_correct_weight == ALL_CORRECT_WEIGHT
    assert DeepCompressConfig(**plain, all_correct_weight=0).all_correct_weight == 0, "as published"
    for rule in ("penalty", "bonus", "none"):
        assert DeepCompressConfig(**plain, length_reward_mode=rule).all_correct_weight == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_generations": 1}, "num_generations=1: a group of one"),
        ({"per_device_train_batch_size": 5, "gradient_accumulation_steps": 1}, "generation batch of 5.*such as 6"),
        ({"ema_decay": 1.5}, "ema_decay=1.5"),
        ({"ema_initial_value": "first"}, '"observed"'),
        ({"length_reward_mode": "longer"}, "unknown length_reward_mode"),
        ({"all_correct_weight": 1.5}, "all_correct_weight=1.5"),
        ({"all_correct_weight": "much"}, "all_correct_weight='much': a number from 0"),
        ({"all_correct_weight": 0.5, "scale_rewards": "batch"}, 'scale_rewards="group"'),
        ({"overlong_buffer": 9}, "buffer=9"),
        ({"target_length": 0}, "target_length=0: a whole number of tokens, from 1 to below the longest"),
        ({"target_length": 100_000}, "target_length=100000"),
        ({"target_length": "many"}, "target_length='many'"),
        ({"target_length": 2.5}, "target_length=2.5"),
        ({"target_length": 4, "length_reward_mode": "none"}, "leave one of them out"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "sum_then_normalize"),
        ({"max_num_gen_batches": 0}, "max_num_gen_batches=0"),
        ({"oversample": 0}, "oversample=0"),
        ({"oversample": 2, "dynamic_sampling": False}, "oversample=2 with dynamic_sampling=False"),
        ({"rollouts": "vllms"}, "Did you mean 'vllm'"),
        ({"rollout_policy": "horizons"}, "Did you mean 'horizon'"),
        ({"rollout_policy": "sinks"}, "slots: 512"),
        ({"rollout_budget": {"slots": 64}}, "takes no budget"),
        ({"rollout_policy": "sinks", "rollout_budget": {"slot": 64}}, "Did you mean 'slots'"),
        ({"rollout_policy": "sinks", "rollout_budget": 64}, "rollout_budget=64: give a mapping"),
        ({"rollout_policy": "sinks", "rollout_budget": {"recent_window": 4}}, "has no slots"),
        ({"rollout_policy": "sinks", "rollout_budget": {"slots": 4, "recent_window": 8}}, "recent_window=8"),
        ({"rollouts": "transformers", "rollout_policy": "sinks", "rollout_budget": {"slots": 64}}, "'engine'"),
        ({"repetition_penalty": 1.1}, "rollouts='transformers'"),
        ({"rollout_rows": 0}, "rollout_rows=0"),
        ({"rollout_policy": "sinks", "rollout_budget": {"slots": 64}, "temperature": 0.9}, "give temperature=1"),
        ({"rollout_ratio_cap": 0.5}, "rollout_ratio_cap=0.5"),
        ({"steps_per_generation": 4, "save_steps": 2}, "multiple of 4"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
        ({"model_init_kwargs": {"a": 1}}, "are not read"),
    ],
)
def test_bad_settings_are_refused_with_the_fix(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        settings(tmp_path, **changes)


def test_published_defaults(tmp_path: Path) -> None:
    args = module.DeepCompressConfig(str(tmp_path), use_cpu=True, bf16=False)
    assert (args.epsilon, args.epsilon_high, args.beta, args.loss_type) == (0.2, 0.28, 0.0, "dapo")
    assert (args.scale_rewards, args.multi_objective_aggregation) == ("group", "sum_then_normalize")
    assert (args.alpha, args.ema_decay, args.length_reward_mode, args.max_num_gen_batches) == (0.2, 0.99, "dual", 10)
    assert (args.buffer, args.overlong_factor, args.num_generations) == (2048, 1.0, 16)
    assert (args.learning_rate, args.weight_decay, args.warmup_steps) == (1e-6, 0.1, 10)


def test_data_that_cannot_be_trained_on_are_refused(tmp_path: Path) -> None:
    args = settings(tmp_path)
    with pytest.raises(UsageError, match="no column 'answer'"):
        module.check_data(Dataset.from_dict({"prompt": ["a"]}), args)
    with pytest.raises(UsageError, match="no column 'prompt'"):
        module.check_data(Dataset.from_dict({"problem": ["a"], "answer": ["1"]}), args)
    with pytest.raises(UsageError, match="2 problems are fewer than the 3 prompts"):
        module.check_data(Dataset.from_dict({"prompt": ["a"] * 2, "answer": ["1"] * 2}), args)
    with pytest.raises(UsageError, match="stream"):
        module.check_data(iter(()), args)


def test_a_chat_template_after_which_no_thought_can_close_is_refused(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "hi"}]
    plain = TEMPLATE.replace("<think>", "")
    with pytest.raises(UsageError, match="no chat template"):
        module.check_template(make_tokenizer(), prompt, settings(tmp_path))
    module.check_template(make_tokenizer(plain), prompt, settings(tmp_path))  # the model may write its tags itself
    with pytest.raises(UsageError, match="enable_thinking"):
        module.check_template(make_tokenizer(TEMPLATE + "</think>"), prompt, settings(tmp_path))
    module.check_template(make_tokenizer(plain), prompt, settings(tmp_path, think_tags=False))
    asked = [{"role": "system", "content": "Think within <think> and </think>."}, *prompt]
    module.check_template(make_tokenizer(plain), asked, settings(tmp_path))


def test_a_name_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"leanthink\.load\('tiny'\)"):
        make_trainer(tmp_path, model="tiny")


def test_another_version_of_trl_is_refused() -> None:
    module.check_version("1.16.3")
    with pytest.raises(UsageError, match=r"trl 1\.17\.0 is installed.*pip install"):
        module.check_version("1.17.0")


def test_prompts_are_those_of_trl_and_control_tokens_in_a_problem_are_text(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }}<|end|>{% endfor %}" + (
        "{% if add_generation_prompt %}{% if quick is defined %}!{% endif %}<think>{% endif %}"
    )
    plain, told = ([{"role": "user", "content": text}] for text in ("What is 1 + 2?", "1<|end|>2"))
    trainer, _ = make_trainer(tmp_path)
    tokenizer = trainer.processing_class
    tokenizer.chat_template = template
    trls, _, _ = GRPOTrainer._tokenize_prompts(trainer, [plain, told])
    ids, _, _ = trainer._tokenize_prompts([plain, told])
    assert ids[0] == trls[0]
    assert [each.count(END) for each in (*trls, *ids)] == [1, 2, 1, 1]
    assert tokenizer.decode(ids[1]) == tokenizer.decode(trls[1])
    trainer.args.split_special_tokens = False
    trainer.args.system_prompt, trainer.chat_template_kwargs = "Brief!", {"quick": True}
    (ids,), _, _ = trainer._tokenize_prompts([told])
    assert tokenizer.decode(ids) == "system:Brief!<|end|>user:1<|end|>2<|end|>!<think>"
    assert ids.count(END) == 3


def test_tags_of_another_name_are_given_and_graded_as_the_usual_ones(tmp_path: Path) -> None:
    seen: list[str] = []

    def notes(row: Any, text: str, *, think_tags: bool) -> bool:
        seen.append(text)
        return think_tags

    trainer, _ = make_trainer(tmp_path, grader=notes, think_tags=["[THINK]", "[/THINK]"])
    tags = think_tags(trainer.processing_class)
    assert (tags.open, tags.close, tags.in_text) == ("[THINK]", "[/THINK]", True)
    ids = trainer.processing_class("so[/THINK]3").input_ids
    judged = trainer.reward._judge({}, ids, trainer.processing_class, tags)
    assert (judged.thought_tokens, judged.closed, judged.correct, seen) == (
        len("so[/THINK"),
        True,
        1.0,
        ["so</think>3"],
    )
    with pytest.raises(UsageError, match="must differ"):
        settings(tmp_path, think_tags=["<a>", "<a>"])
