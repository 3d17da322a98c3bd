"""Lets `model.generate(..., custom_generate=leanthink.custom_generate)` of transformers think in a bounded cache.

N rows of the given batch   S tokens of the padded prompts
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leanthink.data.think_tags import ThinkTags, beginning, think_tags
from leanthink.engine.generation import each_finished, in_order
from leanthink.engine.request import Predictor, make_request, resolve_policies
from leanthink.engine.sampling import Sampling
from leanthink.models.context import context_of
from leanthink.models.loading import as_ids, check_model
from leanthink.models.transformers_versions import CACHE_NAMES, filled_cache
from leanthink.policies import Policy
from leanthink.policies.budget import Budget
from leanthink.utils.errors import UsageError

PROCESSORS = {"TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper"}
CRITERIA = {"MaxLengthCriteria", "EosTokenCriteria"}
HARMLESS = {"use_cache", "logits_to_keep", "cache_position"}  # what generate() adds on its own account


class _NoText:
    """Stands in for the tokenizer, which generate() keeps to itself: the result is tokens, and nobody asks for text."""

    all_special_ids: tuple[int, ...] = ()

    def decode(self, _: Sequence[int], **__: Any) -> str:
        return ""


def custom_generate(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    *,
    policy: str | Policy | None = None,
    budget: Budget | None = None,
    predictor: Predictor = None,
    ignore_predictor_mismatch: bool = False,
    think_ids: ThinkTags | None = None,
    tokenizer: Any = None,
    **model_kwargs: Any,
) -> Tensor:
    """The decoding loop for `model.generate(input_ids, custom_generate=custom_generate, policy=..., budget=...)`.

    Sampling draws one seed per row from torch's generator, so `torch.manual_seed` decides; the tokens drawn are not
    those of transformers' own loop, greedy tokens are. A `streamer` cannot be served: generate() does not pass it on.

    Args:
        model: passed by generate().
        input_ids: passed by generate(), [N, S], padded on the left.
        logits_processor: passed by generate(); temperature, top_k, top_p and min_p are honoured, others refused.
        stopping_criteria: passed by generate(); length and end tokens are honoured, others refused.
        generation_config: passed by generate().
        policy: as in leanthink.generate.
        budget: as in leanthink.generate.
        predictor: as in leanthink.generate.
        ignore_predictor_mismatch: as in leanthink.generate.
        think_ids: `leanthink.think_tags(tokenizer)`; needed with a budget, as it says where the thought ends.
        tokenizer: where it reaches us, instead of `think_ids`; transformers 5.16 to 5.24 keep it.
        **model_kwargs: attention mask and positions, passed by generate().

    Returns:
        Prompts and generated tokens, [N, S + tokens], padded on the right.

    Raises:
        UsageError: an option that LeanThink cannot honour; the message names it.
    """
    check_model(model)
    _refuse_unsupported(logits_processor, stopping_criteria, generation_config, model_kwargs)
    if think_ids is None and tokenizer is not None:
        think_ids = think_tags(tokenizer)
    if think_ids is None and budget is not None:
        raise UsageError("where does the thought end? Give generate() think_ids=leanthink.think_tags(tokenizer)")
    tags = think_ids or ThinkTags(open_id=None, close_id=None)
    reader = tokenizer or tags.tokenizer
    (resolved,) = resolve_policies(
        model, tokenizer, [policy], predictor, ignore_predictor_mismatch=ignore_predictor_mismatch
    )
    prompts = strip_padding(input_ids, model_kwargs.get("attention_mask"))
    positions = model_kwargs.get("position_ids")
    if positions is not None and positions[:, -1].tolist() != [len(prompt_ids) - 1 for prompt_ids in prompts]:
        raise UsageError("leanthink.custom_generate does not support position_ids of your own: leave them out")
    requests = [
        make_request(
            index,
            prompt_ids,
            policy=resolved,
            budget=budget,
            sampling=sampling,
            context=context_of(model.config),
            **beginning(reader or _NoText(), prompt_ids if reader else prompt_ids[-1:], tags),
        )
        for index, (prompt_ids, sampling) in enumerate(
            zip(prompts, _samplings(input_ids, generation_config), strict=True)
        )
    ]
    ends = as_ids(generation_config.eos_token_id)
    finished = each_finished(model, reader or _NoText(), requests, tags=tags, ends=ends, max_rows=len(requests))
    padding = [*as_ids(generation_config.pad_token_id), *ends, 0][0]
    return _joined(input_ids, [completion.token_ids for completion in in_order(finished)], padding)


def _refuse_unsupported(processors: Any, criteria: Any, config: Any, model_kwargs: dict[str, Any]) -> None:
    given = [type(entry).__name__ for entry in processors if type(entry).__name__ not in PROCESSORS]
    given += [type(entry).__name__ for entry in criteria if type(entry).__name__ not in CRITERIA]
    if (config.num_beams or 1) > 1:
        given.append(f"num_beams={config.num_beams}")
    if config.return_dict_in_generate:
        given.append("return_dict_in_generate=True")
    known = HARMLESS | {"attention_mask", "position_ids", *CACHE_NAMES}
    given += [name for name, value in model_kwargs.items() if value is not None and name not in known]
    filled = filled_cache(model_kwargs)
    if filled is not None:
        given.append(f"{filled} with tokens in it")
    if given:
        raise UsageError(
            f"leanthink.custom_generate does not support {', '.join(given)}: leave it out. It honours max_new_tokens, "
            "max_length, do_sample, temperature, top_k, top_p, min_p, num_return_sequences, eos_token_id, pad_token_id"
        )


def strip_padding(input_ids_NS: Tensor, mask_NS: Tensor | None) -> list[list[int]]:
    """The prompts without their padding on the left. Raises UsageError where a mask has other gaps."""
    rows: list[list[int]] = input_ids_NS.tolist()
    if mask_NS is None:
        return rows
    prompts = []
    for index, (row, mask) in enumerate(zip(rows, mask_NS.tolist(), strict=True)):
        tokens = sum(map(bool, mask))
        if not all(mask[len(mask) - tokens :]):
            raise UsageError(f"row {index} of attention_mask has gaps or padding on the right: pad on the left")
        prompts.append(row[len(row) - tokens :])
    return prompts


def _samplings(input_ids_NS: Tensor, config: Any) -> list[Sampling]:
    rows, tokens = input_ids_NS.shape
    facts: dict[str, Any] = {"max_new_tokens": config.max_length - tokens}
    if not config.do_sample:
        return [Sampling(**facts)] * rows
    facts["temperature"] = 1.0 if config.temperature is None else config.temperature
    facts["top_k"] = config.top_k or 0
    facts["top_p"] = 1.0 if config.top_p is None else config.top_p
    facts["min_p"] = config.min_p or 0.0
    return [Sampling(seed=seed, **facts) for seed in torch.randint(2**63 - 1, (rows,)).tolist()]


def _joined(input_ids_NS: Tensor, generated: Sequence[Sequence[int]], padding: int) -> Tensor:
    rows = [torch.tensor(ids, dtype=torch.int64) for ids in generated]
    new = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
    return torch.cat([input_ids_NS, new.to(input_ids_NS)], dim=1)
