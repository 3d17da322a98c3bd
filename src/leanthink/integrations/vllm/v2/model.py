"""The model classes: vLLM's own, which leave their states of a step where the model state finds them.

N tokens of a step   M hidden size   F = 2 M
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from leanthink.integrations.vllm.checkpoint import sampled
from leanthink.integrations.vllm.v2.platform import shared_only
from leanthink.integrations.vllm.v2.version import check_config
from leanthink.integrations.vllm.worker import ARCHITECTURES, worker_of
from leanthink.policies import POLICIES


def __getattr__(name: str) -> Any:
    """The wrapped class of an architecture, made when vLLM asks for it by name."""
    if name not in ARCHITECTURES:
        raise AttributeError(name)
    module = importlib.import_module(f"vllm.model_executor.models.{ARCHITECTURES[name]}")
    return bounded(getattr(module, name))


@cache
def bounded(stock: Any) -> Any:
    """A class that is `stock` in all but these methods; the registry wants it under the same name."""

    class Bounded(stock):  # type: ignore[misc]
        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            check_config(vllm_config)
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            self.leanthink, self.shared_only = worker_of(vllm_config), shared_only(vllm_config)
            self.states_NF: Tensor | None = None
            if not any(POLICIES[name].target for name in self.leanthink.settings.offered):
                return
            layers, hidden = len(self.model.layers), self.config.hidden_size
            self.model._set_aux_hidden_state_layers((layers // 2 + 1,))
            # Compiled code that gives one output more must not be taken for that of vLLM alone.
            vllm_config.additional_config = {**vllm_config.additional_config, "leanthink": "middle"}
            tokens = vllm_config.scheduler_config.max_num_batched_tokens
            weight = next(self.parameters())
            self.states_NF = torch.zeros(tokens, 2 * hidden, dtype=vllm_config.model_config.dtype, device=weight.device)

        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
            samples: dict[str, Tensor] = {}
            loaded: set[str] = super().load_weights(sampled(weights, samples))
            self.leanthink.make_policies(self, samples, shared=self.shared_only)
            return loaded

        def forward(self, *given: Any, **more: Any) -> Any:
            """As in vLLM; where it is captured, so is the copy of its states."""
            output = super().forward(*given, **more)
            if self.states_NF is None:
                return output
            final_NM, (middle_NM,) = output
            here_NF, hidden = self.states_NF[: len(final_NM)], final_NM.shape[-1]
            here_NF[:, :hidden] = final_NM
            here_NF[:, hidden:] = middle_NM
            return final_NM

        @staticmethod
        def get_model_state_cls() -> Any:
            from leanthink.integrations.vllm.v2.state import BoundedModelState

            return BoundedModelState

    Bounded.__name__ = Bounded.__qualname__ = stock.__name__
    return Bounded
