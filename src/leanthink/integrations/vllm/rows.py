"""vLLM's logits processor that changes no logit: the public way by which a worker learns who sits in which row."""

from __future__ import annotations

from typing import Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from leanthink.integrations.vllm.settings import asked_of, settings_here
from leanthink.integrations.vllm.worker import worker_of


class Rows(LogitsProcessor):  # type: ignore[misc]  # vLLM is not there when types are checked
    """Keeps `Worker.rows` in step with vLLM's batch."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a request (UsageError, which is a ValueError and so a 400) before it reaches the engine."""
        asked_of(sampling_params.extra_args, settings_here())

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.worker = worker_of(vllm_config)

    def is_argmax_invariant(self) -> bool:
        """True: `apply` is not even called for greedy requests."""
        return True

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The same logits."""
        return logits

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow removals, additions and moves, in that order, as vLLM's interface prescribes."""
        if batch_update is None:
            return
        rows = self.worker.rows
        for index in batch_update.removed:
            rows.pop(index, None)
        for index, params, prompt_ids, output_ids in batch_update.added:
            rows.pop(index, None)
            row = self.worker.row_of(params, prompt_ids, output_ids)
            if row is not None:
                rows[index] = row
        for source, target, direction in batch_update.moved:
            moved, replaced = rows.pop(source, None), rows.pop(target, None)
            if moved is not None:
                rows[target] = moved
            if direction is MoveDirectionality.SWAP and replaced is not None:
                rows[source] = replaced
