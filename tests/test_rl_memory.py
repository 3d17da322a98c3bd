"""What a run needs, told beforehand: numbers worked out by hand, and compared with the bytes of real tensors."""

from __future__ import annotations

import sys
import warnings
import weakref
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from command_line import refused
from leanthink.models.prompt import encode_chat
from leanthink.rl import run_needs
from leanthink.rl.activations import Activations, trace_activations
from leanthink.rl.adapters import lora_config
from leanthink.rl.data import from_tasks
from leanthink.rl.fused_lora import fuse_lora
from leanthink.rl.memory import (
    GIB,
    MIB,
    TILE_WORDS,
    RunNeeds,
    StepSize,
    check_fits,
    head_bytes,
    optimizer_bytes,
    told,
)
from leanthink.rl.rollouts import EngineRollouts
from leanthink.rl.run_model import shape_of
from leanthink.rl.run_needs import longest_prompt, needs_of, step_size
from leanthink.utils.errors import LeanThinkWarning, UsageError
from models import ARCHITECTURES, HYBRIDS, MIXTURES, make_model, make_tokenizer
from rl_runs import TEMPLATE, make_trainer, settings

# The embedded reasoner: 8 layers, hidden size 384, 6 heads and 2 kv heads of 64, 1152 inside, 264 words in one table.
LAYER = 2 * 384 * 384 + 2 * 384 * 128 + 2 * 64 + 3 * 384 * 1152 + 2 * 384
TINY_WEIGHTS = 4 * (264 * 384 + 8 * LAYER + 384)
ADAPTERS = 4 * 8 * 16 * (2 * (384 + 384) + 2 * (384 + 128) + 3 * (384 + 1152))  # rank 16 beside every product


def tiny_needs(folder: Path, lora: dict[str, Any] | None = None, **changes: Any) -> RunNeeds:
    """Of the embedded reasoner, for prompts of 100 tokens and responses of 924."""
    given: dict[str, Any] = {"max_completion_length": 924, "per_device_train_batch_size": 16, "rollout_rows": 64}
    args = settings(folder, **given | changes)
    adapters = None if lora is None else lora_config(lora, rollouts=args.rollouts)
    model = shape_of({}, adapters, rollouts=args.rollouts)
    return needs_of({"lora": lora}, args, model, None, 100)


def close(found: int, wanted: int) -> bool:
    """Equal but for the tables of a rotation."""
    return 0 <= found - wanted < 1024


def test_all_weights_by_hand(tmp_path: Path) -> None:
    found = tiny_needs(tmp_path)
    assert close(found.weights, TINY_WEIGHTS)
    assert (found.gradients, found.optimizer, found.rollout_copy) == (TINY_WEIGHTS, 2 * TINY_WEIGHTS, TINY_WEIGHTS)
    # keys and values of 8 layers x 2 heads x 64 numbers of 4 bytes, and a position
    assert found.slots == 16 * 1024 * (2 * 8 * 2 * 64 * 4 + 8) == 134_348_800
    assert found.slots_of == "16 rows x 1024"
    assert found.held == found.weights + 4 * TINY_WEIGHTS + found.slots


def test_adapters_by_hand(tmp_path: Path) -> None:
    found = tiny_needs(tmp_path, {})
    assert close(found.weights, TINY_WEIGHTS + ADAPTERS)
    assert (found.gradients, found.optimizer, found.rollout_copy) == (ADAPTERS, 2 * ADAPTERS, TINY_WEIGHTS)


def test_a_budget_bounds_the_slots_and_rows_are_at_most_those_that_are_generated(tmp_path: Path) -> None:
    budget: dict[str, Any] = {"rollout_policy": "sinks", "rollout_budget": {"slots": 200, "max_answer_slots": 100}}
    found = tiny_needs(tmp_path, **budget, rollout_rows=8)
    assert found.slots_of == "8 rows x 512", "prompt 100, budget 200, interval 64, answer 100, in steps of 256"
    assert tiny_needs(tmp_path, oversample=8).slots_of == "64 rows x 1024"
    learned = tiny_needs(tmp_path, **budget | {"rollout_policy": "horizon"})
    assert learned.slots > 16 * 512 * (2 * 8 * 2 * 64 * 4 + 8), "it remembers numbers of each token"


def test_quantized_weights_by_hand() -> None:
    model, products = shape_of({}, lora_config({}, rollouts="vllm"), rollouts="vllm"), LAYER - 2 * 64 - 2 * 384
    for name, number in (("load_in_4bit", 0.5 + 4 / 64), ("load_in_8bit", 1.0)):
        wanted = TINY_WEIGHTS + ADAPTERS - 8 * int(products * (4 - number))
        assert close(run_needs._weight_bytes(model, {name: True}), wanted)


def test_other_rollouts_and_a_reference_model(tmp_path: Path) -> None:
    theirs = tiny_needs(tmp_path, rollouts="transformers", beta=0.1)
    assert close(theirs.weights, 2 * TINY_WEIGHTS)
    assert (theirs.rollout_copy, theirs.slots) == (0, 0)
    assert theirs.growing == 16 * 1024 * 2 * 8 * 2 * 64 * 4
    assert close(tiny_needs(tmp_path, {}, beta=0.1).weights, TINY_WEIGHTS + ADAPTERS), "adapters can be switched off"


def test_numbers_of_optimizers_and_heads_by_hand() -> None:
    assert [optimizer_bytes(name, 100) for name in ("adamw_torch_fused", "rmsprop", "sgd", "new")] == [200, 100, 0, 0]
    # a tile of 4096 x 32768 logits in bfloat16, 4 bytes for each hidden number, and for each weight of a trained head
    given: dict[str, Any] = {"tokens": 8000, "hidden_size": 1536, "words": 151_936, "number": 2}
    assert head_bytes(**given, trained=False) == 4096 * 32768 * 2 + 8000 * 1536 * 4
    assert head_bytes(**given, trained=True) == 4096 * 32768 * 2 + 8000 * 1536 * 4 + 151_936 * 1536 * 4
    assert head_bytes(**given, trained=False, in_torch=True) == 4096 * 32768 * (2 + 29) + 8000 * 1536 * 4
    kept = Activations(layer=100, ends=7, layer_input=10, layers=4)
    assert (kept.peak(checkpointed=False), kept.peak(checkpointed=True)) == (407, 147)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("words", [3000, 40_000])
def test_the_head_takes_on_a_cpu_what_is_said(dtype: torch.dtype, words: int) -> None:
    from torch.profiler import ProfilerActivity, profile

    hidden = torch.randn(300, 16, dtype=dtype, requires_grad=True)
    head, targets = torch.randn(words, 16, dtype=dtype), torch.zeros(300, dtype=torch.long)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        found = ChunkedLogProbFunction.apply(hidden, head, None, targets, 1.0, min(words, TILE_WORDS))
        found[0].sum().backward()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    said = head_bytes(tokens=300, hidden_size=16, words=words, number=dtype.itemsize, trained=False, in_torch=True)
    assert 0.98 < said / peak < 1.05


def test_what_is_told_is_what_tensors_take(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, max_steps=1, max_completion_length=300)
    trainer.train()
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(trainer.model.config)
    prompt = longest_prompt(trainer.train_dataset, trainer.processing_class, trainer.args)
    found = needs_of({}, trainer.args, shape, trainer.processing_class, prompt)
    states = [value for state in trainer.optimizer.state.values() for value in state.values() if value.dim()]
    gradients, weights = trainer.model.parameters(), [*trainer.model.parameters(), *trainer.model.buffers()]
    assert found.weights == sum(weight.nbytes for weight in weights)
    assert found.gradients == sum(weight.nbytes for weight in gradients)
    assert found.optimizer == sum(value.nbytes for value in states) > 0
    assert found.rollout_copy == sum(p.nbytes for p in trainer.rollout_func._rollout_model.model.parameters())
    cache = trainer.rollout_func._engine.cache
    spare = cache.slots + 1  # one that nobody is given
    assert found.slots == (cache.kv_LPHTD.nbytes + cache.positions.nbytes) // spare * cache.slots


def kept_for_backward(model: Any, rows: int, tokens: int, autocast: torch.dtype | None) -> int:
    """Bytes that a real forward saves, weights apart."""
    storages: dict[int, int] = {}

    def note(saved: torch.Tensor) -> torch.Tensor:
        storages[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = torch.randn(rows, tokens, model.config.hidden_size, dtype=base.dtype, requires_grad=True)
    saving = torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved)
    with saving, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast is not None):
        out = base.train().base_model(inputs_embeds=hidden, use_cache=False)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    assert out.last_hidden_state.requires_grad
    return sum(size for where, size in storages.items() if where not in weights)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in {*MIXTURES, *HYBRIDS}])
def test_a_trace_without_memory_finds_what_a_forward_keeps(
    architecture: str, autocast: torch.dtype | None, attention: str
) -> None:
    model = make_model(architecture, num_hidden_layers=4)
    model.set_attn_implementation(attention)
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(model.config)
    shape.set_attn_implementation(attention)
    found = trace_activations(shape, rows=3, tokens=100, autocast=autocast)
    wanted = kept_for_backward(model, 3, 100, autocast)
    assert found.peak(checkpointed=False) == pytest.approx(wanted, rel=0.01)
    assert found.layer_input == 3 * 100 * 64 * 4
    assert found.layers == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trace_finds_what_adapters_keep_which_is_less_where_they_are_fused(dtype: torch.dtype) -> None:
    assert fuse_lora(shape_of({}, lora_config({}, rollouts="engine"), rollouts="engine")) == 0, "they are already"
    lora, kept = LoraConfig(r=4, target_modules="all-linear"), []
    for fuse in (lambda _model: 0, fuse_lora):
        model = make_model("qwen2", num_hidden_layers=4).to(dtype)
        with torch.device("meta"):
            shape = get_peft_model(AutoModelForCausalLM.from_config(model.config, dtype=dtype), lora)
        model = get_peft_model(model, lora)
        assert fuse(shape) == fuse(model)
        kept.append(kept_for_backward(model, 3, 100, torch.bfloat16))
        found = trace_activations(shape, rows=3, tokens=100, autocast=torch.bfloat16)
        assert found.peak(checkpointed=False) == pytest.approx(kept[-1], rel=0.01)
    # in each layer queries, keys and values have one input, gate and up another: 64 numbers, which peft casts for each
    assert kept[0] - kept[1] > 4 * 3 * 100 * (2 + 1) * 64 * 2


def test_what_cannot_be_traced_ends_no_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = {"rollouts": "transformers", "gradient_checkpointing": False}
    found = tiny_needs(tmp_path, {"alora_invocation_tokens": [1]}, **given)  # it looks at the prompts' words
    assert found.update is None
    assert found.peak == found.held + found.growing - found.gradients
    assert told(found, step_size(settings(tmp_path)), None, "mps", optim="sgd")[1].startswith("what an update keeps is")
    check_fits(found, 8 * GIB, "mps", run_needs._lower({"lora": {}}, settings(tmp_path, **given), found))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("architecture", ["qwen3_moe", "qwen3_5_text"])  # experts in float32, layers of several kinds
def test_what_has_no_trace_is_left_out_without_a_word(
    architecture: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(make_model(architecture).config)
    assert run_needs._update_bytes(settings(tmp_path), shape, shape, 100) is None
    assert capfd.readouterr() == ("", "")


def test_parts_that_may_lie_on_the_host_are_no_reason_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    plain: dict[str, Any] = {"deepspeed_plugin": None, "fsdp_config": {}}
    for nowhere in ({}, {"fsdp_config": None}, {"fsdp_config": "text"}):
        assert not run_needs.may_offload(SimpleNamespace(**plain | nowhere))
    for elsewhere in ({"deepspeed_plugin": object()}, {"fsdp_config": {"cpu_offload": True}}):
        assert run_needs.may_offload(SimpleNamespace(**plain | elsewhere))
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    assert run_needs.may_offload(SimpleNamespace(**plain))
    with pytest.warns(LeanThinkWarning, match="may not fit"):
        check_fits(NEEDS, 16 * GIB, "cuda:0", "lower rollout_rows", certain=False)


def test_the_longest_prompt_is_found(tmp_path: Path) -> None:
    dataset, tokenizer = from_tasks(["sums", "equations"], [1, 3], 12), make_tokenizer(TEMPLATE)
    args = settings(tmp_path, system_prompt="Think.")
    chats = [[{"role": "system", "content": "Think."}, *prompt] for prompt in dataset["prompt"]]
    assert longest_prompt(dataset, tokenizer, args) == max(len(encode_chat(tokenizer, chat, {})) for chat in chats)


NEEDS = RunNeeds(
    weights=6 * GIB, gradients=GIB, optimizer=2 * GIB, rollout_copy=3 * GIB, slots=8 * GIB, update=5 * GIB,
    slots_of="64 rows x 4096",
)  # fmt: skip


def test_slots_that_are_given_back_are_not_needed_beside_gradients() -> None:
    assert (NEEDS.held, NEEDS.peak) == (20 * GIB, 25 * GIB)
    asleep = replace(NEEDS, sleeps=True)
    assert (asleep.held, asleep.peak) == (19 * GIB, 19 * GIB)
    assert replace(asleep, update=9 * GIB).peak == 21 * GIB
    assert replace(NEEDS, slots=0, growing=7 * GIB).peak == 18 * GIB
    assert (NEEDS.times(2).held, NEEDS.times(2).slots_of) == (40 * GIB, "64 rows x 4096")


def test_what_cannot_fit_is_refused_with_its_parts_and_what_hardly_does_is_warned_of() -> None:
    with pytest.raises(UsageError) as error:
        check_fits(NEEDS, 16 * GIB, "cuda:0", "lower rollout_rows")
    assert str(error.value) == (
        "the run cannot fit: it needs 20.00 GiB without activations, and cuda:0 has 16.00 GiB (weights 6.00 GiB, "
        "gradients 1.00 GiB, optimizer states 2.00 GiB, rollout copy 3.00 GiB, slots (64 rows x 4096) 8.00 GiB): "
        "lower rollout_rows"
    )
    with pytest.warns(LeanThinkWarning, match=r"may not fit.* 25\.00 GiB at its peak"):
        check_fits(NEEDS, 24 * GIB, "cuda:0", "lower rollout_rows")
    with warnings.catch_warnings(action="error"):
        check_fits(NEEDS, 28 * GIB, "cuda:0", "lower rollout_rows")


def test_what_is_said_beforehand() -> None:
    step = StepSize(responses=256, group=16, max_tokens=3712, generated=256, rounds=2, steps=1.0)
    assert told(NEEDS, step, 80 * GIB, "cuda:0", optim="adamw_torch") == [
        "memory: 20.00 GiB of 80.00 GiB on cuda:0: weights 6.00 GiB, gradients 1.00 GiB, optimizer states 2.00 GiB, "
        "rollout copy 3.00 GiB, slots (64 rows x 4096) 8.00 GiB",
        "an update keeps about 5.00 GiB more",
        "a step: 16 groups of 16 responses, 950272 tokens at most; up to 512 are generated until a batch is full",
    ]
    other = replace(NEEDS, slots=0, slots_of="", growing=3 * MIB, sleeps=True)
    longer = replace(step, responses=16, generated=512, rounds=1, steps=32.0)
    lines = told(other, longer, None, "mps", optim="lion_32bit")
    assert lines[0].startswith("memory: 12.00 GiB on mps: weights")
    assert lines[1].endswith("up to 3.0 MiB; the states of optim=lion_32bit are not counted")
    assert lines[2].startswith("a step: 1 group of 16 responses, 59392 tokens at most; 512 responses are generated for")


def test_a_step_of_these_settings(tmp_path: Path) -> None:
    args = settings(tmp_path, gradient_accumulation_steps=2, steps_per_generation=8, save_steps=4, oversample=2)
    assert step_size(args) == StepSize(responses=12, group=2, max_tokens=8, generated=48, rounds=20, steps=4.0)


def test_a_run_that_cannot_fit_is_refused_before_weights_are_read(
    tmp_path: Path, inside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_needs, "_memory", lambda _: (GIB, "cuda:0", 1))
    monkeypatch.setattr(sys.modules["leanthink.models.loading"], "load", None)
    words = ("train", "--tasks", "sums", "--out", tmp_path / "run", "--per-device-train-batch-size", 64)
    said = ("the run cannot fit", "cuda:0 has 1.00 GiB", "slots (64 rows x 4608)", "lower rollout_rows (now 64)")
    refused(inside(*words), 2, *said)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(("sleeps", "policy"), [(False, "full"), (True, "full"), (True, "snapkv"), (True, "sinks")])
def test_an_engine_that_sleeps_holds_no_slots_during_an_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sleeps: bool, policy: str
) -> None:
    bounded = {"slots": 40, "recent_window": 4, "eviction_interval": 4}
    given: dict[str, Any] = {"rollout_policy": policy, "rollout_budget": None if policy == "full" else bounded}
    caches: list[Any] = []
    held: list[bool] = []
    rollouts, loss = EngineRollouts.__call__, GRPOTrainer.compute_loss

    def generate(self: Any, *given: Any) -> Any:
        found = rollouts(self, *given)
        caches.append(weakref.ref(self._engine.cache.kv_LPHTD))
        return found

    def update(self: Any, *given: Any, **more: Any) -> Any:
        held.append(any(cache() is not None for cache in caches))
        return loss(self, *given, **more)

    wanted, seen_before = make_trainer(tmp_path / "before", **given)
    wanted.train()
    monkeypatch.setattr(EngineRollouts, "__call__", generate)
    monkeypatch.setattr(GRPOTrainer, "compute_loss", update)
    trainer, seen = make_trainer(tmp_path / "run", rollout_enable_sleep_mode=sleeps, **given)
    trainer.train()
    assert held == [not sleeps] * 3
    assert seen == seen_before
    pairs = zip(trainer.model.parameters(), wanted.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    ("name", "kind"), [("rollout_enable_sleep_mode", "vllm"), ("vllm_enable_sleep_mode", "engine")]
)
def test_each_engine_has_a_sleep_mode_of_its_own(tmp_path: Path, name: str, kind: str) -> None:
    with pytest.raises(UsageError, match=f"{name} with rollouts='{kind}'"):
        settings(tmp_path, rollouts=kind, **{name: True})
