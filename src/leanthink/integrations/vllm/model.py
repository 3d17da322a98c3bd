"""The model classes: vLLM's own, whose forward shows the plugin its hidden states and runs a step in its sub-batches.

n tokens of a sub-batch   M hidden size   F = 2 M
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from copy import copy
from functools import cache
from typing import Any

from torch import Tensor
from vllm.forward_context import get_forward_context, override_forward_context

from leanthink.engine.hidden_states import joined
from leanthink.integrations.vllm.checkpoint import sampled
from leanthink.integrations.vllm.step import Step, SubBatch, settle
from leanthink.integrations.vllm.version import check_config
from leanthink.integrations.vllm.worker import ARCHITECTURES, worker_of
from leanthink.utils.errors import UnsupportedModel


def __getattr__(name: str) -> Any:
    """The wrapped class of an architecture, made when vLLM asks for it by name."""
    if name not in ARCHITECTURES:
        raise AttributeError(name)
    module = importlib.import_module(f"vllm.model_executor.models.{ARCHITECTURES[name]}")
    return bounded(getattr(module, name))


@cache
def bounded(stock: Any) -> Any:
    """A class that is `stock` in all but the methods of `Bounded`; the registry wants it under the same name."""
    return type(stock.__name__, (Bounded, stock), {})


_Stock: Any = object  # stands for the class of vLLM's that comes next in the order of `bounded`'s


class Bounded(_Stock):  # type: ignore[misc]
    """What stands before a model's own methods."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        check_config(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.leanthink = worker_of(vllm_config)
        self.middle: list[Tensor] = []  # what the middle layer made of the sub-batch under way, if anybody wants it
        self.catching = False
        layers = self.model.layers
        layers[len(layers) // 2].register_forward_hook(self._catch)

    def _catch(self, _module: Any, _inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        if self.catching:
            added_nM, before_nM = output
            self.middle.append(added_nM + before_nM)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """As of any model; what is sampled on the way tells which predictors fit it."""
        samples: dict[str, Tensor] = {}
        loaded: set[str] = super().load_weights(sampled(weights, samples))
        self.leanthink.make_policies(self, samples)
        return loaded

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Any = None,
    ) -> Any:
        """The final hidden states; where requests have budgets, sub-batch by sub-batch."""
        step, self.leanthink.step = self.leanthink.step, None
        if step is None:
            return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds)
        if inputs_embeds is not None or input_ids is None:
            raise UnsupportedModel("requests with a budget are fed as token ids, and this model takes embeddings")
        final_NM: Tensor | None = None
        for sub_batch in step.sub_batches:
            final_nM, states_nF = self._run(step, sub_batch, input_ids, positions)
            settle(step, sub_batch, states_nF)
            if sub_batch.tokens_n is None:
                return final_nM
            if final_NM is None:
                final_NM = final_nM.new_zeros(len(input_ids), final_nM.shape[-1])
            final_NM[sub_batch.tokens_n] = final_nM
        return final_NM

    def _run(self, step: Step, sub_batch: SubBatch, ids_N: Tensor, positions_N: Tensor) -> tuple[Tensor, Tensor | None]:
        """The sub-batch's final hidden states [n, M], and its states [n, F] if a policy scores tokens."""
        if sub_batch.tokens_n is not None:
            ids_N, positions_N = ids_N[sub_batch.tokens_n], positions_N[sub_batch.tokens_n]
        self.catching = step.scores_tokens
        try:
            with override_forward_context(_context(sub_batch)):
                final_nM = super().forward(ids_N, positions_N)
            states_nF = joined(final_nM, self.middle[0]) if self.catching else None
        finally:
            self.catching = False
            self.middle.clear()
        return final_nM, states_nF


def _context(sub_batch: SubBatch) -> Any:
    """What vLLM says of the forward under way, with this sub-batch's metadata and slots for every layer."""
    context = copy(get_forward_context())
    context.attn_metadata = dict.fromkeys(context.attn_metadata, sub_batch.metadata)
    context.slot_mapping = dict.fromkeys(context.slot_mapping, sub_batch.slots_n)
    return context
