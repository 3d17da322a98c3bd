"""The model that generates rollouts: plain weights, adapters folded in, synchronised with the policy before each.

The trained model itself will not do: it is in training mode, recomputes activations, is wrapped for autocast and may
carry adapters, and on a GPU its weights are float32 where bfloat16 generates at twice the speed. What was built for the
copy, CUDA graphs too, stays valid, because its weights are only ever changed in place.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from leanthink.rl.adapters import check_foldable
from leanthink.utils.errors import UsageError


class RolloutModel:
    """A second model of the same shape on the same device, in evaluation mode, that follows the first.

    Costs its weights once more, and on `sync_weights` one pass over those that are trained.

    Args:
        model: the policy, whole on this device; with LoRA a PeftModel.
        dtype: of the copy.

    Raises:
        UsageError: the policy has adapters that are not plain LoRA.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        from transformers import AutoModelForCausalLM

        self._base = _base_of(model)
        config = deepcopy(self._base.config)
        device = next(self._base.parameters()).device
        attention = "sdpa" if self._base._supports_sdpa else "eager"
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), device:  # its random weights are overwritten at once
            # The engine brings its own attention: which one the policy is trained with is no matter here.
            self.model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        self.model.eval().requires_grad_(False)
        self._copy(only_trained=False)

    def sync_weights(self) -> None:
        """Take over what training has changed. Raises UsageError if that is no longer made of finite numbers."""
        self._copy(only_trained=True)
        if not torch.stack([weight.isfinite().all() for weight in self.model.parameters()]).all():
            raise UsageError(
                "the trained weights are no longer finite, as a gradient was not: go on from an earlier checkpoint "
                "with a lower learning_rate or max_grad_norm"
            )

    @torch.no_grad()
    def _copy(self, *, only_trained: bool) -> None:
        for name, weight in self.model.named_parameters():
            path, _, leaf = name.rpartition(".")
            module = self._base.get_submodule(path)
            if (
                not only_trained
                or any(part.requires_grad for part in module.parameters(recurse=False))
                or _adapted(module)
            ):
                weight.copy_(_folded(module, leaf))


def _base_of(model: Any) -> Any:
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return model
    for name, config in model.peft_config.items():
        check_foldable(f"adapter {name!r}:", config)
    return model.get_base_model()


def _adapted(module: nn.Module) -> bool:
    return hasattr(module, "base_layer")


def _folded(module: Any, leaf: str) -> Tensor:
    """A weight with the adapters' share in it, summed in float32."""
    if not _adapted(module):
        plain: Tensor = getattr(module, leaf)
        return plain
    weight: Tensor = getattr(module.base_layer, leaf)
    if leaf != "weight":
        return weight
    weight = weight.float()
    for adapter in module.active_adapters:
        weight = weight + module.get_delta_weight(adapter).float()
    return weight
