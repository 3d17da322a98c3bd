"""From a checked body to the requests of the engine, bounded by what this server allows."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

from leanthink.data.think_tags import beginning, think_tags
from leanthink.engine.request import PolicyMaker, Request, check_ids, make_request
from leanthink.engine.sampling import Sampling
from leanthink.entrypoints.openai.error_responses import APIError, bad_request
from leanthink.entrypoints.openai.protocol import Asked, ChatBody, Message, TextBody
from leanthink.entrypoints.openai.settings import Settings
from leanthink.models.context import context_of
from leanthink.models.model_sampling import KNOBS, model_sampling
from leanthink.models.prompt import ChatOptions, Prompt, encode_prompt, known_template_kwargs
from leanthink.policies import POLICIES, Policy, PolicySpec, parse_spec, spec_of
from leanthink.policies.budget import REQUEST_KEYS, Budget
from leanthink.utils.errors import PredictorMismatch, UsageError, unknown


class RequestParser:
    """Turns bodies into requests; safe beside a running engine, as it works on a tokenizer of its own.

    Args:
        model, tokenizer: those of the engine.
        settings: the defaults and limits.
        largest: most slots that one request can reserve.

    Raises:
        LeanThinkError: the default policy cannot be had for this model.
        UsageError: `max_model_len` is above its context, or its generation config samples out of range.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: Settings, *, largest: int) -> None:
        self.settings, self.largest = settings, largest
        self.tokenizer = deepcopy(tokenizer)
        self.tags = think_tags(self.tokenizer)
        self.context = context_of(model.config)
        most = settings.max_model_len
        if most is not None and most > self.context:
            raise UsageError(f"max_model_len={most} is above this model's context of {self.context} tokens: lower it")
        self.context = most or self.context
        self.max_prompt_tokens = min(settings.max_prompt_tokens or self.context, self.context - 1)
        self._embeddings = len(model.get_input_embeddings().weight)
        # Of requests that name none: as OpenAI does, but for what the model says.
        stated: dict[str, Any] = model_sampling(model) if settings.generation_config == "auto" else {}
        self.knobs: dict[str, Any] = {"temperature": 1.0, **stated}
        Sampling(**self.knobs)  # refuses now what would refuse every request
        self.policies: dict[str, Policy] = {}
        self._missing: dict[str, str] = {}  # policies that this model cannot have, and why
        if settings.chat.given:
            encode_prompt(self.tokenizer, 0, "Hello", settings.chat)  # refuses now what would refuse every request
        maker = PolicyMaker(model, self.tokenizer)
        how = {"ignore_predictor_mismatch": settings.ignore_predictor_mismatch}
        # Of requests that name none.
        named = settings.policy
        spec = spec_of(maker.make(None, settings.predictor, **how)) if named is None else parse_spec(named)
        self.policy = str(spec)
        for name, kind in POLICIES.items():
            try:
                self.policies[name] = maker.make(name, settings.predictor if kind.target is not None else None, **how)
            except (UsageError, PredictorMismatch) as error:
                if name == spec.name:
                    raise
                self._missing[name] = str(error)
        self.policies[self.policy] = replace(cast(Any, self.policies[spec.name]), **spec.settings)
        self.most_queries = max(policy.num_queries for policy in self.policies.values())

    def parse(self, body: ChatBody | TextBody, cache_salt: str | None = None) -> list[Request]:
        """One request for each choice, in their order, all with index 0 and this salt.

        Raises:
            APIError: what is asked for is not served, above a limit, or contradicts itself.
        """
        if body.model != self.settings.name:
            raise APIError(404, f"the model {body.model[:100]!r} is not served here, {self.settings.name!r} is",
                          param="model", code="model_not_found")  # fmt: skip
        policy, budget = self._policy(body), self._budget(body)
        if body.kv_events and not body.stream:
            raise bad_request("kv_events are told in a stream: add stream=true or leave them out", "kv_events")
        if body.kv_events and not policy.is_shared:
            raise bad_request(
                f"kv_events: policy {policy.name!r} keeps other tokens in every head, which no event can tell: "
                "leave them out, or choose a policy with one set for all heads", "policy")  # fmt: skip
        sampling = self._sampling(body)
        given, choices = _prompts(body), body.n or 1
        if choices * len(given) > self.settings.max_choices:
            raise bad_request(
                f"{len(given)} prompts with n={choices}: at most {self.settings.max_choices} choices are allowed", "n"
            )
        prompts = [self._ids(prompt, self._chat_options(body)) for prompt in given]
        requests = [
            self._request(ids, policy, budget, replace(sampling, seed=(sampling.seed + i) % 2**63))
            for ids in prompts
            for i in range(choices)
        ]
        return [replace(request, record=bool(body.kv_events), cache_salt=cache_salt) for request in requests]

    def _policy(self, body: Asked) -> Policy:
        asked = body.policy or self.policy
        if asked in self.policies:
            return self.policies[asked]
        name = asked.partition(":")[0].strip()
        if name in self._missing:
            raise bad_request(self._missing[name], "policy")
        if name not in self.policies:
            raise bad_request(str(unknown("policy", name[:100], self.policies)), "policy")
        try:
            spec = parse_spec(asked)
            return self.policies.get(str(spec)) or self._with_settings(spec)
        except UsageError as error:
            raise bad_request(str(error), "policy") from None

    def _with_settings(self, spec: PolicySpec) -> Policy:
        """A policy of this server with settings of the request's own, which may not take any memory or time they like.

        Raises:
            UsageError: a setting is above what is allowed, or the policy refuses it.
        """
        most = self.settings.max_budget
        for name, value in spec.settings.items():
            if type(value) is int and value > most:
                raise UsageError(f"policy {spec.name!r}: {name}={value} is above {most}, the most that is allowed here")
        found: Policy = replace(cast(Any, self.policies[spec.name]), **spec.settings)
        if found.num_queries > self.most_queries:
            raise UsageError(
                f"policy {str(spec)!r} looks at {found.num_queries} queries, and at most {self.most_queries} are "
                "remembered here: give less"
            )
        return found

    def _budget(self, body: Asked) -> Budget | None:
        """The server's budget with what the body gives in its place."""
        given = {key: value for key in REQUEST_KEYS if (value := getattr(body, key)) is not None}
        if (body.policy or self.policy).partition(":")[0] == "full":
            if given:
                raise bad_request(f"policy 'full' keeps everything: leave out {', '.join(given)}", next(iter(given)))
            return None
        usual = self.settings.budget
        if usual is None and "budget" not in given:
            raise bad_request("this server has no budget of its own: give budget, in slots", "budget")
        asked = given.get("budget", 0)
        if asked > self.settings.max_budget:
            raise bad_request(f"budget={asked}: at most {self.settings.max_budget} slots are allowed", "budget")
        parts = {REQUEST_KEYS[key]: value for key, value in given.items()}
        try:
            return Budget(**parts) if usual is None else replace(usual, **parts)
        except UsageError as error:
            raise bad_request(str(error), next(iter(given))) from None

    def _sampling(self, body: ChatBody | TextBody) -> Sampling:
        """The body's knobs; those left out are `knobs`, and the seed is drawn."""
        given = {knob: value for knob in KNOBS if (value := getattr(body, knob)) is not None}
        if "top_k" in given:
            given["top_k"] = max(0, given["top_k"])  # -1 is off, too
        stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
        return Sampling(
            **{**self.knobs, **given},
            max_new_tokens=self._max_new_tokens(body),
            seed=secrets.randbits(62) if body.seed in (None, -1) else body.seed,
            stop=tuple(text for text in stop if text),
            stop_in_thought=isinstance(body, TextBody) or bool(body.stop_in_thought),
            logprobs=_logprobs(body),
        )

    def _max_new_tokens(self, body: Asked) -> int:
        """The least of what is asked for and of what this server allows; the context is left to `_request`."""
        asked = [tokens for tokens in (body.max_tokens, body.max_completion_tokens) if tokens is not None]
        if len(set(asked)) > 1:
            raise bad_request("max_tokens and max_completion_tokens are one thing: give one of them", "max_tokens")
        return min([*asked, self.settings.max_new_tokens])

    def _chat_options(self, body: ChatBody | TextBody) -> ChatOptions:
        """The server's, with what the body gives in their place."""
        options = self.settings.chat
        if isinstance(body, TextBody):
            if body.reasoning_effort == "none":
                raise _no_effort("a completion's prompt is taken as it is")
            return options
        kwargs, split = {**options.chat_template_kwargs, **self._switches(body)}, body.split_special_tokens
        return replace(
            options,
            chat_template_kwargs=kwargs,
            split_special_tokens=options.split_special_tokens if split is None else split,
        )

    def _switches(self, body: ChatBody) -> dict[str, Any]:
        """Of the chat template, as the body gives them: those that it reads, and what a `reasoning_effort` means."""
        try:
            given = known_template_kwargs(self.tokenizer, body.chat_template_kwargs or {})
        except UsageError as error:
            raise bad_request(str(error), "chat_template_kwargs") from None
        if body.reasoning_effort != "none":
            return given
        off = known_template_kwargs(self.tokenizer, {"enable_thinking": False})
        if not off:
            raise _no_effort("the model's chat template has no switch enable_thinking")
        if given.get("enable_thinking"):
            raise _no_effort("chat_template_kwargs ask for enable_thinking")
        return given | off

    def _ids(self, prompt: Prompt, options: ChatOptions) -> list[int]:
        is_text = isinstance(prompt, str)
        try:
            ids = self.tokenizer(prompt).input_ids if is_text else encode_prompt(self.tokenizer, 0, prompt, options)
            check_ids(self.tokenizer, 0, ids, self._embeddings)
        except UsageError as error:
            is_chat = not is_text and isinstance(prompt[0], Mapping)
            raise bad_request(str(error), "messages" if is_chat else "prompt") from None
        if len(ids) > self.max_prompt_tokens:
            raise APIError(400, f"the prompt has {len(ids)} tokens, and at most {self.max_prompt_tokens} are allowed: "
                          "shorten it", code="context_length_exceeded")  # fmt: skip
        return ids

    def _request(self, ids: list[int], policy: Policy, budget: Budget | None, sampling: Sampling) -> Request:
        tokens = sampling.max_new_tokens
        if budget is None:  # a full cache grows with every token: what is asked for is a maximum here too
            tokens = max(1, min(tokens, self.largest - len(ids)))
        try:
            request = make_request(
                0,
                ids,
                policy=policy,
                budget=budget,
                sampling=replace(sampling, max_new_tokens=tokens),
                context=self.context,
                **beginning(self.tokenizer, ids, self.tags),
            )
        except UsageError as error:
            raise bad_request(str(error)) from None
        if request.bound > self.largest:
            raise bad_request(
                f"the request can hold {request.bound} slots, {len(ids)} of them prompt, and at most {self.largest} "
                "are allowed: lower max_tokens, budget, eviction_interval or max_answer_slots"
            )
        return request


def _no_effort(why: str) -> APIError:
    return bad_request(
        f"reasoning_effort 'none': {why}, so the thought would come all the same: leave it out", "reasoning_effort"
    )


def _logprobs(body: ChatBody | TextBody) -> int | None:
    """Of how many alternatives; None for no log-probabilities at all."""
    if isinstance(body, TextBody):
        return body.logprobs
    if body.top_logprobs and not body.logprobs:
        raise bad_request("top_logprobs need logprobs=true", "top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _prompts(body: ChatBody | TextBody) -> Sequence[Prompt]:
    if isinstance(body, ChatBody):
        return [[_plain(message) for message in body.messages]]
    prompt: Any = body.prompt
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        prompt = [prompt]
    return list(prompt)


def _plain(message: Message) -> dict[str, str]:
    """A message as chat templates know it."""
    plain = {"role": "system" if message.role == "developer" else message.role, "content": _text(message)}
    extras = {"name": message.name, "reasoning_content": message.reasoning_content or message.reasoning}
    return plain | {name: text for name, text in extras.items() if text}


def _text(message: Message) -> str:
    if isinstance(message.content, list):
        return "".join(part.text for part in message.content)
    return message.content or message.refusal or ""
