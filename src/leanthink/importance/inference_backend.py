"""A model with its policies, as `eval`, `collect` and `label` use it: in this process, or on engines elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, cast

import leanthink
from leanthink.data.think_tags import think_tags
from leanthink.engine.generation import each_finished
from leanthink.engine.outputs import Completion
from leanthink.engine.request import PolicyMaker, Predictor, make_requests
from leanthink.engine.sampling import Sampling
from leanthink.importance.batches import batches_by_length, check_vocabulary
from leanthink.importance.labels import Labels, Thought, label_batch
from leanthink.models.fingerprint import fingerprint
from leanthink.models.loading import check_model
from leanthink.policies import Policy, spec_of
from leanthink.policies.budget import Budget
from leanthink.policies.policy import Granularity
from leanthink.policies.policy_spec import canonical
from leanthink.utils.provenance import hardware_of


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What decides the results of a model, besides what is asked of it: engines of one run agree in all of it.

    Attributes:
        leanthink: the version of this package.
        fingerprint: of the model.
        device: its kind, cpu or cuda.
        dtype: of the weights, such as float32.
        policies: names of those that it was made for, in that order, and of the default for None.
        predictors: SHA-256 over the weights of each policy's predictor, shipped or given, by the policy's name.
        borrowed: of each policy whose predictor was fitted to another model, that model's fingerprint, by its name.
        hardware: in words, for provenance records; it may differ.
    """

    leanthink: str
    fingerprint: str
    device: str
    dtype: str
    policies: tuple[str, ...]
    predictors: Mapping[str, str]
    borrowed: Mapping[str, str]
    hardware: str = field(compare=False)


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One request: token ids of the prompt, the policy with its settings, budget and sampling."""

    prompt_ids: tuple[int, ...]
    policy: str
    budget: Budget | None
    sampling: Sampling


class InferenceBackend(Protocol):
    """What completes and labels."""

    tokenizer: Any

    @property
    def model_info(self) -> ModelInfo:
        """What decides its results."""

    def complete(
        self,
        requests: Sequence[GenerationRequest],
        *,
        max_rows: int,
        record: bool = False,
        enable_prefix_caching: bool = True,
    ) -> Iterator[tuple[int, Completion]]:
        """Each request's index and completion, as it finishes; arguments and errors are those of `generate`."""

    def label(
        self, thoughts: Sequence[Thought], horizons: tuple[int, ...], granularity: Granularity
    ) -> Iterator[tuple[int, Labels]]:
        """Each thought's index and labels, on the CPU, as they are there."""


class LoadedModel:
    """A model in this process.

    Args:
        model, tokenizer: as for `leanthink.generate`; the tokenizer may be None where nothing is completed.
        predictors: for each policy that will be asked for, by name and settings, its predictor; None: the one shipped,
            if any. The name None is for the default policy of this model, which then is asked for by its own name.
        ignore_predictor_mismatch: as of `leanthink.generate`, for those of all policies.
        kv_cache_dtype: as of `leanthink.generate`.

    Raises:
        UsageError: a policy is unknown, lacks a predictor, or is given one and does not rank by it.
        PredictorMismatch: a predictor was fitted for another model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        predictors: Mapping[str | None, Predictor],
        *,
        ignore_predictor_mismatch: bool = False,
        kv_cache_dtype: str = "auto",
    ) -> None:
        self.model, self.tokenizer, self.kv_cache_dtype = model, tokenizer, kv_cache_dtype
        maker, how = PolicyMaker(model, tokenizer), {"ignore_predictor_mismatch": ignore_predictor_mismatch}
        made = [maker.make(name, predictor, **how) for name, predictor in predictors.items()]
        self._policies = {str(spec_of(policy)): policy for policy in made}

    @cached_property
    def model_info(self) -> ModelInfo:
        """What decides its results, as it is at the first look: it takes reading all weights."""
        return ModelInfo(
            leanthink=leanthink.__version__,
            fingerprint=fingerprint(self.model),
            device=self.model.device.type,
            dtype=str(self.model.dtype).removeprefix("torch."),
            policies=tuple(self._policies),
            predictors=_digests(self._policies),
            borrowed=_borrowed(self._policies),
            hardware=hardware_of(self.model.device),
        )

    def complete(
        self, requests: Sequence[GenerationRequest], *, max_rows: int, **how: Any
    ) -> Iterator[tuple[int, Completion]]:
        """As of `InferenceBackend`; `how` are its other arguments."""
        check_model(self.model)
        tags = think_tags(self.tokenizer)
        made = make_requests(
            self.model,
            self.tokenizer,
            tags,
            [request.prompt_ids for request in requests],
            policy=[self._policies[canonical(request.policy)] for request in requests],
            budget=[request.budget for request in requests],
            predictor=None,
            sampling=[request.sampling for request in requests],
        )
        how |= {"max_rows": max_rows, "kv_cache_dtype": self.kv_cache_dtype}
        return each_finished(self.model, self.tokenizer, made, tags=tags, **how)

    def label(
        self, thoughts: Sequence[Thought], horizons: tuple[int, ...], granularity: Granularity
    ) -> Iterator[tuple[int, Labels]]:
        """Each thought's index and labels; on a GPU thoughts of like length share a forward pass.

        Raises:
            UsageError: a token is not in the model's vocabulary.
        """
        lengths = [len(thought.token_ids) for thought in thoughts]
        check_vocabulary((thought.token_ids for thought in thoughts), self.model.config.vocab_size)
        for indices in batches_by_length(lengths, self.model.device):
            found = label_batch(self.model, [thoughts[index] for index in indices], horizons, granularity=granularity)
            yield from zip(indices, found, strict=True)


def _digests(policies: Mapping[str, Policy]) -> dict[str, str]:
    found = {}
    for name, policy in policies.items():
        if policy.target is not None:
            digest = hashlib.sha256()
            for key, weight in sorted(cast(Any, policy).predictor.state_dict().items()):
                digest.update(key.encode() + weight.detach().cpu().float().numpy().tobytes())
            found[name] = digest.hexdigest()
    return found


def _borrowed(policies: Mapping[str, Policy]) -> dict[str, str]:
    learned = {name: cast(Any, policy).predictor for name, policy in policies.items() if policy.target is not None}
    bases = {name: getattr(predictor, "borrowed_from", None) for name, predictor in learned.items()}
    return {name: base for name, base in bases.items() if base is not None}
