"""TRL's options of models and peft's of LoRA, as settings of a run."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import BitsAndBytesConfig

from command_line import refused
from leanthink.models.loading import load
from leanthink.rl import run_model
from leanthink.rl.adapters import lora_config, with_lora_section
from leanthink.rl.rollout_weight_sync import RolloutModel
from leanthink.rl.run_model import check_options, load_model, quantization, shape_of
from leanthink.utils.errors import UsageError
from models import make_model, make_tokenizer
from rl_runs import TEMPLATE, make_policy, make_trainer


@pytest.mark.parametrize(
    ("given", "section"),
    [
        ({"lora_r": 8, "lora_alpha": 8}, {"r": 8, "alpha": 8}),
        ({"use_peft": True}, {}),
        ({"use_peft": True, "lora": {"lora_alpha": 4}}, {"alpha": 4}),
        ({"lora_target_modules": ["all-linear"]}, {"target_modules": "all-linear"}),
        ({"lora": {"r": 4}, "lora_target_modules": ["q_proj"]}, {"r": 4, "target_modules": ["q_proj"]}),
        ({"lora": {"lora_dropout": 0.1, "use_rslora": True}}, {"dropout": 0.1, "use_rslora": True}),
        ({"lora_modules_to_save": ["embed_tokens"]}, {"modules_to_save": ["embed_tokens"]}),
        ({"use_peft": False}, None),
        ({"lora": None}, None),
    ],
)
def test_all_names_of_lora_become_its_section(given: dict[str, Any], section: dict[str, Any] | None) -> None:
    assert with_lora_section({"alpha": 0.2, **given}) == {"alpha": 0.2} | ({} if section is None else {"lora": section})


def test_left_out_keys_are_our_defaults_and_others_peft_s() -> None:
    config = lora_config({"alpha": 8, "layers_to_transform": [0], "target_modules": ["q_proj"]}, rollouts="engine")
    assert (config.r, config.lora_alpha, config.lora_dropout, config.task_type) == (16, 8, 0.0, "CAUSAL_LM")
    assert (config.target_modules, config.layers_to_transform) == ({"q_proj"}, [0])
    assert lora_config({}, rollouts="engine").target_modules == "all-linear"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lora": 16}, "a mapping"),
        ({"lora": {"r": 4}, "lora_r": 8}, "r is given by two names"),
        ({"lora": {"alpha": 4, "lora_alpha": 8}}, "alpha is given by two names"),
        ({"use_peft": False, "lora_r": 8}, "use_peft=false with lora_r"),
        ({"use_peft": "maybe"}, "true or false"),
    ],
)
def test_what_says_two_things_of_lora_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        with_lora_section(given)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"rank": 4}, "unknown key of lora 'rank'"),
        ({"inference_mode": True}, "unknown key of lora 'inference_mode'"),
        ({"task_type": "SEQ_CLS"}, "only CAUSAL_LM"),
        ({"use_dora": True, "bias": "all"}, "lora: bias, use_dora cannot be folded.*rollouts='transformers'"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save cannot be folded"),
        ({"lora_bias": True}, "lora_bias cannot be folded"),
        ({"target_modules": ["nothing"]}, "does not fit this model.*nothing"),
        ({"r": "many"}, "r='many': must be a whole number"),
        ({"r": True}, "r=True: must be a whole number"),
        ({"use_rslora": "no"}, "use_rslora='no': must be true or false"),
        ({"rank_pattern": 3}, "rank_pattern=3: must be a mapping"),
        ({"bias": "some"}, "bias"),
        ({"target_modules": ["q_proj", 3]}, "does not fit this model"),
        ({"target_modules": "("}, "does not fit this model"),
        ({"init_lora_weights": "nonsense"}, "init_lora_weights='nonsense': true, false, gaussian"),
        ({"init_lora_weights": "corda"}, "init_lora_weights='corda'"),
        ({"layers_to_transform": [0]}, "needs target_modules as a list"),
        ({"target_modules": ["lm_head"]}, "one table for both"),
        ({"layers_pattern": "h"}, "lora: .*layers_pattern"),
    ],
)
def test_adapters_that_cannot_be_are_refused_before_weights_are_read(section: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        shape_of({}, lora_config(section, rollouts="engine"), rollouts="engine")


def test_other_rollouts_take_all_of_peft_s_lora() -> None:
    for section in ({"use_dora": True}, {"bias": "all"}, {"target_modules": ["q_proj", "lm_head"]}):
        shape_of({}, lora_config(section, rollouts="transformers"), rollouts="transformers")
    with pytest.raises(UsageError, match="modules_to_save='lm_head': must be a list"):
        lora_config({"modules_to_save": "lm_head"}, rollouts="transformers")
    with pytest.raises(UsageError, match="bias: some"):
        shape_of({}, lora_config({"bias": "some"}, rollouts="transformers"), rollouts="transformers")


@pytest.mark.parametrize(
    "section",
    [
        {"use_rslora": True, "dropout": 0.5},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 7}, "target_modules": ["q_proj", "v_proj"]},
        {"layers_to_transform": [1], "target_modules": ["o_proj"]},
        {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    ],
)
def test_kinds_of_lora_that_are_taken_are_folded_as_peft_applies_them(section: dict[str, Any]) -> None:
    model = get_peft_model(make_model(tie_word_embeddings=False), lora_config({"r": 4, **section}, rollouts="engine"))
    copied = RolloutModel(model.eval(), torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.add_(torch.randn_like(weight) * 0.2)
    copied.sync_weights()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        wanted = model(ids).logits
        torch.testing.assert_close(copied.model(ids).logits, wanted, rtol=1e-4, atol=1e-3)
        with model.disable_adapter():
            assert (model(ids).logits - wanted).abs().max() > 0.1


@pytest.mark.parametrize(
    ("given", "rollouts", "said"),
    [
        ({"load_in_4bit": 1}, "vllm", "true or false"),
        ({"load_in_4bit": True, "load_in_8bit": True, "lora": {}}, "vllm", "exclude each other"),
        ({"bnb_4bit_quant_type": "fp4"}, "vllm", "without load_in_4bit"),
        ({"load_in_4bit": True}, "vllm", "without LoRA"),
        ({"load_in_4bit": True, "lora": {}}, "engine", "rollouts='transformers' or 'vllm'"),
        ({"load_in_8bit": True, "lora": {}}, "vllm", "rollouts='transformers'"),
        ({"load_in_4bit": True, "lora": {}}, "transformers", "pip install bitsandbytes"),
        ({"dtype": "int8"}, "engine", "unknown dtype"),
    ],
)
def test_weights_that_cannot_be_quantized_are_refused(given: dict[str, Any], rollouts: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_options(given, rollouts=rollouts)


def test_attention_that_is_not_there_is_refused_before_weights_are_read() -> None:
    for name in ("nonsense", "flash_attention_2", "paged|eager"):
        with pytest.raises(UsageError, match="attn_implementation="):
            shape_of({"attn_implementation": name}, None, rollouts="engine")
    assert shape_of({"attn_implementation": "eager"}, None, rollouts="engine").config._attn_implementation == "eager"


def test_the_chosen_attention_computes_the_update_and_leaves_rollouts_as_they_are(tmp_path: Path) -> None:
    eager = make_policy()
    eager.set_attn_implementation("eager")
    sgd = {"optim": "sgd"}  # Adam's first step is as large for a rounding error as for a gradient
    trainer, seen = make_trainer(tmp_path / "a", model=eager, **sgd)
    other, seen_of_other = make_trainer(tmp_path / "b", **sgd)
    for one in (trainer, other):
        one.args.max_steps = 1
        one.train()
    assert trainer.model.config._attn_implementation == "eager"
    assert trainer.rollout_func._rollout_model.model.config._attn_implementation == "sdpa"
    assert seen == seen_of_other
    pairs = list(zip(trainer.model.parameters(), other.model.parameters(), strict=True))
    assert all(torch.allclose(one, two, atol=1e-4) for one, two in pairs)
    assert not all(torch.equal(one, two) for one, two in pairs), "both were computed alike"


def test_a_run_takes_trl_s_names(tmp_path: Path, inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, config, made = tmp_path / "llama", tmp_path / "settings.yaml", []
    make_policy().save_pretrained(folder)
    make_tokenizer(TEMPLATE).save_pretrained(folder)
    config.write_text("lora_r: 4\nlora_target_modules: [q_proj]\nuse_rslora: true\nattn_implementation: eager\n")
    loaded = run_model.load_model
    monkeypatch.setattr("leanthink.rl.run.load_model", lambda *given: made.append(loaded(*given)) or made[-1])
    out, sets = tmp_path / "run", ("max_completion_length=8", "num_generations=2", "per_device_train_batch_size=2")
    words = ["train", "--config", config, "--model", folder, "--tasks", "sums", "--max-steps", 1, "--out", out]
    flags = [word for name in sets for word in ("--set", name)]
    done = inside(*words, *flags)
    assert done.code == 0, done.err
    recorded = json.loads((out / "run.json").read_text())["settings"]
    assert recorded["lora"] == {"r": 4, "target_modules": ["q_proj"], "use_rslora": True}
    assert not {"lora_r", "use_rslora", "lora_target_modules"} & set(recorded)
    assert made[0].config._attn_implementation == "eager"
    adapters = json.loads((out / "checkpoint-1" / "adapter_config.json").read_text())
    assert (adapters["r"], adapters["use_rslora"], adapters["target_modules"]) == (4, True, ["q_proj"])
    over = inside(*words, *flags, "--overwrite", "--lora-r", 2)
    assert over.code == 0, over.err
    recorded = json.loads((out / "run.json").read_text())["settings"]["lora"]
    assert recorded == {"r": 2, "alpha": 4, "target_modules": ["q_proj"], "use_rslora": True}
    assert "rollout copy" in over.err
    refused(inside(*words, "--resume", "--set", "lora_rr=4"), 2, "unknown setting 'lora_rr'", "Did you mean 'lora_r'")


def test_quantized_weights_are_asked_for_as_trl_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    given = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "lora": {}, "dtype": "bfloat16"}
    check_options(given, rollouts="vllm")
    monkeypatch.setattr(BitsAndBytesConfig, "post_init", lambda _: None)  # it looks for the package
    asked: list[dict[str, Any]] = []
    model = make_model()
    monkeypatch.setattr(
        sys.modules["leanthink.models.loading"], "load", lambda *_, **how: (asked.append(how) or model, 0)
    )
    assert load_model(given, torch.device("cpu")) is model
    assert asked[0]["device_map"] == {"": "cpu"}
    found = asked[0]["quantization_config"]
    assert (found.load_in_4bit, found.bnb_4bit_quant_type, found.bnb_4bit_compute_dtype) == (
        True,
        "fp4",
        torch.bfloat16,
    )
    assert quantization({"load_in_8bit": True}).load_in_8bit
    assert quantization({}) is None


def test_options_of_transformers_reach_the_model_that_is_loaded() -> None:
    model, _ = load("tiny", device="cpu", dtype=torch.float32, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
