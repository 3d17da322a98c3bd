"""What the parts of the plugin share inside one worker process: the batch's rows, and the policies of the model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from leanthink.integrations.vllm.checkpoint import Identity, identity_of
from leanthink.integrations.vllm.row import Row
from leanthink.integrations.vllm.settings import VARIABLE, asked_of, settings_here
from leanthink.integrations.vllm.thought import Watch, tokenizer_of
from leanthink.models.predictor import Predictor, made_ready, predictor_of, shipped_predictor
from leanthink.models.predictor_compatibility import borrowed_note
from leanthink.models.tiny import predictors_path
from leanthink.policies import Policy, make_policy, parse_spec
from leanthink.utils.errors import LeanThinkWarning, PredictorMismatch, UnsupportedModel, UsageError

if TYPE_CHECKING:
    from leanthink.integrations.vllm.step import Step

# Models whose layers return what they add and what they add it to: by vLLM's name, the module that has it.
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
ROW = "leanthink.row"  # under this name a request's parameters carry its Row, which goes when they do


class Worker:
    """One worker process, or one engine where all runs in one process.

    Attributes:
        rows: those of the batch that have a budget, by their index in it.
        policies: by name; empty until the model is loaded.
        step: the one that is prepared and not yet run.
    """

    def __init__(self, vllm_config: Any) -> None:
        self.settings = settings_here()
        self.tokenizer_name: str = vllm_config.model_config.tokenizer
        self.rows: dict[int, Row] = {}
        self.policies: dict[str, Policy] = {}
        self.step: Step | None = None
        self._config = vllm_config  # as long as it lives, its id is nobody else's

    def make_policies(self, model: Any, samples: Mapping[str, Tensor], *, shared: bool = True) -> None:
        """Make every policy on offer.

        Args:
            model: with its config and weights.
            samples: of its checkpoint's weights; nobody looks at them where no policy has a predictor.
            shared: whether all layers and heads must keep the same tokens.

        Raises:
            UsageError: a predictor is missing, no predictor, or one with a set for each layer or head.
            PredictorMismatch: it was fitted for another model.
            DamagedFile: it cannot be read.
        """
        specs = [parse_spec(text) for text in self.settings.offered]
        self.policies |= {str(spec): make_policy(str(spec)) for spec in specs if spec.kind.target is None}
        fitted = [spec for spec in specs if spec.kind.target is not None]
        if not fitted:
            return
        about = self._config.model_config
        identity = identity_of(model.config, samples, about.quantization)
        for spec in fitted:
            predictor = self._predictor_of(spec.name, identity, model.config, shared=shared)
            self.policies[str(spec)] = make_policy(str(spec), made_ready(predictor, _Placed(model, about.dtype)))

    def _predictor_of(self, name: str, identity: Identity, config: Any, *, shared: bool) -> Predictor:
        """That of a policy, for this checkpoint; raises as `make_policies`."""
        given = self.settings.predictors.get(name)
        shipped = predictors_path() / f"{name}.safetensors"  # which may say that it is of another model
        path = given or shipped_predictor(name, identity.fingerprint) or shipped
        predictor = predictor_of(path, identity.fingerprint, config, ignore_predictor_mismatch=True)  # shapes must fit
        if predictor.borrowed_from is not None:
            if not (given and self.settings.ignore_predictor_mismatch):
                raise PredictorMismatch(
                    f"{path} was fitted for a model with fingerprint {predictor.borrowed_from[:12]}, and "
                    f"{identity.told}: load that model, or fit one for this with `leanthink fit`. If this is a "
                    f"relative of that model, such as its quantised copy or a light fine-tune, set "
                    f'"predictors": {json.dumps({name: str(path)})} and "ignore_predictor_mismatch": true in {VARIABLE}'
                )
            warnings.warn(borrowed_note(path, predictor.borrowed_from), LeanThinkWarning, stacklevel=2)
        if predictor.num_sets > 1 and shared:
            raise UsageError(
                f"{path} ranks a set for each {predictor.granularity}, and here all heads hold the same tokens: "
                "fit one with --granularity model"
            )
        return predictor

    def row_of(self, params: Any, prompt_ids: Sequence[int] | None, output_ids: Sequence[int]) -> Row | None:
        """The row of a request that enters the batch; a new one unless it was here before. None without a budget.

        A request leaves the batch when it ends, when it is preempted, and when a step has no room for it, and nobody
        says which. Its row therefore lives as long as its parameters do, in this process. Choices of one request may
        share these, and are told apart by the list of their tokens, which is each one's own for as long as it lives.
        """
        asked = asked_of(params.extra_args, self.settings)
        if asked is None:
            return None
        rows: list[Row] = (params.extra_args or {}).get(ROW, [])
        for row in rows:
            if row.output_ids is output_ids:
                return row
        if prompt_ids is None:
            raise UsageError("a prompt of embeddings has no tokens to look at: give it no budget")
        row = Row(
            prompt_tokens=len(prompt_ids),
            budget=asked.budget,
            policy=self.policies[asked.policy],
            seed=params.seed or 0,
            watch=Watch(prompt_ids, tokenizer_of(self.tokenizer_name)),
            output_ids=output_ids,
        )
        params.extra_args = {**(params.extra_args or {}), ROW: [*rows, row]}
        return row


class _Placed:
    """A model's device and the dtype of its states, by the names that transformers gives them."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self.device, self.dtype = next(model.parameters()).device, dtype  # of weights it may be another


_WORKERS: WeakValueDictionary[int, Worker] = WeakValueDictionary()  # by the id of vLLM's configuration


def worker_here() -> Worker:
    """The one that was opened last in this process and has its model, for hooks that are not told the configuration.

    Raises:
        UnsupportedModel: there is none, because the model is not among those that the plugin wraps.
    """
    loaded = [worker for worker in _WORKERS.values() if worker.policies]
    if not loaded:
        raise UnsupportedModel(f"the plugin wraps models of {', '.join(ARCHITECTURES)}, and this is another")
    return loaded[-1]


def worker_of(vllm_config: Any) -> Worker:
    """The one of this configuration, which is the same object in all parts of one worker process."""
    worker = _WORKERS.get(id(vllm_config))
    if worker is None:
        worker = _WORKERS[id(vllm_config)] = Worker(vllm_config)
    return worker
