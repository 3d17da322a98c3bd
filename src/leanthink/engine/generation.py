"""The one-call API: prompts in, completions out, every request on its own policy, budget and sampling."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch

from leanthink.data.think_tags import ThinkTags, think_tags
from leanthink.engine.cache_requirements import bytes_per_slot
from leanthink.engine.engine import Engine
from leanthink.engine.outputs import Completion, Step
from leanthink.engine.quantized_kv import kv_dtype
from leanthink.engine.request import Predictor, Request, make_requests
from leanthink.engine.sampling import Sampling
from leanthink.models.loading import check_model, kv_shape
from leanthink.models.prompt import ChatOptions, Prompt, as_prompts
from leanthink.policies import Policy
from leanthink.policies.budget import Budget
from leanthink.utils.errors import LeanThinkError, RequestFailed, UsageError

OnFinish = Callable[[int, Completion], None]
GPU_SHARE, CPU_SHARE = 0.8, 0.5  # of the memory, for keys and values


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Prompt | Sequence[Prompt],
    *,
    policy: str | Policy | Sequence[str | Policy | None] | None = None,
    budget: Budget | Sequence[Budget | None] | None = None,
    predictor: Predictor = None,
    sampling: Sampling | Sequence[Sampling] | None = None,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    split_special_tokens: bool = True,
    max_rows: int = 64,
    record: bool = False,
    on_finish: OnFinish | None = None,
    ignore_predictor_mismatch: bool = False,
    enable_prefix_caching: bool = True,
    kv_cache_dtype: str = "auto",
) -> list[Completion]:
    """Generate for each prompt, in its order; a request's tokens do not depend on what else is in the batch.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        tokenizer: its tokenizer.
        prompts: text, a list of chat messages or a list of token ids; or a list of those. Text goes through the chat
            template, as the user's message, where the tokenizer has one.
        policy: what ranks thought slots: a name out of POLICIES, with settings behind a colon where they are not the
            defaults (`snapkv:observation=16,pins_prompt=false`), or a policy object; one for all, or a list.
            None: horizon where a predictor is given or shipped with this model, else r-kv, which needs none.
        budget: how many thought slots each request may keep; None with policy "full" only; one for all, or a list.
        predictor: file or module for the policies dynts and horizon; None for the one shipped with this model.
        sampling: how tokens are picked; one for all, or a list. None: as the model's generation config says, see
            `Sampling.from_model`; `Sampling()` is greedy.
        system_prompt: put before every chat that has no system message of its own.
        chat_template_kwargs: switches of the model's chat template, such as {"enable_thinking": False}.
        split_special_tokens: whether control tokens in text and messages, such as <|im_end|>, stay text; False: they
            are control tokens. Token ids, and text without a chat template, mean what they say.
        max_rows: most requests on the cache at a time; the memory is that of so many of the largest bounds. Fewer where
            that is more than 80 % of a GPU's free memory, or half of this machine's.
        record: fill `evicted_at`, `token_chars` and `scores` of each Completion.
        on_finish: called with a prompt's index and its completion as soon as it has finished.
        ignore_predictor_mismatch: let the predictor's file be one of another model, of which this is a relative: the
            same in another precision, quantized, or lightly trained on. A LeanThinkWarning says that it is borrowed.
        enable_prefix_caching: whether what prompts begin with alike is fed once, as far as they run at a time.
        kv_cache_dtype: "auto": keys and values are held in the model's dtype; "fp8": in a byte each, see `Engine`.

    Raises:
        UsageError: an argument is out of range, or a prompt is empty or longer than the model's context.
        UnsupportedModel: the bounded cache cannot serve this model.
        PredictorMismatch: the predictor was fitted for another model, or does not fit what is said to be a relative.
        RequestFailed: a request brought NaN, or an error of the policy's; raised when all others have finished.
    """
    check_model(model)
    tags, asked = think_tags(tokenizer), as_prompts(prompts)
    choices: dict[str, Any] = {"policy": policy, "budget": budget, "predictor": predictor, "sampling": sampling}
    choices["ignore_predictor_mismatch"] = ignore_predictor_mismatch
    options = _options(system_prompt, chat_template_kwargs, split_special_tokens)
    requests = make_requests(model, tokenizer, tags, asked, options=options, **choices)
    how: dict[str, Any] = {"max_rows": max_rows, "record": record, "kv_cache_dtype": kv_cache_dtype}
    how["enable_prefix_caching"] = enable_prefix_caching
    finished = each_finished(model, tokenizer, requests, tags=tags, **how)
    return in_order(finished, on_finish)


def each_finished(
    model: Any,
    tokenizer: Any,
    requests: Sequence[Request],
    *,
    tags: ThinkTags,
    ends: Sequence[int] | None = None,
    max_rows: int = 64,
    record: bool = False,
    enable_prefix_caching: bool = True,
    kv_cache_dtype: str = "auto",
) -> Iterator[tuple[int, Completion]]:
    """Complete these requests; yields the index and the completion of each as it finishes.

    On a CPU those whose bounds differ by more than a factor of two run apart: there all allocations have one size.

    Raises:
        RequestFailed: some failed; raised for the first of them when all others have finished.
    """
    if isinstance(max_rows, bool) or not isinstance(max_rows, int) or max_rows < 1:
        raise UsageError(f"max_rows={max_rows!r}: must be 1 or more")
    failed: dict[int, RequestFailed] = {}
    on_cpu = model.device.type == "cpu"
    for group in split_by_bound(requests) if on_cpu else [list(requests)]:
        if not group:
            continue
        bounds = sorted((request.bound for request in group), reverse=True)[:max_rows]
        policies = {id(request.policy): request.policy for request in group}.values()
        bounds = bounds[: rows_that_fit(model, bounds, policies, kv_cache_dtype)]
        engine = Engine(
            model,
            tokenizer,
            slots=bounds[0] * len(bounds) if on_cpu else sum(bounds),
            row_slots=bounds[0] if on_cpu else None,
            rows=len(bounds),
            tags=tags,
            ends=ends,
            record=record,
            enable_prefix_caching=enable_prefix_caching,
            kv_cache_dtype=kv_cache_dtype,
        )
        for request in group:
            engine.add_request(request)
        while engine.unfinished:
            progress = engine.step()
            failed |= progress.failed
            yield from progress.finished.items()
    raise_first(failed, len(requests))


def raise_first(failed: Mapping[int, RequestFailed], count: int) -> None:
    """Raise for the first of what failed of `count` requests, if anything did: an error meant for users as it is."""
    if not failed:
        return
    first = failed[min(failed)]
    if isinstance(first.__cause__, LeanThinkError):
        raise first.__cause__
    if len(failed) > 1:
        more = f"{first.why} ({len(failed)} of {count} requests failed)"
        raise RequestFailed(first.request_id, more) from first.__cause__
    raise first


def rows_that_fit(model: Any, bounds: Sequence[int], policies: Iterable[Policy], kv_cache_dtype: str = "auto") -> int:
    """How many requests of these bounds, the largest first, the free memory holds under these policies; at least 1."""
    if model.device.type == "cuda":
        room = GPU_SHARE * torch.cuda.mem_get_info(model.device)[0]
    else:
        room = CPU_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        bounds = [bounds[0]] * len(bounds)  # as allocations of one size
    shape = kv_shape(model.config)
    slot = bytes_per_slot(shape, kv_dtype(kv_cache_dtype, model.dtype), policies)
    state = shape.bytes_per_state(model.dtype)
    needed = (held * slot + (rows + 1) * state for rows, held in enumerate(accumulate(bounds), 1))
    return max(1, sum(size <= room for size in needed))


def in_order(finished: Iterable[tuple[int, Completion]], on_finish: OnFinish | None = None) -> list[Completion]:
    """What `each_finished` yields, in the order of the requests' indices."""
    completions: dict[int, Completion] = {}
    for index, completion in finished:
        completions[index] = completion
        if on_finish is not None:
            on_finish(index, completion)
    return [completions[index] for index in sorted(completions)]


def split_by_bound(requests: Sequence[Request]) -> list[list[Request]]:
    """Groups whose bounds are within a factor of two, those with the smallest first."""
    groups: list[list[Request]] = []
    for request in sorted(requests, key=lambda request: request.bound):
        if groups and request.bound <= 2 * groups[-1][0].bound:
            groups[-1].append(request)
        else:
            groups.append([request])
    return groups


def stream(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    *,
    policy: str | Policy | None = None,
    budget: Budget | None = None,
    predictor: Predictor = None,
    sampling: Sampling | None = None,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    split_special_tokens: bool = True,
    record: bool = False,
    ignore_predictor_mismatch: bool = False,
    kv_cache_dtype: str = "auto",
) -> Iterator[Step]:
    """Generate for one prompt and yield each token as it comes; the last step carries the completion.

    Arguments and errors are those of `generate`; errors in the arguments are raised before the first step.
    """
    check_model(model)
    tags = think_tags(tokenizer)
    choices: dict[str, Any] = {"policy": policy, "budget": budget, "predictor": predictor, "sampling": sampling}
    choices["ignore_predictor_mismatch"] = ignore_predictor_mismatch
    options = _options(system_prompt, chat_template_kwargs, split_special_tokens)
    (request,) = make_requests(model, tokenizer, tags, [prompt], options=options, **choices)
    how: dict[str, Any] = {"record": record, "kv_cache_dtype": kv_cache_dtype}
    engine = Engine(model, tokenizer, slots=request.bound, rows=1, tags=tags, **how)
    return engine.stream_request(request)


def _options(system_prompt: str | None, kwargs: Mapping[str, Any] | None, split: bool) -> ChatOptions:
    given = {} if kwargs is None else kwargs
    return ChatOptions(system_prompt=system_prompt, chat_template_kwargs=given, split_special_tokens=split)
