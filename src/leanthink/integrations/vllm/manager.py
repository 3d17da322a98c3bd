"""The scheduler's side: a request with a budget is given no more blocks than the slots it can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self
from weakref import WeakKeyDictionary, WeakValueDictionary

from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.request import Request

from leanthink.data.think_tags import think_tags
from leanthink.integrations.vllm.lengths import LATE, NEVER, Lengths
from leanthink.integrations.vllm.settings import asked_of, settings_here
from leanthink.integrations.vllm.thought import Watch, tokenizer_of


@dataclass(frozen=True, kw_only=True)
class BoundedSpec(FullAttentionSpec):  # type: ignore[misc]  # vLLM is not there when types are checked
    """Full attention, under a type of its own: by that the scheduler finds `BoundedManager`.

    Attributes:
        tokenizer: by what name to load it, for whoever has to find `</think>`.
    """

    tokenizer: str = ""

    @classmethod
    def merge(cls, specs: list[Self]) -> Self:
        """One for all layers."""
        merged: Self = super().merge(specs)
        return replace(merged, tokenizer=specs[0].tokenizer)


class BoundedManager(FullAttentionManager):  # type: ignore[misc]  # as above
    """vLLM's manager, but for requests with a budget.

    Their lengths are physical, their generated blocks are never hashed and so never shared, and a preempted one looks
    up no prefix: among the blocks of others it could find its own generated tokens, with the keys of a full cache.
    """

    def __init__(self, kv_cache_spec: BoundedSpec, **given: Any) -> None:
        super().__init__(kv_cache_spec, **given)
        self.settings = settings_here()
        self._tokenizer = tokenizer_of(kv_cache_spec.tokenizer)
        self._tags = think_tags(self._tokenizer)
        self._late = 0  # tokens by which a worker notices late that a thought is over
        # Both forget a request when the scheduler does, also while it waits after a preemption.
        self._requests: WeakValueDictionary[str, Request] = WeakValueDictionary()
        self._known: WeakKeyDictionary[Request, tuple[Lengths, Watch] | None] = WeakKeyDictionary()
        self._most_tokens: int | None = None  # of a request, prompt included, where bounds are reserved
        self._reserved: WeakValueDictionary[str, Request] = WeakValueDictionary()  # those that have all they can hold

    def _has_all(self, request_id: str) -> bool:
        """Whether the request has, since it was admitted, all blocks that it can ever need."""
        return request_id in self._reserved and request_id in self.req_to_blocks

    def reserve(self, most_tokens: int) -> None:
        """From now on a request with a budget that is known gets all that it can ever hold at once: model runner V2."""
        self._most_tokens = most_tokens
        self._late = LATE if self._tags.only_in_text else 0

    def learn(self, request: Request) -> None:
        """A request that will ask for blocks."""
        self._lengths(request)

    def fed_together(self, request: Request, computed: int, tokens: int) -> int:
        """How many of a request's next tokens are fed before an eviction, or the end of the prompt, comes between."""
        if tokens == 1:
            return tokens
        lengths = self._lengths(request)
        if lengths is None:
            return tokens
        if computed < lengths.prompt:
            return min(tokens, lengths.prompt - computed)
        return lengths.pieces(computed, tokens)[0].tokens

    def get_num_blocks_to_allocate(
        self, request_id: str, num_tokens: int, new_computed_blocks: Sequence[KVCacheBlock], *rest: Any, **more: Any
    ) -> int:
        """As in vLLM, for the slots that these tokens need."""
        if self._has_all(request_id):
            return 0
        slots = self._slots(request_id, num_tokens)
        number: int = super().get_num_blocks_to_allocate(request_id, slots, new_computed_blocks, *rest, **more)
        return number

    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> list[KVCacheBlock]:
        """As in vLLM, for the slots that these tokens need."""
        if self._has_all(request_id):
            return []
        slots = self._slots(request_id, num_tokens)
        blocks: list[KVCacheBlock] = super().allocate_new_blocks(request_id, slots, num_tokens_main_model)
        if self._most_tokens is not None and request_id in self._requests:
            request = self._requests[request_id]
            if self._known[request] is not None:
                self._reserved[request_id] = request
        return blocks

    def cache_blocks(self, request: Request, num_tokens: int, *rest: Any, **more: Any) -> None:
        """As in vLLM, but of a request with a budget no more than its prompt; learns to know the request."""
        lengths = self._lengths(request)
        if lengths is not None:
            num_tokens = min(num_tokens, request.num_prompt_tokens)
            request.skip_reading_prefix_cache = True
            if lengths.answer_at != NEVER:  # a longer answer ends with finish reason "length"
                late = self._late if lengths.answer_at > lengths.prompt else 0
                most = lengths.answer_at - late - lengths.prompt + lengths.budget.max_answer_slots
                request.max_tokens = min(request.max_tokens, most)
            if self.num_cached_block.get(request.request_id, -1) >= lengths.prompt // self.block_size:
                return  # all of it is, and this is asked in every step
        super().cache_blocks(request, num_tokens, *rest, **more)

    def _slots(self, request_id: str, num_tokens: int) -> int:
        """Most slots held on the way to so many tokens. Of a request never seen before it is the prompt that is fed."""
        request = self._requests.get(request_id)
        lengths = None if request is None else self._lengths(request)
        if request is None or lengths is None:
            return num_tokens
        if self._most_tokens is None:
            return lengths.peak(num_tokens)
        budget, thinks = lengths.budget, lengths.answer_at > lengths.prompt
        most = budget.bound(lengths.prompt, request.max_tokens, thinks=thinks, answers=self._tags.closes)
        return min(max(most, lengths.peak(num_tokens)), self._most_tokens)

    def _lengths(self, request: Request) -> Lengths | None:
        """As far as is known now; None without a budget."""
        if request not in self._known:
            self._requests[request.request_id] = request
            self._known[request] = self._first_look(request)
        known = self._known[request]
        if known is None:
            return None
        lengths, watch = known
        return replace(lengths, answer_at=watch.answer_at(request.output_token_ids))

    def _first_look(self, request: Request) -> tuple[Lengths, Watch] | None:
        params = request.sampling_params
        asked = None if params is None else asked_of(params.extra_args, self.settings)
        if asked is None or request.prompt_token_ids is None:
            return None
        lengths = Lengths(prompt=request.num_prompt_tokens, budget=asked.budget)
        return lengths, Watch(request.prompt_token_ids, self._tokenizer, late=self._late)


def bounded_spec(spec: FullAttentionSpec, tokenizer: str) -> BoundedSpec:
    """The same spec under our own type."""
    return BoundedSpec(tokenizer=tokenizer, **{item.name: getattr(spec, item.name) for item in fields(spec)})
