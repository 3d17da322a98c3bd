from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from leanthink.engine.generation import generate
from leanthink.engine.sampling import NO_TOKEN, Sampler, Sampling
from leanthink.models.predictor import Predictor, save_predictor
from leanthink.policies.budget import Budget
from leanthink.rl.rollout_weight_sync import RolloutModel
from leanthink.rl.rollouts import EngineRollouts, check_whole, response_seed
from leanthink.utils.errors import LeanThinkWarning, PredictorMismatch, RequestFailed, UnsupportedModel, UsageError
from models import ARCHITECTURES, CONTEXT, make_model
from rl_runs import make_policy
from rl_runs import make_trainer as make_run

LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}


def make_trainer(folder: Path, **changes: Any) -> Any:
    """A trainer as it is while it trains."""
    trainer, _ = make_run(folder, **changes)
    trainer.model.train()
    return trainer


def prompts(trainer: Any, count: int = 3) -> list[Any]:
    """The first problems, twice each, as TRL hands them over."""
    return [trainer.train_dataset[i // 2]["prompt"] for i in range(2 * count)]


def with_adapters(model: Any, **changes: Any) -> Any:
    """LoRA whose adapters are not zero, as they are before training."""
    wrapped = get_peft_model(model, LoraConfig(**{**LORA, **changes}))
    torch.manual_seed(1)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return wrapped.eval()


def test_responses_are_those_of_generate_each_with_its_own_seed(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, temperature=0.9)
    found = trainer.rollout_func(prompts(trainer), trainer)
    ids = trainer._tokenize_prompts(prompts(trainer))[0]
    seeds = [response_seed(42, "0/0", ids[i], i) for i in range(6)]
    choices = [Sampling(temperature=0.9, max_new_tokens=8, seed=seed) for seed in seeds]
    wanted = generate(trainer.model.eval(), trainer.processing_class, ids, policy="full", sampling=choices)
    assert found["prompt_ids"] == ids
    assert found["completion_ids"] == [list(completion.token_ids) for completion in wanted]
    assert found["logprobs"] is None
    assert len({tuple(response) for response in found["completion_ids"]}) == 6


def test_logprobs_are_those_that_training_computes_for_the_same_tokens(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, off_policy_mask_threshold=0.5)
    found = trainer.rollout_func(prompts(trainer, 1), trainer)
    for prompt, response, given in zip(
        *(found[key] for key in ("prompt_ids", "completion_ids", "logprobs")), strict=True
    ):
        both = torch.tensor([prompt + response])
        with torch.no_grad():
            wanted, _, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model, both, torch.ones_like(both), len(response)
            )
        torch.testing.assert_close(torch.tensor(given, dtype=torch.float32), wanted[0], rtol=1e-4, atol=1e-4)


def test_logprobs_that_nobody_reads_are_not_asked_for(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    assert trainer.rollout_func(prompts(trainer, 1), trainer)["logprobs"] is None


def test_seeds_depend_on_step_and_call_in_training_and_on_neither_in_evaluation(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)

    def draw() -> Any:
        return trainer.rollout_func(prompts(trainer), trainer)["completion_ids"]

    first, second = draw(), draw()
    assert first != second
    trainer.model.eval()
    evaluated = draw()
    assert draw() == evaluated
    trainer.model.train()
    trainer.state.global_step = 1
    assert draw() not in (first, second)
    fresh = make_trainer(tmp_path)
    fresh.state.global_step = 1
    trainer.state.global_step = 2
    assert fresh.rollout_func(prompts(fresh), fresh)["completion_ids"] != draw()


def test_equal_prompts_of_one_call_get_other_responses(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    same = [trainer.train_dataset[0]["prompt"]] * 8  # of four groups
    found = trainer.rollout_func(same, trainer)["completion_ids"]
    assert len({tuple(response) for response in found}) == 8
    trainer.model.eval()
    evaluated = trainer.rollout_func(same, trainer)["completion_ids"]
    trainer.accelerator = SimpleNamespace(process_index=3)  # a place in an evaluation is one in its group
    assert trainer.rollout_func(same, trainer)["completion_ids"] == evaluated


def test_the_engine_is_kept_and_follows_the_weights(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.rollout_func(prompts(trainer), trainer)
    engine = trainer.rollout_func._engine
    trainer.rollout_func(prompts(trainer), trainer)
    stats = engine.stats()
    assert stats.prefix_cache_hits < stats.prefix_cache_queries / 2, (
        "each prompt, there twice, is computed in each call"
    )
    with torch.no_grad():
        trainer.model.lm_head.weight.zero_()
        trainer.model.lm_head.weight[7] = 1e3 * trainer.model.model.norm.weight
    trainer.temperature = 0.0
    found = trainer.rollout_func(prompts(trainer, 2), trainer)
    assert trainer.rollout_func._engine is engine
    assert {token for response in found["completion_ids"] for token in response} <= {0, 7}
    trainer.rollout_func([[{"role": "user", "content": "x" * 600}]] * 2, trainer)
    assert trainer.rollout_func._engine is not engine, "a prompt this long fits no region of the first engine"
    assert trainer.rollout_func._engine.unfinished == 0


def test_generating_leaves_the_trained_model_as_it_was(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, gradient_checkpointing=True)
    state = torch.get_rng_state()
    trainer.rollout_func(prompts(trainer), trainer)
    assert trainer.model.training
    assert all(weight.requires_grad and not weight.is_inference() for weight in trainer.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_an_engine_that_failed_is_not_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path)
    wanted = trainer.rollout_func(prompts(trainer), trainer)
    failing = trainer.rollout_func._engine
    monkeypatch.setattr(failing, "step", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer.rollout_func(prompts(trainer), trainer)
    trainer.rollout_func._calls.clear()
    assert trainer.rollout_func(prompts(trainer), trainer) == wanted


def test_a_budget_bounds_what_a_response_holds(tmp_path: Path) -> None:
    budget = {"slots": 8, "recent_window": 4, "eviction_interval": 4, "max_answer_slots": 8}
    trainer = make_trainer(
        tmp_path, rollout_policy="sinks", rollout_budget=budget, max_completion_length=64, model=make_model()
    )
    found = trainer.rollout_func(prompts(trainer), trainer)
    ids = found["prompt_ids"]
    seeds = [response_seed(42, "0/0", ids[i], i) for i in range(6)]
    choices = [Sampling(temperature=1.0, max_new_tokens=64, seed=seed) for seed in seeds]
    bounded = {"policy": "sinks", "budget": Budget(**budget)}
    wanted = generate(trainer.model.eval(), trainer.processing_class, ids, sampling=choices, **bounded)
    assert [list(completion.token_ids) for completion in wanted] == found["completion_ids"]
    assert sum(completion.evictions for completion in wanted) > 0
    assert trainer.rollout_func._room[1] == 256


def test_a_copy_has_the_adapters_folded_in_and_follows_them() -> None:
    model = with_adapters(make_model("llama"))
    copy = RolloutModel(model, torch.float32)
    ids = torch.arange(20)[None]

    def difference() -> float:
        with torch.no_grad():
            return float((copy.model(ids).logits - model(ids).logits).abs().max())

    assert difference() < 1e-4
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.mul_(1.5)
    assert difference() > 0.1
    copy.sync_weights()
    assert difference() < 1e-4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_copy_of_each_architecture_is_the_model(architecture: str) -> None:
    model = make_model(architecture)
    copy = RolloutModel(model, torch.float32)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(copy.model(ids).logits, model(ids).logits)
    assert not any(weight.requires_grad for weight in copy.model.parameters())
    stock = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)  # some keep their routers in float32
    types = {name: weight.dtype for name, weight in stock.named_parameters()}
    assert torch.bfloat16 in types.values()
    assert {
        name: weight.dtype for name, weight in RolloutModel(model, torch.bfloat16).model.named_parameters()
    } == types


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"modules_to_save": ["embed_tokens"]}, {"bias": "all"}])
def test_other_adapters_than_plain_lora_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="rollouts='transformers'"):
        RolloutModel(with_adapters(make_model(), **changes), torch.float32)


def test_a_model_that_is_spread_over_ranks_is_refused() -> None:
    whole = SimpleNamespace(is_fsdp_enabled=False, args=SimpleNamespace(deepspeed_plugin=None))
    check_whole(whole)
    check_whole(
        SimpleNamespace(is_fsdp_enabled=False, args=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=2)))
    )
    for changes in (
        {"is_fsdp_enabled": True},
        {"args": SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3))},
    ):
        with pytest.raises(UsageError, match="rollouts='transformers'"):
            check_whole(SimpleNamespace(**{**vars(whole), **changes}))


def test_what_the_cache_cannot_serve_is_refused_before_anything_is_generated(folder: Path) -> None:
    with pytest.raises(UnsupportedModel, match="sliding window"):
        EngineRollouts(make_model("mistral", sliding_window=CONTEXT // 2))
    learned: dict[str, Any] = {
        "policy": "horizon",
        "budget": Budget(slots=64),
        "predictor": folder / "other.safetensors",
    }
    with pytest.raises(PredictorMismatch):
        EngineRollouts(make_policy(), **learned)


def test_rollouts_take_the_predictor_of_a_relative_if_told_to(tmp_path: Path) -> None:
    model = make_model()
    predictor = Predictor(target="horizon", hidden_size=64, horizons=(4, 16))
    save_predictor(predictor, tmp_path / "p", base_fingerprint="0" * 64, data={}, metrics={})
    bounded: dict[str, Any] = {"policy": "horizon", "budget": Budget(slots=64), "predictor": tmp_path / "p"}
    with pytest.raises(PredictorMismatch):
        EngineRollouts(model, **bounded)
    with pytest.warns(LeanThinkWarning, match="borrowed from another model"):
        EngineRollouts(model, **bounded, ignore_predictor_mismatch=True)
    settings: dict[str, Any] = {"rollout_policy": "horizon", "rollout_budget": {"slots": 64}}
    settings |= {"rollout_predictor": str(tmp_path / "p"), "ignore_predictor_mismatch": True}
    with pytest.warns(LeanThinkWarning, match="borrowed from another model"):
        trainer, _ = make_run(tmp_path, model=model, **settings)
    assert trainer.args.to_dict()["ignore_predictor_mismatch"] is True


def test_transformers_generates_in_its_place_if_asked_to(tmp_path: Path) -> None:
    trainer, seen = make_run(tmp_path, rollouts="transformers", max_steps=1)
    assert trainer.rollout_func is None
    trainer.train()
    assert seen


def test_a_response_that_fails_raises_and_the_next_call_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, temperature=0.9)
    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "pick", lambda _, logits_NV, *__: torch.full((len(logits_NV),), NO_TOKEN))
        with pytest.raises(RequestFailed, match=r"request 0 failed: the model's logits are NaN.* of 6 requests"):
            trainer.rollout_func(prompts(trainer), trainer)
    found = trainer.rollout_func(prompts(trainer), trainer)
    assert all(found["completion_ids"])
