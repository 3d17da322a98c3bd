"""The adapter inside verl: its registry, its data structures, its reward workers, its checkpoints and its trainer."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("verl", reason="verl is not installed: `make test-verl` runs this in an environment of its own")

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.reward_loop import RewardLoopManager
from verl.trainer.ppo.checkpoint_callback import build_checkpoint_callback
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.reward import load_reward_manager, resolve_reward_manager_cls
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
from verl.utils.config import validate_config

from leanthink import load
from leanthink.integrations.verl.advantage import group_advantages
from leanthink.integrations.verl.average import FILE
from leanthink.integrations.verl.data import _as_verl
from leanthink.integrations.verl.deepcompress import ADVANTAGE, DeepCompressCheckpoint, DeepCompressRewardManager
from leanthink.integrations.verl.settings import settings_of
from leanthink.rl.data import from_tasks
from leanthink.rl.rewards import batch_pass_ratio
from leanthink.utils.errors import UsageError

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "src" / "leanthink" / "models" / "tiny" / "weights"
GROUP = 4


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """The example over verl's defaults, made small, as verl's command makes it."""
    changes = [
        f"trainer.default_local_dir={tmp_path}",
        "trainer.n_gpus_per_node=1",
        f"actor_rollout_ref.model.path={WEIGHTS}",
        f"actor_rollout_ref.rollout.n={GROUP}",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "data.max_response_length=64",
        "data.train_batch_size=4",
        "reward.num_workers=2",
        "+algorithm.deepcompress.all_correct_weight=0.5",
        "+algorithm.deepcompress.ema_decay=0.5",
    ]
    with initialize_config_dir(str(ROOT / "examples" / "verl"), version_base=None):
        return compose("deepcompress", overrides=changes)


def scored(rng: random.Random, prompts: int, width: int = 64) -> tuple[DataProto, torch.Tensor, torch.Tensor]:
    """A shuffled batch as verl's trainer has it, and its tokens and verdicts, both [B, G]."""
    tokens_BG = torch.tensor([[rng.randint(1, width) for _ in range(GROUP)] for _ in range(prompts)])
    correct_BG = torch.tensor([[float(rng.random() < 0.6) for _ in range(GROUP)] for _ in range(prompts)])
    order = list(range(prompts * GROUP))
    rng.shuffle(order)
    tokens_N = tokens_BG.flatten()[order]
    mask = (torch.arange(width) < tokens_N[:, None]).long()
    rewards = torch.zeros(len(order), width)
    rewards[torch.arange(len(order)), tokens_N - 1] = correct_BG.flatten()[order].float() * 2 - 1
    uids = np.array([f"uid{i // GROUP}" for i in order], dtype=object)
    tensors = {"token_level_rewards": rewards, "response_mask": mask, "place": torch.tensor(order)}
    return DataProto(TensorDict(tensors, batch_size=len(order)), {"uid": uids}), tokens_BG, correct_BG


def with_advantages(data: DataProto, config: Any) -> DataProto:
    """What the trainer makes of a batch, called as the trainer calls it."""
    keys = [f"{uid}_{i}_0" for i, uid in enumerate(data.non_tensor_batch["uid"])]
    algorithm = config.algorithm
    return compute_advantage_for_multi_trajectories(
        data, keys, algorithm.adv_estimator, num_repeat=GROUP, norm_adv_by_std_in_grpo=True, config=algorithm
    )


def test_the_import_path_of_the_example_registers_and_is_found_by_verl(config: Any) -> None:
    assert get_adv_estimator_fn("deepcompress") is ADVANTAGE
    assert resolve_reward_manager_cls(config) is DeepCompressRewardManager
    assert isinstance(build_checkpoint_callback(config), DeepCompressCheckpoint)
    assert not need_critic(config)
    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=False)


@pytest.mark.parametrize("seed", range(12))
def test_advantages_in_verls_own_data_are_those_of_the_pure_functions(config: Any, seed: int) -> None:
    rng = random.Random(seed)
    build_checkpoint_callback(config)
    average = 1.0
    for _ in range(3):
        data, tokens_BG, correct_BG = scored(rng, rng.randint(1, 9))
        found = with_advantages(data, config).batch
        average = 0.5 * average + 0.5 * batch_pass_ratio(correct_BG)
        wanted_BG = group_advantages(tokens_BG.double(), correct_BG.double(), average, settings_of(config))
        wanted = wanted_BG.flatten()[found["place"]].float()[:, None] * found["response_mask"]
        torch.testing.assert_close(found["advantages"], wanted)
        torch.testing.assert_close(found["returns"], wanted)
    assert ADVANTAGE.average == pytest.approx(average)


def written(texts: list[str], rows: list[dict[str, Any]], tokenizer: Any, width: int = 64) -> DataProto:
    """Responses to these rows as verl hands them to its reward workers, padded on the right."""
    ids = [[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for text in texts]
    responses = torch.tensor([one + [tokenizer.pad_token_id] * (width - len(one)) for one in ids])
    valid = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in ids])
    prompts = torch.zeros(len(texts), 3, dtype=torch.long)
    mask = torch.cat([torch.ones_like(prompts), valid], dim=1)
    tensors = {"prompts": prompts, "responses": responses, "attention_mask": mask}
    objects = {name: np.array([row[name] for row in rows], dtype=object) for name in rows[0]}
    return DataProto(TensorDict(tensors, batch_size=len(texts)), objects)


def responses_to_two_problems(tokenizer: Any) -> tuple[DataProto, list[bool], list[int]]:
    """Four responses to each: right ones of two lengths, a wrong one, and one that never closes its thought."""
    problems = list(from_tasks(["sums"], [1], 2))
    texts, rows = [], []
    for problem in problems:
        box = rf"\boxed{{{problem['answer']}}}"
        texts += [f"a</think>{box}", f"aaaaaaaa</think>{box}", "a</think>\\boxed{?}", f"a{box}"]
        rows += [_as_verl(problem, 0)] * 4
    data = written(texts, rows, tokenizer)
    return data, [True, True, False, False] * 2, data.batch["attention_mask"][:, 3:].sum(dim=1).tolist()


def test_the_reward_manager_tells_right_from_wrong_and_counts_tokens(config: Any) -> None:
    _, tokenizer = load("tiny")
    manager = load_reward_manager(config, tokenizer, reward_router_address=None, reward_model_tokenizer=None)
    data, right, tokens = responses_to_two_problems(tokenizer)
    found = [asyncio.run(manager.run_single(data[i : i + 1])) for i in range(len(data))]
    assert [one["reward_score"] for one in found] == [1.0 if verdict else -1.0 for verdict in right]
    extra = [one["reward_extra_info"] for one in found]
    assert [one["acc"] for one in extra] == [float(verdict) for verdict in right]
    assert [one["tokens"] for one in extra] == tokens
    assert [one["thought_tokens"] for one in extra][:4] == [1, 8, 1, tokens[3]]
    assert [one["closed"] for one in extra][:4] == [1, 1, 1, 0]


def test_without_think_tags_the_whole_text_is_graded(config: Any) -> None:
    _, tokenizer = load("tiny")
    OmegaConf.update(config, "algorithm.deepcompress.think_tags", False, force_add=True)
    manager = load_reward_manager(config, tokenizer)
    data, _, _ = responses_to_two_problems(tokenizer)
    assert asyncio.run(manager.run_single(data[3:4]))["reward_score"] == 1.0


def test_the_average_goes_into_checkpoints_and_a_resumed_run_goes_on_with_it(config: Any, tmp_path: Path) -> None:
    folder = tmp_path / "global_step_3"
    folder.mkdir()
    data, _, _ = scored(random.Random(0), 4)
    callback = build_checkpoint_callback(config)
    assert ADVANTAGE.average is None
    with_advantages(data, config)
    kept = ADVANTAGE.average
    callback.on_save(trainer=None, global_step=3, checkpoint_dir=str(folder), async_save=False)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    with_advantages(data, config)
    after = ADVANTAGE.average
    assert after != kept
    build_checkpoint_callback(config)
    assert ADVANTAGE.average == kept
    with_advantages(data, config)
    assert ADVANTAGE.average == after
    OmegaConf.update(config, "trainer.resume_mode", "resume_path")
    OmegaConf.update(config, "trainer.resume_from_path", str(folder))
    build_checkpoint_callback(config)
    assert ADVANTAGE.average == kept
    (folder / FILE).unlink()
    with pytest.raises(UsageError, match=FILE):
        build_checkpoint_callback(config)
    OmegaConf.update(config, "trainer.resume_mode", "disable")
    build_checkpoint_callback(config)
    assert ADVANTAGE.average is None
    OmegaConf.update(config, "trainer.resume_mode", "maybe")
    with pytest.raises(UsageError, match="resume_mode 'maybe'"):
        build_checkpoint_callback(config)


def test_the_script_for_one_host_starts_verl_with_the_example(tmp_path: Path) -> None:
    command = [
        ROOT / "examples" / "verl" / "one_node.sh",
        WEIGHTS,
        tmp_path,
        "data.train_batch_size=64",
        "--cfg",
        "job",
    ]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "GPUS": "2"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    made = OmegaConf.create(done.stdout)
    assert made.data.train_files == f"{tmp_path}/train.parquet"
    assert (made.data.train_batch_size, made.trainer.n_gpus_per_node) == (64, 2)
    assert settings_of(made).responses == 16


@pytest.mark.parametrize("change", ["algorithm.filter_groups.enable", "algorithm.use_kl_in_reward"])
def test_what_the_method_cannot_bear_ends_a_run_before_it_begins(config: Any, change: str) -> None:
    OmegaConf.update(config, change, True)
    with pytest.raises(UsageError, match=f"{change}=True: must be False"):
        build_checkpoint_callback(config)


@pytest.fixture(scope="module")
def ray_cluster() -> Any:
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
    yield
    ray.shutdown()


def test_verls_reward_workers_on_ray_and_its_advantages_are_one_chain(config: Any, ray_cluster: None) -> None:
    _, tokenizer = load("tiny")
    build_checkpoint_callback(config)
    data, right, tokens = responses_to_two_problems(tokenizer)
    rewarded = RewardLoopManager(config).compute_rm_score(data)
    scores = rewarded.batch["rm_scores"]
    assert scores.sum(dim=1).tolist() == [1.0 if verdict else -1.0 for verdict in right]
    assert rewarded.non_tensor_batch["tokens"].tolist() == tokens
    tensors = {"token_level_rewards": scores, "response_mask": data.batch["attention_mask"][:, 3:]}
    batch = DataProto(TensorDict(tensors, batch_size=len(data)), {"uid": np.array(["a"] * 4 + ["b"] * 4, dtype=object)})
    found = with_advantages(batch, config).batch["advantages"][:, 0]
    correct_BG = torch.tensor(right).double().view(2, 4)
    wanted = group_advantages(torch.tensor(tokens).double().view(2, 4), correct_BG, 0.75, settings_of(config))
    torch.testing.assert_close(found, wanted.flatten().float())
