"""Continuous batching: requests are admitted by their bounds, fed in pieces, and decode together, one token a step.

prompt → prefill → [ forward one token → stamp → sample → if due: score → select → compact ], for many rows at once.

N active rows   R rows of one eviction   S thought slots   K kept slots   L layers   H kv heads   X index sets
V vocabulary
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from leanthink.data.think_tags import ThinkTags, think_tags
from leanthink.engine import attention, attention_sums
from leanthink.engine.cache import SlotCache
from leanthink.engine.cache_requirements import Wishes
from leanthink.engine.eviction_recorder import Recorder
from leanthink.engine.faults import Faults
from leanthink.engine.forward_batch import Segment
from leanthink.engine.hidden_states import state_size
from leanthink.engine.known_policies import KnownPolicies
from leanthink.engine.model_runner import DeviceStep, Stamping
from leanthink.engine.outputs import Completion, Step, TextStream
from leanthink.engine.request import PolicyMaker, Predictor, Request, check_ids, make_requests
from leanthink.engine.running_batch import GOING_ON, NEVER, Seats
from leanthink.engine.sampling import Sampler, Sampling
from leanthink.engine.slot_allocator import Region
from leanthink.models.loading import check_model, end_ids, kv_shape
from leanthink.models.prompt import PLAIN, ChatOptions, Prompt
from leanthink.policies import Policy
from leanthink.policies.budget import Budget, keep_in_order
from leanthink.utils.errors import RequestFailed, UsageError

PREFILL_TOKENS = 2048
Prefix = tuple[str | None, tuple[int, ...]]  # salt and prompt, as of `Request.prefix`


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What one step brought, by the ids of requests.

    Attributes:
        steps: the new token of each that is streamed.
        finished: the completion of each that finished.
        failed: the error of each that ended without one, such as NaN among its logits; the others go on as if it had
            not been there.
    """

    steps: dict[int, Step] = field(default_factory=dict)
    finished: dict[int, Completion] = field(default_factory=dict)
    failed: dict[int, RequestFailed] = field(default_factory=dict)


@dataclass(eq=False)
class _Feeding:
    """A request that holds its region, and whose prompt is fed so far."""

    request: Request
    region: Region
    done: int = 0


class Engine:
    """Serves many requests on one arena of slots.

    A request is admitted, first come first served, when a row is free and the arena has room for its bound: at most
    prompt + budget + interval + answer, or everything it may write for policy "full". Nothing is ever over-committed,
    so nothing is ever preempted. A step feeds at most `prefill_tokens` of prompts, then one token to each row that
    decodes. Requests with equal prompts, and an equal `cache_salt`, share one prefill. Not safe for use from several
    threads at a time.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        tokenizer: its tokenizer.
        slots: of the arena; the keys and values of one, allocated here, take
            `kv_shape(model.config).bytes_per_slot(model.dtype)`. What policies want remembered beside them is
            allocated when their first request is added; `bytes_per_slot` of
            `leanthink.engine.cache_requirements` counts both.
        rows: most requests that decode at a time.
        row_slots: None: a request reserves its bound. A number: every request reserves so many slots, which on a CPU
            lets one attention call serve all rows.
        prefill_tokens: most prompt tokens that one step feeds.
        tags: where thoughts begin and end; None: the tokenizer's.
        ends: token ids that end a request; None: the model's.
        record: fill `evicted_at`, `token_chars` and `scores` of every Completion, whether or not a request asks for it.
        graphs: whether steps are replayed as CUDA graphs; None: on a GPU.

    Raises:
        UsageError: an argument is out of range, or the device has no room for the arena.
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
        prefill_tokens: int = PREFILL_TOKENS,
        tags: ThinkTags | None = None,
        ends: Sequence[int] | None = None,
        record: bool = False,
        graphs: bool | None = None,
    ) -> None:
        for name, given in (("slots", slots), ("rows", rows), ("prefill_tokens", prefill_tokens)):
            if isinstance(given, bool) or not isinstance(given, int) or given < 1:
                raise UsageError(f"Engine: {name}={given!r}: must be a whole number of at least 1")
        check_model(model)
        self.model, self.tokenizer, self.device = model, tokenizer, model.device
        self.tags = think_tags(tokenizer) if tags is None else tags
        self.prefill_tokens = prefill_tokens
        self.cache = SlotCache(
            kv_shape(model.config),
            slots=slots,
            rows=rows,
            dtype=model.dtype,
            device=model.device,
            state_size=state_size(model),
            row_slots=row_slots,
        )
        self._known_policies = KnownPolicies()
        self.policies, self.columns = self._known_policies.policies, self._known_policies.columns
        found_ends = end_ids(model, tokenizer) if ends is None else ends
        self.seats = Seats(rows, tokenizer, tags=self.tags, ends=found_ends, policies=self.policies, record=record)
        self.sampler = Sampler(rows, model.device)
        self.device_step = DeviceStep(model, self.cache, self.sampler, graphs=graphs)
        self.maker = PolicyMaker(model, tokenizer)
        self.waiting: deque[Request] = deque()
        self.feeding: deque[_Feeding] = deque()
        self.fed: dict[Prefix, list[Region]] = {}  # where each prompt of a decoding request lies
        self.streams: dict[int, TextStream] = {}
        self.recorder = Recorder(self.cache, self.seats, self.sampler, self.columns, self.streams)
        self.faults = Faults(self.cache, self.seats, self.device_step)
        self._mail: dict[int, deque[Step | RequestFailed]] = {}  # of streams that are being read, not yet yielded
        self._unclaimed = Progress()  # what ended while a stream was read, not yet reported
        self.evictions = 0  # of all requests so far
        self._next_id = 0
        self._known: set[int] = set()  # ids of what is unfinished
        self._vocabulary = len(model.get_input_embeddings().weight)
        self._decoded = 0  # steps so far in which rows decoded

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

        `options` say how a chat becomes a prompt. As in vLLM, a request shares the prefill of an equal prompt only with
        requests of the same `cache_salt`: whoever does not know it cannot tell from the time whether there was one.

        With `streamed`, `step` reports each of its tokens, with `record` too what each eviction took.

        Raises:
            UsageError: also if the request could never fit: its bound is larger than the arena.
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
        largest = self.cache.arena.largest
        if request.bound > largest:
            raise UsageError(
                f"request {request.index} can hold {request.bound} slots, {len(request.prompt_ids)} of them prompt, "
                f"and the engine has {largest} for one: lower its budget or max_new_tokens, or give more slots"
            )
        self._next_id = max(self._next_id, request.index + 1)
        self._known.add(request.index)
        policy = self._welcome(request.policy)
        if policy is not request.policy:
            request = replace(request, policy=policy)
        if streamed:
            self.streams[request.index] = TextStream(self.tokenizer, self.tags, request.sampling.stop)
        self.waiting.append(request)
        return request.index

    def _welcome(self, policy: Policy) -> Policy:
        """Give a policy its channels and whatever else it wants to be shown; returns it, or its equal that is known."""
        known = self._known_policies.find(policy)
        if known is not None:
            return known
        used = {id(request.policy) for request in chain(self.waiting, self.seats.requests)}
        used |= {id(entry.request.policy) for entry in self.feeding}
        column, wishes = self._known_policies.add(policy, used), Wishes.of(policy)
        self.cache.provide(replace(wishes, channels=column + wishes.channels if wishes.channels else 0))
        self.device_step.forget()
        return policy

    @torch.inference_mode()
    def cut(self, request_id: int) -> Completion | None:
        """End a request now, free its slots and return what it has written, with finish reason "length".

        None if there is nothing: it has no token yet, has finished or never was.
        """
        rows = [row for row, request in enumerate(self.seats.requests) if request.index == request_id]
        done = self._complete(rows[0]) if rows and int(self.seats.generated[rows[0]]) else None
        self.cancel(request_id)
        return done

    @torch.inference_mode()
    def cancel(self, request_id: int) -> bool:
        """Drop a request and free its slots; False if it is not here, because it has finished or never was."""
        self._forget(request_id)
        for request in self.waiting:
            if request.index == request_id:
                self.waiting.remove(request)
                return True
        for piece in self.feeding:
            if piece.request.index == request_id:
                self._drop(piece)
                return True
        rows = [row for row, request in enumerate(self.seats.requests) if request.index == request_id]
        for row in rows:
            if not int(self.seats.generated[row]):  # nobody has looked at its numbers yet
                self.cache.scrub(self.cache.regions[row], int(self.cache.host_lengths[row]))
        self._leave(rows)
        return bool(rows)

    @property
    def unfinished(self) -> int:
        """Requests that wait, are fed or decode."""
        return len(self.waiting) + len(self.feeding) + self.cache.active

    # -- steps -----------------------------------------------------------------------------------------------------

    def step(self) -> Progress:
        """Admit what fits, feed a piece of the prompts, and one token to every row that decodes.

        What ended while a `stream` was being read is reported here too.

        Raises:
            DeviceLost: the device answers no more. Any other error ends the request that caused it, see `Progress`; one
                for which nobody can be blamed ends all that are fed or decode.
        """
        progress, before = self._advance(), self._unclaimed
        self._unclaimed = Progress()
        return replace(progress, finished=before.finished | progress.finished, failed=before.failed | progress.failed)

    @torch.inference_mode()
    def _advance(self) -> Progress:
        try:
            steps, done = self._whole_step()
        except Exception as error:
            self.faults.check_device(error)
            steps, done = {}, {}
            for entry in list(self.feeding):
                self.faults.note(entry.request, error)
                self._drop(entry)
            for request in self.seats.requests:
                self.faults.note(request, error)
        rows = self.faults.rows()
        for row in rows:
            self.cache.scrub(self.cache.regions[row])
        if done:
            rows += [row for row, request in enumerate(self.seats.requests) if request.index in done]
        self._leave(sorted(set(rows)))
        failed = self.faults.take()
        for request_id in failed:
            self._forget(request_id)
        return Progress(
            steps={i: step for i, step in steps.items() if i not in failed},
            finished={i: completion for i, completion in done.items() if i not in failed},
            failed=failed,
        )

    def _whole_step(self) -> tuple[dict[int, Step], dict[int, Completion]]:
        """The new token of each streamed request, and the completion of each that has finished."""
        self._admit()
        self._prefill()
        self._seat()
        if not self.cache.active or not self._decode():
            return {}, {}
        done: dict[int, Completion] = {}
        ended = (self.seats.ended[: self.cache.active] != GOING_ON).nonzero()[:, 0].tolist()
        failed = self.faults.rows()
        self.faults.row_by_row(lambda rows: self._finish(rows, done), [row for row in ended if row not in failed])
        return self._streamed(done), done

    def _finish(self, rows: list[int], done: dict[int, Completion]) -> None:
        """Put the completions of these rows among what is done."""
        self.recorder.note_held(rows)
        done |= {self.seats.requests[row].index: self._complete(row) for row in rows}

    def _complete(self, row: int) -> Completion:
        held, size = int(self.cache.host_lengths[row]), self.cache.regions[row].size
        return self.seats.complete(row, held=held, reserved=size, bytes_per_slot=self.cache.bytes_per_slot)

    def _forget(self, request_id: int) -> None:
        """What is kept of a request beside its row."""
        self._known.discard(request_id)
        self.streams.pop(request_id, None)
        self.recorder.forget(request_id)

    def stream(self, prompt: Prompt, **choices: Any) -> Iterator[Step]:
        """Add a request and yield its tokens as they come, while all others go on; arguments as of `add`.

        Several streams may be read in turns. One that is closed early cancels its request.
        """
        return self._stream_of(self.add(prompt, streamed=True, **choices))

    def stream_request(self, request: Request) -> Iterator[Step]:
        """`stream` for a checked request."""
        return self._stream_of(self.add_request(request, streamed=True))

    def _stream_of(self, request_id: int) -> Iterator[Step]:
        """Its steps are kept from now on, not only from the first that is asked for."""
        self._mail[request_id] = deque()
        return self._steps_of(request_id, self._mail[request_id])

    def _steps_of(self, request_id: int, mail: deque[Step | RequestFailed]) -> Iterator[Step]:
        try:
            while mail or request_id in self.streams:
                if mail:
                    news = mail.popleft()
                    if isinstance(news, RequestFailed):
                        raise news
                    yield news
                    continue
                self._deliver(self._advance())
        finally:
            del self._mail[request_id]
            self.cancel(request_id)

    def _deliver(self, progress: Progress) -> None:
        """Put what a step brought where its stream finds it, and keep what belongs to no stream for the next report."""
        for news in (progress.steps, progress.failed):
            for request_id in news.keys() & self._mail.keys():
                self._mail[request_id].append(news[request_id])
        kept = self._unclaimed
        kept.finished.update({i: done for i, done in progress.finished.items() if i not in self._mail})
        kept.failed.update({i: failure for i, failure in progress.failed.items() if i not in self._mail})

    def _admit(self) -> None:
        """Reserve regions for waiting requests, strictly in their order."""
        while self.waiting and len(self.feeding) + self.cache.active < self.cache.most_rows:
            region = self.cache.arena.reserve(self.waiting[0].bound)
            if region is None:
                return
            self.feeding.append(_Feeding(request=self.waiting.popleft(), region=region))

    def _prefill(self) -> None:
        """Feed up to `prefill_tokens` tokens of the prompts that wait, all but the last token of each."""
        pieces: list[tuple[_Feeding, Segment]] = []
        room, fed_now = self.prefill_tokens, set()
        for entry in self.feeding:
            prompt_ids, prefix = entry.request.prompt_ids, entry.request.prefix
            if entry.done == 0 and prefix in self.fed and entry.request.policy.pins_prompt:
                entry.done = len(prompt_ids) - 1
                self.cache.copy_prompt(self.fed[prefix][0], entry.region, entry.done)
            tokens = min(room, len(prompt_ids) - 1 - entry.done)
            if tokens and prefix not in fed_now:  # an equal prompt waits for the one that is being fed
                pieces.append((entry, Segment(region=entry.region, done=entry.done, tokens=tokens)))
                fed_now.add(prefix)
                room -= tokens
            if not room:
                break
        if not pieces:
            return
        try:
            self._feed(pieces)
        except Exception as error:
            self.faults.check_device(error)
            self._feed_alone([entry for entry, _ in pieces])

    def _feed_alone(self, entries: Sequence[_Feeding]) -> None:
        """Each prompt from its beginning, as nobody knows how far the last forward came; those that raise fail."""
        for entry in entries:
            entry.done = 0
            tokens = min(self.prefill_tokens, len(entry.request.prompt_ids) - 1)
            try:
                self._feed([(entry, Segment(region=entry.region, done=0, tokens=tokens))])
            except Exception as error:
                self.faults.check_device(error)
                self.faults.note(entry.request, error)
                self._drop(entry)

    def _drop(self, entry: _Feeding) -> None:
        """Give up a request whose prompt is being fed."""
        self.feeding.remove(entry)
        self.cache.scrub(entry.region)  # nobody has looked at its numbers
        self.cache.release(entry.region)

    def _feed(self, pieces: Sequence[tuple[_Feeding, Segment]]) -> None:
        """One forward over these pieces of prompts."""
        ids = [entry.request.prompt_ids[piece.done : piece.done + piece.tokens] for entry, piece in pieces]
        ids_1S = torch.tensor([[token for part in ids for token in part]], device=self.device)
        attention.prefill(self.model, self.cache, ids_1S, self.cache.start_prefill([piece for _, piece in pieces]))
        for entry, piece in pieces:
            entry.done += piece.tokens

    def _seat(self) -> None:
        """Prompts that are fed take the next rows, in their order; a longer one that is still fed is overtaken."""
        ready = [entry for entry in self.feeding if entry.done == len(entry.request.prompt_ids) - 1]
        if not ready:
            return
        first = self.cache.active
        for entry in ready:
            prompt_ids, pinned = entry.request.prompt_ids, entry.request.policy.pins_prompt
            self.feeding.remove(entry)
            self.cache.seat(entry.region, len(prompt_ids), pinned=pinned, token_ids=prompt_ids)
            if pinned:  # any other may lose slots of its prompt
                self.fed.setdefault(entry.request.prefix, []).append(entry.region)
        batch = [entry.request for entry in ready]
        self.seats.seat(batch)
        self.sampler.seat(first, [request.sampling for request in batch])
        self.device_step.seat(first, [request.prompt_ids[-1] for request in batch])

    def _decode(self) -> bool:
        """One token for every active row; the host looks after evictions while the device works.

        False if there are none, as the forward or a stamp raised.
        """
        cache, seats, n = self.cache, self.seats, self.cache.active
        most = max((request.sampling.logprobs or 0 for request in seats.requests), default=0) if seats.logprobs else -1
        stamping = self.stamping(strided=False)
        try:
            self.device_step.launch(n, stamping, logprobs=most)
        except Exception as error:
            self.faults.find(error, stamping, logprobs=most)
            return False
        cache.tick()
        for policy, column, rows_R in self.stamping(strided=True):
            if len(rows_R):
                stamp = partial(self._stamp, policy, column)
                self.faults.row_by_row(stamp, rows_R.tolist())
        self._decoded += 1
        self._add_attention()
        self._evict()
        if most >= 0:
            seats.note_logprobs(self.device_step.logprobs(n))
        ids_N = self.device_step.ids(n)
        self.faults.note_ids(ids_N)
        seats.note_tokens(ids_N.clamp(min=0))
        for row, unread in seats.unread.items():
            self.faults.note(seats.requests[row], unread)
        return True

    def _stamp(self, policy: Policy, column: int, rows: list[int]) -> None:
        self.device_step.stamp(policy, column, self.cache.indices(rows))

    def stamping(self, *, strided: bool) -> list[Stamping]:
        """The policies that stamp in this step, of those that do in every step or of the others, and their rows."""
        return [
            (policy, column, self.seats.rows_of(index))
            for index, (policy, column) in enumerate(zip(self.policies, self.columns, strict=True))
            if policy.channels and (policy.stride > 1) == strided and self._decoded % policy.stride == 0
        ]

    def _add_attention(self) -> None:
        """Add up the attention of the queries of each row that thinks and has as many waiting as can wait."""
        for index, policy in enumerate(self.policies):
            if policy.accumulates:
                rows_R = self.seats.rows_of(index)
                full_R = (self.cache.host_waiting[rows_R] == policy.num_queries) & self.seats.thinks(rows_R)
                if full_R.any():
                    add = partial(attention_sums.add, self.cache, most=policy.num_queries)
                    self.faults.row_by_row(add, rows_R[full_R].tolist())

    def _evict(self) -> None:
        """Evict from every row that is due, rows of one policy and budget together."""
        cache, seats, n = self.cache, self.seats, self.cache.active
        groups: dict[object, list[int]] = {}
        for row in seats.due_rows(cache.host_lengths[:n], cache.host_pinned[:n]):
            groups.setdefault((int(seats.policy[row]), seats.requests[row].budget), []).append(row)
        for rows in groups.values():
            self.faults.row_by_row(self._evict_due, rows)

    def _evict_due(self, rows: list[int]) -> None:
        """`_evict_group` for those of these rows that are still due: a part of them may be done when another raises."""
        held = self.cache.host_lengths[rows] - self.cache.host_pinned[rows]
        is_due = (held == self.seats.due[rows]).tolist()
        due = [row for row, still in zip(rows, is_due, strict=True) if still]
        if due:
            self._evict_group(due)

    def _evict_group(self, rows: list[int]) -> None:
        """Score → select → compact, for rows of one policy and budget."""
        cache, seats = self.cache, self.seats
        policy, count = seats.requests[rows[0]].policy, int(seats.due[rows[0]])
        if policy.accumulates and int(cache.host_waiting[rows].max()):
            attention_sums.add(cache, rows, policy.num_queries)
        layers: Sequence[range | None] = [None]
        rows_R, num_rows = cache.indices(rows), len(rows)
        if policy.per_head:  # room for the attention of its queries, and for a number for each pair of slots
            per_slot = 2 * count + 4 * cache.shape.head_dim + 3 * cache.shape.group * policy.num_queries
            bytes_of_one = 4 * cache.shape.kv_heads * count * per_slot
            bytes_of_one += attention_sums.pinned_bytes(cache, policy.num_queries) if policy.num_queries else 0
            num_rows, num_layers = attention_sums.at_a_time(cache, bytes_of_one, len(rows))
            layers = attention_sums.layers_in_parts(cache, num_layers)
        elif policy.num_sets > 1:  # room for its stamps, and for the sorting of its scores
            per_slot = policy.num_sets * (6 * policy.channels + 100)
            num_rows = max(1, attention_sums.SCRATCH_BYTES // (count * per_slot))
        for start in range(0, len(rows), num_rows):
            part, part_R = rows[start : start + num_rows], rows_R[start : start + num_rows]
            kept = torch.cat([self._kept(part, part_R, some) for some in layers], dim=1)
            cache.evict(part, kept, policy, first=self.columns[int(seats.policy[rows[0]])])
            seats.evictions[part] += 1
            self.evictions += len(part)

    def _kept(self, rows: list[int], rows_R: Tensor, layers: range | None) -> Tensor:
        """Score → select, for rows of one policy and budget: of some layers [R, L H, K], of all [R, K] or [R, X, K]."""
        cache, seats, request = self.cache, self.seats, self.seats.requests[rows[0]]
        assert request.budget is not None
        count, column = int(seats.due[rows[0]]), self.columns[int(seats.policy[rows[0]])]
        slots = cache.show(rows_R, count, self.sampler.seeds[rows_R], request.policy, first=column, layers=layers)
        scores = request.policy.score(slots)
        self.device_step.note_scores(rows_R, scores)
        # Pinned slots and the answer are not among those shown.
        kept = keep_in_order(scores, min(request.budget.slots, count), request.budget.recent_window)
        self.recorder.note(rows, request.policy, slots, kept)
        return kept if layers is None else kept.reshape(len(rows), -1, kept.shape[-1])

    def _streamed(self, done: dict[int, Completion]) -> dict[int, Step]:
        """The new token of each streamed request."""
        if not self.streams:
            return {}
        seats, steps = self.seats, {}
        for row, request in enumerate(seats.requests):
            if request.index not in self.streams or request.index in self.faults.failed or not seats.generated[row]:
                continue
            generated = int(seats.generated[row])
            token_id, completion = int(seats.ids[row, generated - 1]), done.get(request.index)
            likeliest = seats.logprobs.get(request.index)
            try:
                text = self.streams[request.index].push(
                    token_id, last=completion is not None, searched=seats.searches(row)
                )
            except Exception as error:  # the tokenizer's
                self.faults.note(request, error)
                continue
            steps[request.index] = Step(
                token_id=token_id,
                text=text,
                in_thought=int(seats.answer_start[row]) == NEVER,
                slots=int(self.cache.host_lengths[row]),
                full_slots=len(request.prompt_ids) + generated - 1,
                eviction=self.recorder.take(request.index),
                logprob=None if likeliest is None else float(seats.own[row, generated - 1]),
                top_logprobs=None if likeliest is None else (likeliest or [()])[-1],
                completion=completion,
            )
        return steps

    def _leave(self, rows: list[int]) -> None:
        """Free these rows and their regions."""
        if not rows:
            return
        for row in rows:
            request, region = self.seats.requests[row], self.cache.regions[row]
            self._forget(request.index)
            if request.policy.pins_prompt:
                self.fed[request.prefix].remove(region)
                if not self.fed[request.prefix]:
                    del self.fed[request.prefix]
        sources, targets = self.cache.retire(rows)
        self.seats.free(rows, sources, targets)
        if sources:
            self.sampler.move(sources, targets)
            self.device_step.move(sources, targets)

    def check_integrity(self) -> None:
        """Raise AssertionError unless cache, rows and requests agree and no slot is held for nobody."""
        self.cache.check_integrity()
        assert len(self.seats.requests) == self.cache.active
        feeding = {entry.region for entry in self.feeding}
        assert feeding | set(self.cache.regions) == set(self.cache.arena.regions), "a region belongs to nobody"
        for row, request in enumerate(self.seats.requests):
            assert int(self.cache.host_pinned[row]) == len(request.prompt_ids) * request.policy.pins_prompt
            assert int(self.cache.host_lengths[row]) <= request.bound <= self.cache.regions[row].size
        seated = zip(self.seats.requests, self.cache.regions, strict=True)
        whole = [region for request, region in seated if request.policy.pins_prompt]
        assert sorted(map(id, chain(*self.fed.values()))) == sorted(map(id, whole)), "a prompt is lost"
