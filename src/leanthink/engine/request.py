"""Turns the arguments of generate() into checked requests, each with the slots it can ever need.

A request is what one prompt asks for: token ids, policy, budget and sampling.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import nn

from leanthink.data.think_tags import ThinkTags, beginning
from leanthink.engine.cache_requirements import check_requirements
from leanthink.engine.sampling import Sampling
from leanthink.models.context import context_of
from leanthink.models.default_policy import WITHOUT_PREDICTOR, default_policy, how_to_fit, name_of
from leanthink.models.loading import kv_shape
from leanthink.models.prompt import PLAIN, ChatOptions, Prompt, encode_prompt
from leanthink.policies import POLICIES, ImportancePredictor, Policy, make_policy, parse_spec
from leanthink.policies.budget import Budget
from leanthink.policies.policy_spec import canonical
from leanthink.utils.errors import LeanThinkWarning, UsageError, unknown

Predictor = str | Path | nn.Module | None
T = TypeVar("T")
MAX_MADE = 64  # policies that a PolicyMaker keeps: names are few, predictors may be new each time


@dataclass(frozen=True, kw_only=True)
class Request:
    """One checked request; `bound` is the number of slots it can ever hold, which is what it reserves.

    `record` says that its evictions are to be told, and `must_open` that its text is a thought only if it begins with
    the opening tag. Only requests of one `cache_salt` share what their prompts begin with.
    """

    index: int
    prompt_ids: tuple[int, ...]
    policy: Policy
    budget: Budget | None
    sampling: Sampling
    starts_in_answer: bool
    max_new_tokens: int
    bound: int
    must_open: bool = False
    record: bool = False
    cache_salt: str | None = None

    def has_thought(self, text: str, tags: ThinkTags) -> bool:
        """Whether something in this generated text may be thought; else all of it is answer."""
        return tags.closes and (not self.must_open or tags.must_close(text))


def make_request(
    index: int,
    prompt_ids: Sequence[int],
    *,
    policy: Policy,
    budget: Budget | None,
    sampling: Sampling,
    context: int,
    starts_in_answer: bool = False,
    must_open: bool = False,
    closes: bool = True,
) -> Request:
    """Check one request against the model's context, in tokens, and bound its slots. Raises UsageError.

    `starts_in_answer`, `must_open` and `closes` (whether anything can end the thought) are those of
    `leanthink.data.think_tags.beginning`.
    """
    tokens = len(prompt_ids)
    if tokens == 0:
        raise UsageError(f"prompt {index} is empty: give at least one token")
    if tokens >= context:
        raise UsageError(f"prompt {index} has {tokens} tokens, and the model's context ends at {context}: shorten it")
    if policy.name == "full" and budget is not None:
        raise UsageError(
            "policy 'full' keeps everything and takes no budget: leave budget out, or choose a policy that evicts"
        )
    if policy.name != "full" and budget is None:
        raise UsageError(f"policy {policy.name!r} needs a budget: give budget=Budget(slots=...), or policy='full'")
    if not policy.pins_prompt and budget is not None and tokens > budget.max_thought_slots:
        raise UsageError(
            f"prompt {index} has {tokens} tokens, policy {policy.name!r} does not pin it, and the budget has room for "
            f"{budget.slots} + {budget.eviction_interval}: give slots={tokens - budget.eviction_interval} or more, or "
            "pins_prompt=True"
        )
    max_new_tokens = min(sampling.max_new_tokens, context - tokens)
    bound = tokens + max_new_tokens
    if budget is not None:
        bound = budget.bound(tokens, max_new_tokens, thinks=not starts_in_answer, answers=starts_in_answer or closes)
    return Request(
        index=index,
        prompt_ids=tuple(prompt_ids),
        policy=policy,
        budget=budget,
        sampling=sampling,
        starts_in_answer=starts_in_answer,
        max_new_tokens=max_new_tokens,
        bound=bound,
        must_open=must_open,
    )


def make_requests(
    model: Any,
    tokenizer: Any,
    tags: ThinkTags,
    prompts: Sequence[Prompt],
    *,
    policy: str | Policy | Sequence[str | Policy | None] | None,
    budget: Budget | Sequence[Budget | None] | None,
    predictor: Predictor,
    sampling: Sampling | Sequence[Sampling] | None,
    options: ChatOptions = PLAIN,
    ignore_predictor_mismatch: bool = False,
) -> list[Request]:
    """One request per prompt; policy, budget and sampling are one for all, or a list as long as the prompts."""
    policies = resolve_policies(
        model,
        tokenizer,
        _one_each("policy", policy, len(prompts)),
        predictor,
        ignore_predictor_mismatch=ignore_predictor_mismatch,
    )
    budgets = _one_each("budget", budget, len(prompts))
    sampling = Sampling.from_model(model) if sampling is None else sampling
    samplings = _one_each("sampling", sampling, len(prompts))
    requests = []
    for index, prompt in enumerate(prompts):
        ids = encode_prompt(tokenizer, index, prompt, options)
        check_ids(tokenizer, index, ids, len(model.get_input_embeddings().weight))
        request = make_request(
            index,
            ids,
            policy=policies[index],
            budget=_checked("budget", budgets[index], Budget, optional=True),
            sampling=_checked("sampling", samplings[index], Sampling),
            context=context_of(model.config),
            **beginning(tokenizer, ids, tags),
        )
        requests.append(request)
    return requests


def check_ids(tokenizer: Any, index: int, ids: Sequence[int], rows: int) -> None:
    """Raise UsageError for a token of prompt `index` that is none of the model's `rows` of embeddings."""
    if not ids or (set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) < rows):
        return
    for odd in (token for token in ids if type(token) is not int or not 0 <= token < rows):
        named = type(odd) is int and hasattr(tokenizer, "convert_ids_to_tokens") and 0 <= odd < len(tokenizer)
        known = tokenizer.convert_ids_to_tokens(odd) if named else None
        cure = (
            f"the tokenizer calls it {known!r}, so it is larger than the model's embedding: take the tokenizer that "
            "belongs to this model, or call model.resize_token_embeddings(len(tokenizer)) and train the new rows"
            if known
            else "give other ids"
        )
        raise UsageError(f"prompt {index} has token {odd}, and the model knows 0 to {rows - 1}; {cure}")


def _one_each(name: str, value: T | Sequence[T], count: int) -> list[T]:
    if not isinstance(value, list | tuple):
        return [cast(T, value)] * count
    if len(value) != count:
        raise UsageError(
            f"{name} is a list of {len(value)} for {count} prompts: give one for all, or one for each prompt"
        )
    return list(value)


def _checked(name: str, value: T, kind: type, *, optional: bool = False) -> T:
    if isinstance(value, kind) or (optional and value is None):
        return value
    raise UsageError(f"{name}={value!r}: must be a {kind.__name__}{' or None' if optional else ''}")


def resolve_policies(
    model: Any,
    tokenizer: Any,
    policies: Sequence[str | Policy | None],
    predictor: Predictor,
    *,
    ignore_predictor_mismatch: bool = False,
) -> list[Policy]:
    """Policy objects for specs, one object for equal ones, that of the default for None; a policy stands for itself.

    With `ignore_predictor_mismatch` the predictor's file may be one of a relative; a LeanThinkWarning then says so.
    """
    named: dict[str, Policy] = {}
    default = ""
    if None in policies:
        default = default_policy(model, predictor)
        if default == WITHOUT_PREDICTOR:
            warnings.warn(how_to_fit(name_of(model)), LeanThinkWarning, stacklevel=2)
    given = [default if policy is None else policy for policy in policies]
    chosen = [canonical(policy) if isinstance(policy, str) else policy for policy in given]
    for policy in chosen:
        if isinstance(policy, str) and policy not in named:
            named[policy] = _make_policy(model, tokenizer, policy, predictor, ignore_predictor_mismatch)
        elif not isinstance(policy, str):
            _check_is_policy(policy)
    learned = [policy for policy in named.values() if policy.target is not None]
    if predictor is not None and not learned:
        raise UsageError(
            "predictor is given, but no policy here ranks by one: leave it out, or choose dynts or horizon"
        )
    resolved = [named[policy] if isinstance(policy, str) else policy for policy in chosen]
    for policy in resolved:
        check_requirements(policy)
        check_sets(policy, model)
    return resolved


class PolicyMaker:
    """Resolves policies for many requests of one model: a name and a predictor are looked up once."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._made: dict[tuple[str | None, object, bool], Policy] = {}

    def make(
        self, policy: str | Policy | None, predictor: Predictor, *, ignore_predictor_mismatch: bool = False
    ) -> Policy:
        """As of `resolve_policies`, for one policy."""
        how = ignore_predictor_mismatch
        spec = canonical(policy) if isinstance(policy, str) else policy
        key = (spec, predictor, how) if spec is None or isinstance(spec, str) else None
        if key in self._made:
            return self._made[key]
        (made,) = resolve_policies(self._model, self._tokenizer, [policy], predictor, ignore_predictor_mismatch=how)
        if key is not None:
            self._made[key] = made
            if len(self._made) > MAX_MADE:
                del self._made[next(iter(self._made))]
        return made


def _check_is_policy(given: object) -> None:
    """Raise UsageError for an object that is no policy; of one that only looks like one, say how it becomes one."""
    if isinstance(given, Policy):
        return
    if isinstance(given, type) and issubclass(given, Policy):
        raise UsageError(f"policy {given.__name__} is a class: give an object of it, such as {given.__name__}()")
    if hasattr(given, "score"):
        kind = type(given).__name__
        raise UsageError(
            f"policy {kind!r} has a score but is not derived from leanthink.Policy, which says what a policy requires: "
            f"write class {kind}(leanthink.Policy)"
        )
    raise unknown("policy", given, POLICIES)


def check_sets(policy: Policy, model: Any) -> None:
    """Refuse a policy with index sets that this model does not have (UsageError)."""
    if policy.num_sets == 1:
        return
    shape = kv_shape(model.config)
    if policy.num_sets not in (shape.num_sets("layer"), shape.num_sets("head")):
        raise UsageError(
            f"policy {policy.name!r} ranks {policy.num_sets} index sets, and this model has {shape.layers} layers of "
            f"{shape.kv_heads} kv heads: it takes 1, {shape.num_sets('layer')} or {shape.num_sets('head')}; give a "
            "predictor or labels of this model"
        )


def _make_policy(
    model: Any, tokenizer: Any, spec: str, predictor: Predictor, ignore_predictor_mismatch: bool
) -> Policy:
    found = parse_spec(spec)
    if found.kind.target is None:
        return make_policy(spec, tokenizer=tokenizer)
    if isinstance(predictor, nn.Module):
        return make_policy(spec, cast(ImportancePredictor, predictor))
    from leanthink.models.predictor import load_predictor, load_shipped
    from leanthink.models.predictor_compatibility import borrowed_note

    if predictor is None:
        return make_policy(spec, load_shipped(found.name, model))  # which says what is missing where it is None
    loaded = load_predictor(predictor, model, ignore_predictor_mismatch=ignore_predictor_mismatch)
    made = make_policy(spec, loaded)
    if loaded.borrowed_from is not None:
        warnings.warn(borrowed_note(predictor, loaded.borrowed_from), LeanThinkWarning, stacklevel=3)
    return made
