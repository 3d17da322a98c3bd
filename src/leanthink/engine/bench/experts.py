"""Mixtures of experts: which weights a step of so many rows reads, expected and counted.

E experts of a layer   N rows   K experts that a row is routed to
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

PER_TOKEN = ("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts")  # what configs call K


def experts_of(model: Any) -> list[nn.Module]:
    """The modules that hold all experts of a layer, in parameters [E, ...]."""
    return [
        module
        for module in model.modules()
        if not isinstance(module, nn.Conv1d) and any(weight.dim() == 3 for weight in module.parameters(recurse=False))
    ]


def num_experts(model: Any) -> int:
    """E, of a mixture."""
    return max(experts_of(model)[0].parameters(recurse=False), key=Tensor.dim).shape[0]


def expected_experts(model: Any, rows: float) -> float:
    """How many experts of a layer some row uses where each of them takes K of E as if by chance."""
    per_token = next(getattr(model.config, name) for name in PER_TOKEN if hasattr(model.config, name))
    experts = num_experts(model)
    return float(experts * (1 - (1 - per_token / experts) ** rows))


class CountedExperts:
    """Counts while it is entered how many different experts each layer uses in each forward.

    Attributes:
        counts: one for each layer of each forward.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.counts = model, list[int]()

    def __enter__(self) -> CountedExperts:
        self._hooks = [
            experts.register_forward_pre_hook(self._count, with_kwargs=True) for experts in experts_of(self.model)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(self, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        (chosen_NK,) = (given for given in (*inputs, *named.values()) if given.dtype == torch.int64)
        self.counts.append(len(chosen_NK.unique()))
