"""Continuous batching: requests are admitted by their bounds, fed in chunks, and decode together, one token a step.

prompt → prefill → [ forward one token → score tokens → sample → if due: score → select → compact ], for many rows at
once. `_advance` is one step, `decode_loop.py` what stands in brackets; prompts are fed by `scheduler.py`, evictions are
in `eviction.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from leanthink.data.think_tags import ThinkTags, think_tags
from leanthink.engine.cache import SlotCache
from leanthink.engine.cache_requirements import CacheRequirements
from leanthink.engine.decode_loop import DecodeLoop
from leanthink.engine.eviction import Evictor
from leanthink.engine.eviction_recorder import Recorder
from leanthink.engine.faults import Faults
from leanthink.engine.hidden_states import hidden_state_size
from leanthink.engine.known_policies import KnownPolicies
from leanthink.engine.kv_calibration import calibrated
from leanthink.engine.model_runner import ModelRunner
from leanthink.engine.outputs import Completion, Progress, Step
from leanthink.engine.request import PolicyMaker, Predictor, Request, check_ids, make_requests
from leanthink.engine.rows import Rows
from leanthink.engine.running_batch import GOING_ON, RunningBatch
from leanthink.engine.sampling import Sampler, Sampling
from leanthink.engine.scheduler import Scheduler
from leanthink.engine.stats import EngineStats
from leanthink.engine.streams import Mail, Streams
from leanthink.models.loading import check_model, end_ids, kv_shape
from leanthink.models.prompt import PLAIN, ChatOptions, Prompt
from leanthink.policies import Policy
from leanthink.policies.budget import Budget
from leanthink.utils.errors import RequestFailed, UsageError

PREFILL_TOKENS = {"cuda": 8192, "cpu": 2048}  # by device: a GPU is busy with so many, and a core with fewer


class Engine:
    """Serves many requests on one cache of slots.

    A request is admitted, first come first served, when a row is free and the cache has room for its bound: at most
    prompt + budget + interval + answer, or everything it may write for policy "full". Nothing is ever over-committed,
    so nothing is ever preempted. A step feeds up to `prefill_tokens` of prompts, and each decoding row its token.
    What prompts of one `cache_salt` begin with alike is fed once. Not safe for several threads at a time.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        tokenizer: its tokenizer.
        slots: of the cache; the keys and values of one, allocated here, take `bytes_per_slot` of `kv_shape`, windows
            and states `bytes_per_state` for each row and one more. What policies require beside them is allocated when
            their first request is added; `bytes_per_slot` of `leanthink.engine.cache_requirements` counts both.
        rows: most requests that decode at a time.
        row_slots: None: a request reserves its bound. A number: each reserves so many; one call serves all on a CPU.
        prefill_tokens: most prompt tokens that one step feeds; None: `PREFILL_TOKENS` of the device.
        tags: where thoughts begin and end; None: the tokenizer's.
        ends: token ids that end a request; None: the model's.
        record: fill `evicted_at`, `token_chars` and `scores` of every Completion, whether or not a request asks for it.
        graphs: whether steps are replayed as CUDA graphs; None: on a GPU.
        enable_prefix_caching: whether that is so (see `leanthink.engine.prefix_caching`).
        kv_cache_dtype: of keys and values: "auto", the model's, or "fp8" (see `leanthink.engine.quantized_kv`).
        async_scheduling: whether a step is launched before the tokens of the one before are read (see
            `leanthink.engine.decode_loop`); None: on a GPU.

    Raises:
        UsageError: an argument is out of range, or the device has no room for the slots.
        UnsupportedModel: the bounded cache cannot serve this model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        slots: int,
        rows: int = 64,
        row_slots: int | None = None,
        prefill_tokens: int | None = None,
        tags: ThinkTags | None = None,
        ends: Sequence[int] | None = None,
        record: bool = False,
        graphs: bool | None = None,
        enable_prefix_caching: bool = True,
        kv_cache_dtype: str = "auto",
        async_scheduling: bool | None = None,
    ) -> None:
        check_model(model)
        prefill_tokens = PREFILL_TOKENS[model.device.type] if prefill_tokens is None else prefill_tokens
        for name, given in (("slots", slots), ("rows", rows), ("prefill_tokens", prefill_tokens)):
            if isinstance(given, bool) or not isinstance(given, int) or given < 1:
                raise UsageError(f"Engine: {name}={given!r}: must be a whole number of at least 1")
        self.model, self.tokenizer, self.device = model, tokenizer, model.device
        self.tags = think_tags(tokenizer) if tags is None else tags
        shape = kv_shape(model.config)
        self.cache = SlotCache(
            shape, slots=slots, rows=rows, dtype=model.dtype, device=model.device, row_slots=row_slots,
            hidden_state_size=hidden_state_size(model),
            quantization=calibrated(model, tokenizer, shape, kv_cache_dtype),
        )  # fmt: skip
        self._known_policies = KnownPolicies()
        self.policies, self.columns = self._known_policies.policies, self._known_policies.columns
        found_ends = end_ids(model, tokenizer) if ends is None else ends
        self.running_batch = RunningBatch(
            rows, tokenizer, tags=self.tags, ends=found_ends, policies=self.policies, record=record
        )
        self.sampler = Sampler(rows, model.device)
        self.model_runner = ModelRunner(model, self.cache, self.sampler, graphs=graphs)
        self.rows = Rows(self.cache, self.running_batch, self.sampler, self.model_runner)
        self.faults = Faults(self.cache, self.running_batch, self.model_runner)
        self.scheduler = Scheduler(
            self.rows, self.faults, prefill_tokens=prefill_tokens, enable_prefix_caching=enable_prefix_caching
        )
        self.streams = Streams(tokenizer, self.tags, self.rows, self.faults)
        self.recorder = Recorder(self.cache, self.running_batch, self.sampler, self.columns, self.streams.texts)
        self.evictor = Evictor(self.rows, self._known_policies, self.recorder, self.faults)
        self.decode_loop = DecodeLoop(
            self.rows, self._known_policies, self.scheduler, self.evictor, self.faults,
            async_scheduling=self.device.type == "cuda" if async_scheduling is None else async_scheduling,
        )  # fmt: skip
        self.maker = PolicyMaker(model, tokenizer)
        self._next_id = 0
        self._known: set[int] = set()  # ids of what is unfinished
        self._vocabulary = len(model.get_input_embeddings().weight)

    # -- requests --------------------------------------------------------------------------------------------------

    def add(
        self,
        prompt: Prompt,
        *,
        policy: str | Policy | None = None,
        budget: Budget | None = None,
        predictor: Predictor = None,
        sampling: Sampling | None = None,
        options: ChatOptions = PLAIN,
        streamed: bool = False,
        record: bool = False,
        ignore_predictor_mismatch: bool = False,
        cache_salt: str | None = None,
    ) -> int:
        """Queue a request; returns its id. Arguments and errors as of `leanthink.generate`.

        `options` say how a chat becomes a prompt. As in vLLM, only requests of one `cache_salt` share what their
        prompts begin with: whoever does not know it cannot tell from the time what was asked.

        With `streamed`, `step` reports each of its tokens, with `record` too what each eviction took.

        Raises:
            UsageError: also if the request could never fit: its bound is larger than the cache.
        """
        policy = self.maker.make(policy, predictor, ignore_predictor_mismatch=ignore_predictor_mismatch)
        choices: dict[str, Any] = {"policy": policy, "budget": budget, "predictor": None, "sampling": sampling}
        (request,) = make_requests(self.model, self.tokenizer, self.tags, [prompt], options=options, **choices)
        request = replace(request, index=self._next_id, record=record, cache_salt=cache_salt)
        return self.add_request(request, streamed=streamed)

    def add_request(self, request: Request, *, streamed: bool = False) -> int:
        """Queue a request of `leanthink.engine.request.make_request` under its own index, which becomes its id.

        Raises:
            UsageError: it can never fit, a token is not of the vocabulary, or its id is that of an unfinished request.
        """
        check_ids(self.tokenizer, request.index, request.prompt_ids, self._vocabulary)
        if request.index in self._known:
            raise UsageError(f"request {request.index} is not finished: give another index, or `add` to choose one")
        if request.cache_salt is not None and not (isinstance(request.cache_salt, str) and request.cache_salt):
            raise UsageError(f"cache_salt={request.cache_salt!r}: must be a non-empty string, or None")
        largest = self.cache.allocator.max_allocation
        if request.bound > largest:
            raise UsageError(
                f"request {request.index} can hold {request.bound} slots, {len(request.prompt_ids)} of them prompt, "
                f"and the engine has {largest} for one: lower its budget or max_new_tokens, or give more slots"
            )
        self._next_id = max(self._next_id, request.index + 1)
        self._known.add(request.index)
        policy = self._register_policy(request.policy)
        if policy is not request.policy:
            request = replace(request, policy=policy)
        if streamed:
            self.streams.add(request)
        self.scheduler.waiting.append(request)
        return request.index

    def _register_policy(self, policy: Policy) -> Policy:
        """Give a policy its columns and whatever else it requires; returns it, or its equal that is known."""
        known = self._known_policies.find(policy)
        if known is not None:
            return known
        used = {id(request.policy) for request in self.scheduler.requests}
        column, required = self._known_policies.add(policy, used), CacheRequirements.of(policy)
        self.cache.require(replace(required, score_dims=column + required.score_dims if required.score_dims else 0))
        self.model_runner.forget()
        return policy

    @torch.inference_mode()
    def finish_early(self, request_id: int) -> Completion | None:
        """End a request now, free its slots and return what it has written, with finish reason "length".

        None if there is nothing: it has no token yet, has finished or never was. RequestFailed if that cannot be read.
        """
        row, done = self.rows.find(request_id), dict[int, Completion]()
        if row is not None and int(self.running_batch.generated[row]):
            self.faults.row_by_row(lambda rows: self._finish(rows, done), [row])
        self.cancel(request_id)
        if (failure := self.faults.failed.pop(request_id, None)) is not None:
            raise failure
        return done.get(request_id)

    @torch.inference_mode()
    def cancel(self, request_id: int) -> bool:
        """Drop a request and free its slots; False if it is not here, because it has finished or never was."""
        self._forget(request_id)
        if self.scheduler.drop(request_id):
            return True
        row = self.rows.find(request_id)
        if row is None:
            return False
        if not int(self.running_batch.generated[row]):  # nobody has looked at its numbers yet
            self.cache.scrub(self.cache.allocations[row], int(self.cache.host_lengths[row]) + self.cache.steps_ahead)
        self._free([row])
        return True

    def reset_prefix_cache(self) -> None:
        """Forget the prompts that lie in the cache, as the weights have changed; UsageError while requests run."""
        if self.unfinished:
            raise UsageError(f"{self.unfinished} requests are unfinished: change weights when all have ended")
        self.scheduler.prefix_cache.reset()

    @property
    def unfinished(self) -> int:
        """Requests that wait, are fed or decode."""
        return self.scheduler.unfinished

    def stats(self) -> EngineStats:
        """What the engine holds now; to be asked for between two steps. Costs no wait for the device."""
        cache, batch, n = self.cache, self.running_batch, self.cache.active
        generated = int(batch.generated[:n].sum())
        return EngineStats(
            waiting=len(self.scheduler.waiting),
            running=len(self.scheduler.prefilling) + n,
            max_rows=cache.max_rows,
            slots_total=cache.allocator.total,
            slots_reserved=cache.allocator.used,
            slots_held=int(cache.host_lengths[:n].sum()),
            slots_of_full=sum(len(request.prompt_ids) for request in batch.requests) + generated - n,
            state_bytes=(cache.max_rows + 1) * cache.shape.bytes_per_state(self.model.dtype),
            max_slots_per_request=cache.allocator.max_allocation,
            evictions=self.evictor.evictions,
            prefix_cache_queries=self.scheduler.prefix_cache.queries,
            prefix_cache_hits=self.scheduler.prefix_cache.hits,
        )

    # -- steps -----------------------------------------------------------------------------------------------------

    def step(self) -> Progress:
        """Admit what fits, feed a part of the prompts, and one token to every row that decodes.

        What ended while a `stream` was being read is reported here too.

        Raises:
            DeviceLost: the device answers no more. Any other error ends the request that caused it, see `Progress`; one
                for which nobody can be blamed ends all that are fed or decode.
        """
        return self.streams.with_unclaimed(self._advance())

    @torch.inference_mode()
    def _advance(self) -> Progress:
        """One step, whatever raises in it, and the end of the requests that it ends; tells the streams."""
        try:
            steps, done = self._whole_step()
        except Exception as error:
            self.faults.check_device(error)
            steps, done = {}, {}
            self.scheduler.fail_prefilling(error)
            for request in self.running_batch.requests:
                self.faults.note(request, error)
        rows = self.faults.rows()
        for row in rows:
            self.cache.scrub(self.cache.allocations[row])
        if done:
            rows += [row for row, request in enumerate(self.running_batch.requests) if request.index in done]
        self._free(sorted(set(rows)))
        failed = self.faults.take()
        for request_id in failed:
            self._forget(request_id)
        progress = Progress(
            steps={i: step for i, step in steps.items() if i not in failed},
            finished={i: completion for i, completion in done.items() if i not in failed},
            failed=failed,
        )
        self.streams.deliver(progress)
        return progress

    def _whole_step(self) -> tuple[dict[int, Step], dict[int, Completion]]:
        """The new token of each streamed request, and the completion of each that has finished."""
        if not self.decode_loop.step():
            return {}, {}
        done: dict[int, Completion] = {}
        ended = (self.running_batch.ended[: self.cache.active] != GOING_ON).nonzero()[:, 0].tolist()
        failed = self.faults.rows()
        self.faults.row_by_row(lambda rows: self._finish(rows, done), [row for row in ended if row not in failed])
        return self.streams.steps(done, self.recorder), done

    # -- ends ------------------------------------------------------------------------------------------------------

    def _finish(self, rows: list[int], done: dict[int, Completion]) -> None:
        """Put the completions of these rows among what is done."""
        self.recorder.note_held(rows)
        done |= {self.running_batch.requests[row].index: self._complete(row) for row in rows}

    def _complete(self, row: int) -> Completion:
        held, allocation = int(self.cache.host_lengths[row]), self.cache.allocations[row]
        return self.running_batch.complete(row, allocation, held=held, bytes_per_slot=self.cache.bytes_per_slot)

    def _free(self, rows: list[int]) -> None:
        """Free these rows and their slots, and forget their requests."""
        if rows:
            for row in rows:
                self._forget(self.running_batch.requests[row].index)
            self.cache.scrub_ahead(rows)
            self.scheduler.free(rows)

    def _forget(self, request_id: int) -> None:
        """What is kept of a request beside its row."""
        self._known.discard(request_id)
        self.streams.texts.pop(request_id, None)
        self.recorder.forget(request_id)

    # -- streams ---------------------------------------------------------------------------------------------------

    def stream(self, prompt: Prompt, **choices: Any) -> Iterator[Step]:
        """Add a request and yield its tokens as they come, while all others go on; arguments as of `add`.

        Several streams may be read in turns. One that is closed early cancels its request.
        """
        return self._stream_of(self.add(prompt, streamed=True, **choices))

    def stream_request(self, request: Request) -> Iterator[Step]:
        """`stream` for a checked request."""
        return self._stream_of(self.add_request(request, streamed=True))

    def _stream_of(self, request_id: int) -> Iterator[Step]:
        return self._steps_of(request_id, self.streams.open(request_id))

    def _steps_of(self, request_id: int, mail: Mail) -> Iterator[Step]:
        try:
            while mail or request_id in self.streams.texts:
                if mail:
                    news = mail.popleft()
                    if isinstance(news, RequestFailed):
                        raise news
                    yield news
                    continue
                self._advance()
        finally:
            self.streams.close(request_id)
            self.cancel(request_id)

    def check_integrity(self) -> None:
        """Raise AssertionError unless cache, rows and requests agree and no slot is held for nobody."""
        self.scheduler.check_integrity()
