"""LoRA's layers in one step: what they compute is what peft computes, and where they may not, peft computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from leanthink.rl.fused_lora import FusedLinear, _LoraLinear, fuse_lora
from models import make_model
from rl_runs import make_policy, make_trainer

STEP = "_LoraLinearBackward"
FLOAT64: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-14}


def adapted(architecture: str = "qwen2", dtype: torch.dtype = torch.float64, **lora: Any) -> Any:
    """A random model with random adapters on all linear layers, in training mode."""
    given = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "init_lora_weights": False, **lora}
    model = get_peft_model(make_model(architecture).to(dtype), LoraConfig(**given))
    return model.to(dtype).train()


def loss_and_gradients(model: Any) -> dict[str, Tensor]:
    ids = torch.arange(3 * 20).view(3, 20)
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {"loss": loss.detach(), **grads}


def pair(dtype: torch.dtype = torch.float64, **lora: Any) -> tuple[Any, Any]:
    """One layer of 24 features in and 16 out, and the same one fused."""
    torch.manual_seed(0)
    given = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, **lora}
    layer: Any = get_peft_model(
        nn.ModuleDict({"one": nn.Linear(24, 16, dtype=dtype)}), LoraConfig(**given, target_modules=["one"])
    ).base_model.model["one"]
    for adapters in (layer.lora_A, layer.lora_B):
        adapters.to(torch.promote_types(dtype, torch.float32))
    fused = deepcopy(layer)
    assert fuse_lora(fused) == 1
    return layer, fused


@pytest.mark.parametrize("checkpointing", [None, True, False])
@pytest.mark.parametrize("architecture", ["qwen2", "phi3", "gemma3_text", "qwen3_5_text"])
def test_a_model_computes_what_peft_computes(architecture: str, checkpointing: bool | None) -> None:
    model = adapted(architecture)
    wanted = loss_and_gradients(model)
    fused = deepcopy(model)
    assert fuse_lora(fused) == sum(type(part) is Linear for part in model.modules()) > 5
    if checkpointing is not None:
        fused.enable_input_require_grads()
        fused.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": checkpointing})
    found = loss_and_gradients(fused)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, **FLOAT64, msg=lambda said, name=name: f"{name}: {said}")
    assert fused.state_dict().keys() == model.state_dict().keys()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        logits = fused(ids).logits
        for module in fused.modules():
            if isinstance(module, Linear):
                module.set_scale("default", 3)
        assert (fused(ids).logits - logits).abs().max() > 0.01, "scaling is read at each call"
        wanted_logits = fused(ids).logits
        with fused.disable_adapter(), model.disable_adapter():
            torch.testing.assert_close(fused(ids).logits, model(ids).logits, **FLOAT64)
        merged = fused.merge_and_unload()
        assert not any(isinstance(module, Linear) for module in merged.modules())
        torch.testing.assert_close(merged(ids).logits, wanted_logits, **FLOAT64)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("of_x", [True, False])
def test_gradients_are_those_of_small_differences(bias: bool, of_x: bool) -> None:
    torch.manual_seed(0)
    shapes = ((2, 3, 5), (7, 5), (7,), (2, 5), (7, 2))
    x, weight, offset, a, b = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    given = (x.requires_grad_(of_x), weight, offset if bias else None, a.requires_grad_(), b.requires_grad_())
    torch.autograd.gradcheck(lambda *parts: _LoraLinear.apply(*parts, 0.7, torch.float64), given)
    y = _LoraLinear.apply(*given, 0.7, torch.float64)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(y.sum(), [a], create_graph=True)


@pytest.mark.parametrize("shape", [(24,), (5, 24), (0, 3, 24), (2, 3, 4, 24)])
def test_any_shape_and_changes_in_place(shape: tuple[int, ...]) -> None:
    inputs = [torch.randn(shape, dtype=torch.float64).requires_grad_() for _ in range(2)]
    inputs[1].data = inputs[0].detach().clone()
    layers = pair()
    results = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
    assert type(results[1].grad_fn).__name__ == STEP
    for y in results:
        y.clamp_(min=-0.5)  # as models do that clip queries, keys and values
        y.square().sum().backward()
    torch.testing.assert_close(results[1], results[0], **FLOAT64)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, **FLOAT64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_under_autocast_it_is_nearer_to_the_exact_result_than_peft(dtype: torch.dtype) -> None:
    peft_s, fused = pair(dtype)
    exact = deepcopy(peft_s).double()
    x = torch.randn(8, 400, 24).to(dtype)
    errors: list[list[float]] = []
    wanted: list[Tensor] = []
    for layer, kind in ((exact, torch.float64), (peft_s, dtype), (fused, dtype)):
        own = x.to(kind, copy=True).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=layer is not exact):
            y = layer(own)
        y.backward(torch.ones_like(y) / 7)
        found = [y.detach(), own.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad]
        if layer is exact:
            wanted = found
            continue
        assert [value.dtype for value in found] == [torch.bfloat16, dtype, torch.float32, torch.float32]
        errors.append([float((one - other).norm() / other.norm()) for one, other in zip(found, wanted, strict=True)])
    assert type(y.grad_fn).__name__ == STEP
    assert all(0 < ours <= theirs < 0.01 for theirs, ours in zip(*errors, strict=True)), errors


def test_what_was_computed_without_autocast_has_the_same_gradients_under_it() -> None:
    _, fused = pair(torch.float32)
    grads = []
    for autocast in (False, True):
        y = fused(torch.ones(5, 24, requires_grad=True))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            grads.append(torch.autograd.grad(y.sum(), [fused.lora_A["default"].weight, fused.lora_B["default"].weight]))
    assert all(torch.equal(*both) for both in zip(*grads, strict=True))


@torch.autocast("cpu", torch.bfloat16)
def test_autocast_leaves_float64_alone() -> None:
    x = torch.randn(5, 24, dtype=torch.float64)
    wanted, found = (layer(x) for layer in pair())
    assert torch.equal(wanted, found)
    assert found.dtype == torch.float64


def _two_adapters(layer: Any) -> None:
    torch.manual_seed(2)
    layer.update_layer("more", 2, 4, config=LoraConfig(r=2, init_lora_weights=False))
    layer.lora_A.double(), layer.lora_B.double()
    layer.set_adapter(["default", "more"])


def _offloaded(layer: Any) -> None:
    layer.lora_B["default"].forward = lambda h: nn.functional.linear(h, layer.lora_B["default"].weight)


class _Other(nn.Linear):
    """As quantised and sharded layers are."""


class _Weight(Tensor):
    """As quantised and distributed ones are."""


def _other_weight(layer: Any) -> None:
    layer.base_layer.weight = nn.Parameter(layer.base_layer.weight.detach().as_subclass(_Weight), requires_grad=False)


CHANGES: dict[str, tuple[dict[str, Any], Callable[[Any], Any]]] = {
    "dropout": ({"lora_dropout": 0.5}, lambda layer: None),
    "dora": ({"use_dora": True}, lambda layer: None),
    "a bias of its own": ({"lora_bias": True}, lambda layer: None),
    "two adapters": ({}, _two_adapters),
    "none": ({}, lambda layer: layer.set_adapter([])),
    "switched off": ({}, lambda layer: layer.enable_adapters(False)),
    "merged": ({}, lambda layer: layer.merge()),
    "trained weight": ({}, lambda layer: layer.base_layer.weight.requires_grad_()),
    "trained bias": ({}, lambda layer: layer.base_layer.bias.requires_grad_()),
    "hook": ({}, lambda layer: layer.lora_A["default"].register_forward_hook(lambda _, given, out: out * 2)),
    "pre-hook": ({}, lambda layer: layer.base_layer.register_forward_pre_hook(lambda _, given: (given[0] * 2,))),
    "other forward": ({}, _offloaded),
    "other class": ({}, lambda layer: setattr(layer.base_layer, "__class__", _Other)),
    "other weight": ({}, _other_weight),
    "other types": ({}, lambda layer: (layer.lora_A.float(), layer.lora_B.float())),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_layer_that_is_not_plain_is_computed_by_peft(name: str) -> None:
    lora, change = CHANGES[name]
    results = []
    x = torch.randn(3, 24, dtype=torch.float64, requires_grad=True)
    for layer in pair(**lora):
        change(layer)
        torch.manual_seed(1)
        results.append(layer(x))
    assert type(results[1].grad_fn).__name__ != STEP
    assert torch.equal(*results)


def test_mixed_batches_compilers_and_tensors_without_memory() -> None:
    layer, fused = pair()
    x, mixed = torch.randn(3, 24, dtype=torch.float64), {"adapter_names": ["default", "__base__", "default"]}
    assert torch.equal(fused(x, **mixed), layer(x, **mixed))
    assert type(torch.compile(fused, backend="eager", fullgraph=True)(x).grad_fn).__name__ != STEP
    assert fused.to("meta")(x.to("meta")).shape == (3, 16)


def test_dropout_is_none_in_evaluation_and_comes_back() -> None:
    layer, fused = pair(lora_dropout=0.5)
    x = torch.randn(3, 24, dtype=torch.float64, requires_grad=True)
    assert type(fused.eval()(x).grad_fn).__name__ == STEP
    torch.testing.assert_close(fused(x), layer.eval()(x), **FLOAT64)
    fused.train()
    assert fused.lora_dropout["default"].training
    fused.lora_dropout["default"].eval()
    assert fused.train().lora_dropout["default"].training
    assert type(fused(x).grad_fn).__name__ != STEP


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_ddp_gets_the_gradients(one_process: None) -> None:
    model = adapted()
    wanted = loss_and_gradients(model)
    fuse_lora(model)
    found = loss_and_gradients(DistributedDataParallel(model))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name if name == "loss" else f"module.{name}"], value, **FLOAT64)


def test_a_run_trains_as_with_peft_s_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    runs = []
    for folder in ("ours", "theirs"):
        if folder == "theirs":
            monkeypatch.setattr("leanthink.rl.trainer.fuse_lora", lambda _model: 0)
        trainer, seen = make_trainer(tmp_path / folder, model=make_policy(), others={"peft_config": lora})
        trainer.train()
        assert any(type(part) is FusedLinear for part in trainer.model.modules()) == (folder == "ours")
        saved = PeftModel.from_pretrained(make_policy(), str(tmp_path / folder / "checkpoint-3"))
        runs.append((seen, dict(saved.named_parameters())))
    assert runs[0][0] == runs[1][0]
    for name, weight in runs[0][1].items():
        torch.testing.assert_close(weight, runs[1][1][name], rtol=1e-3, atol=1e-5)
