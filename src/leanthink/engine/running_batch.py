"""The host's own record of the requests in the rows: tokens, counts and ends, so that no step waits for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leanthink.data.think_tags import TagReader, ThinkTags
from leanthink.data.traces.token_scores import Scores, pack
from leanthink.engine.outputs import Completion, TopLogprobs, decode, token_chars, truncate_at_stop
from leanthink.engine.request import Request
from leanthink.engine.slot_allocator import Allocation
from leanthink.policies import Policy

NEVER = 2**62  # a count that no request reaches
GOING_ON, STOP, LENGTH = 0, 1, 2
BY_TOKEN, OPENING, CLOSING, NO_THOUGHT = 0, 1, 2, 3  # what is looked for in a row's text: nothing; a tag; nothing more


class RunningBatch:
    """Requests by row, with one entry per row in each tensor; rows [0, len(requests)) are taken.

    Attributes:
        generated: tokens generated.
        answer_start: tokens generated before `</think>`; NEVER while thinking, 0 for a request without a thought.
        max_thought_slots: those of its budget: at so many an eviction is due; NEVER without a budget.
        max_tokens, max_answer_tokens: tokens, and answer tokens, at which the request ends.
        peak: most slots held so far.
        slot_steps: slots held at each decoding step so far, added up.
        evictions: how many there were.
        ended: GOING_ON, STOP or LENGTH.
        policy: index of the request's policy in `policies`.
        watched: whether there are stop strings to look for.
        tag: BY_TOKEN where a token closes the thought, or did; OPENING and CLOSING where the text is looked at for a
            tag; NO_THOUGHT where it did not begin with the opening tag that it needed.
        alternatives: of how many tokens, beside its own, the request wants log-probabilities.
        own: the log-probability of each generated token; empty until a request wants them.
        recorded: whether its evictions are noted: it or all are to be recorded, and its policy keeps one set.
        evicted_at: for each generated token, tokens generated when its slot was evicted; -1 for never, and where
            nothing is recorded.
        unread: rows whose text could not be read in the latest step, and why.
        token_scores: by index of the recorded requests with a policy that has them, of each token that they may
            generate its scores, float16 [T, C], NaN until they are noted.
    """

    def __init__(
        self,
        rows: int,
        tokenizer: Any,
        *,
        tags: ThinkTags,
        ends: Sequence[int],
        policies: list[Policy],
        record: bool,
    ) -> None:
        self.tokenizer, self.tags, self.policies, self.record = tokenizer, tags, policies, record
        self.requests: list[Request] = []
        self._table = torch.zeros(rows, 14, dtype=torch.int64)
        columns = self._table.unbind(1)
        self.generated, self.answer_start, self.max_thought_slots, self.max_tokens = columns[:4]
        self.max_answer_tokens = columns[4]
        self.peak, self.slot_steps, self.evictions, self.ended, self.policy, self.watched = columns[5:11]
        self.alternatives, self.recorded, self.tag = columns[11:]
        self._reader, self._reads = TagReader(tags), tags.only_in_text
        self.unread: dict[int, Exception] = {}
        self._decided: set[int] = set()  # rows of which this step has told whether they think
        self.ids = torch.zeros(rows, 256, dtype=torch.int64)
        self.evicted_at = torch.full((rows, 256), -1)
        self._ends = torch.tensor(ends, dtype=torch.int64)
        self.own = torch.zeros(rows, 0, dtype=torch.float64)
        self.logprobs: dict[int, list[TopLogprobs]] = {}  # by index of the requests that want them: the likeliest
        self.token_scores: dict[int, Tensor] = {}

    def add(self, requests: Sequence[Request]) -> None:
        """The next free rows go to these requests, which hold all but the last token of their prompts."""
        rows = slice(len(self.requests), len(self.requests) + len(requests))
        self.requests.extend(requests)
        self._table[rows], self.ids[rows], self.evicted_at[rows] = 0, 0, -1
        self.answer_start[rows] = torch.tensor([0 if request.starts_in_answer else NEVER for request in requests])
        self.max_tokens[rows] = torch.tensor([request.max_new_tokens for request in requests])
        self.tag[rows] = torch.tensor([self._first_tag(request) for request in requests])
        budgets = [request.budget for request in requests]
        self.max_thought_slots[rows] = torch.tensor(
            [budget.max_thought_slots if budget else NEVER for budget in budgets]
        )
        self.max_answer_tokens[rows] = torch.tensor(
            [budget.max_answer_slots if budget else NEVER for budget in budgets]
        )
        self.policy[rows] = torch.tensor([self._index_of(request.policy) for request in requests])
        for request in requests:
            if request.sampling.logprobs is not None:
                self.logprobs[request.index] = []
            if (self.record or request.record) and request.policy.score_dims and request.policy.is_shared:
                shape = (request.max_new_tokens, request.policy.score_dims)
                self.token_scores[request.index] = torch.full(shape, torch.nan, dtype=torch.float16)
        self.alternatives[rows] = torch.tensor([request.sampling.logprobs or 0 for request in requests])
        self.watched[rows] = torch.tensor([bool(request.sampling.stop) for request in requests], dtype=torch.int64)
        told = [(self.record or request.record) and request.policy.is_shared for request in requests]
        self.recorded[rows] = torch.tensor(told, dtype=torch.int64)

    @property
    def num_logprobs(self) -> int:
        """Of how many alternatives any request wants log-probabilities; -1 where none wants any at all."""
        if not self.logprobs:
            return -1
        return max(request.sampling.logprobs or 0 for request in self.requests)

    def _first_tag(self, request: Request) -> int:
        """What is looked for in a request's text at first."""
        if request.starts_in_answer or not self.tags.closes:
            return BY_TOKEN
        if request.must_open:
            return OPENING
        return CLOSING if self.tags.in_text else BY_TOKEN

    def _index_of(self, policy: Policy) -> int:
        return next(index for index, known in enumerate(self.policies) if known is policy)

    def rows_of(self, index: int) -> Tensor:
        """The rows whose policy is `policies[index]`, [R]."""
        return (self.policy[: len(self.requests)] == index).nonzero()[:, 0]

    def free(self, rows: Sequence[int], sources: list[int], targets: list[int]) -> None:
        """Rows `rows` have finished; of the others, `sources` become `targets`, so that the taken rows come first."""
        for table in (self._table, self.ids, self.evicted_at, self.own):
            table[targets] = table[sources]
        for row in rows:
            self.logprobs.pop(self.requests[row].index, None)
            self.token_scores.pop(self.requests[row].index, None)
        for source, target in zip(sources, targets, strict=True):
            self.requests[target] = self.requests[source]
        del self.requests[len(self.requests) - len(rows) :]

    def thinks(self, rows_R: Tensor) -> Tensor:
        """Whether each of these rows has not closed its thought, bool [R]."""
        return self.answer_start[rows_R] == NEVER

    def due_rows(self, lengths_N: Tensor, pinned_N: Tensor) -> list[int]:
        """Rows that must evict, given the slots that each holds and how many of them are pinned; notes what is held.

        To be called once in each decoding step, when the slots of its tokens are written and before any is evicted.
        """
        n = len(self.requests)
        self.peak[:n] = torch.maximum(self.peak[:n], lengths_N)
        self.slot_steps[:n] += lengths_N
        # `Budget.is_due` of all rows at once.
        is_due_N = (lengths_N - pinned_N >= self.max_thought_slots[:n]) & (self.answer_start[:n] == NEVER)
        rows: list[int] = is_due_N.nonzero()[:, 0].tolist()
        return rows

    def note_evicted(self, rows: Sequence[int], positions_RS: Tensor, kept_RK: Tensor) -> list[tuple[int, ...]]:
        """Record which of the thought tokens at these positions are about to lose their slots; returns theirs."""
        dropped_RS = torch.ones_like(positions_RS, dtype=torch.bool).scatter(1, kept_RK, False)
        gone = []
        for row, positions_S, dropped_S in zip(rows, positions_RS, dropped_RS, strict=True):
            generated_index = positions_S[dropped_S] - len(self.requests[row].prompt_ids)  # below 0 in the prompt
            self.evicted_at[row, generated_index[generated_index >= 0]] = self.generated[row]
            gone.append(tuple(positions_S[dropped_S].tolist()))
        return gone

    def note_token_scores(self, row: int, positions_S: Tensor, scores_SC: Tensor) -> None:
        """Record the token scores of those of the tokens at these positions that were generated."""
        request = self.requests[row]
        generated_S = positions_S - len(request.prompt_ids)
        thought_S = generated_S >= 0
        self.token_scores[request.index][generated_S[thought_S]] = scores_SC[thought_S].half()

    def note_logprobs(self, values_NX: Tensor) -> None:
        """Append the log-probabilities of the tokens noted next; columns as of `log_probabilities`."""
        n, alternatives = len(values_NX), values_NX.shape[1] // 2
        if int(self.generated[:n].max()) >= self.own.shape[1]:
            wider = torch.zeros(len(self.own), 2 * self.ids.shape[1], dtype=torch.float64)
            wider[:, : self.own.shape[1]] = self.own
            self.own = wider
        self.own[:n].scatter_(1, self.generated[:n, None], values_NX[:, :1])
        for row in self.alternatives[:n].nonzero()[:, 0].tolist():
            k, (_, *likeliest) = int(self.alternatives[row]), values_NX[row].tolist()
            pairs = zip(likeliest[alternatives : alternatives + k], likeliest[:k], strict=True)
            self.logprobs[self.requests[row].index].append(tuple((int(token), value) for token, value in pairs))

    def any_ends_by_length(self) -> bool:
        """Whether the next token is the last of any row, whatever it says."""
        n = len(self.requests)
        next_N, answer_start_N = self.generated[:n] + 1, self.answer_start[:n]
        ends_N = (next_N >= self.max_tokens[:n]) | (next_N - answer_start_N >= self.max_answer_tokens[:n])
        return bool(ends_N.any())

    def note_tokens(self, ids_N: Tensor) -> None:
        """Append one sampled token to each row, and find out which of them have ended."""
        rows = slice(0, len(ids_N))
        generated, answer_start, ended = self.generated[rows], self.answer_start[rows], self.ended[rows]
        if int(generated.max()) == self.ids.shape[1]:
            self._widen()
        self.ids[rows].scatter_(1, generated[:, None], ids_N[:, None])
        if self.tags.close_id is not None:
            closes_N = (ids_N == self.tags.close_id) & (answer_start == NEVER) & (self.tag[rows] == BY_TOKEN)
            answer_start[closes_N] = generated[closes_N]
        generated += 1
        self.unread.clear()
        if self._reads:
            self._decided.clear()
            for row in ((self.tag[rows] == OPENING) | (self.tag[rows] == CLOSING)).nonzero()[:, 0].tolist():
                try:
                    self._read_tag(row)
                except Exception as error:  # the tokenizer's
                    self.unread[row] = error
        answer_N = generated - answer_start  # far below zero while thinking
        ended[(generated >= self.max_tokens[rows]) | (answer_N >= self.max_answer_tokens[rows])] = LENGTH
        ended[torch.isin(ids_N, self._ends)] = STOP
        for row in self.watched[rows].nonzero()[:, 0].tolist():
            try:
                if self._ends_in_stop(row):
                    ended[row] = STOP
            except Exception as error:
                self.unread[row] = error

    def _widen(self) -> None:
        self.ids = torch.cat([self.ids, torch.zeros_like(self.ids)], dim=1)
        self.evicted_at = torch.cat([self.evicted_at, torch.full_like(self.evicted_at, -1)], dim=1)

    def _read_tag(self, row: int) -> None:
        """Look at the text of a row, whose latest token may complete a tag."""
        if int(self.tag[row]) == OPENING:
            opens = self._reader.opens(self.tokens(row))
            if opens is None:
                return
            self.tag[row] = NO_THOUGHT if not opens else CLOSING if self.tags.in_text else BY_TOKEN
            self._decided.add(row)
            return
        end = int(self.generated[row])
        if self._reader.may_close(int(self.ids[row, end - 1])) and self._reader.closes(
            self.ids[row, max(0, end - 1 - self.tags.reach) : end].tolist()
        ):
            self.answer_start[row], self.tag[row] = end - 1, BY_TOKEN

    def searches(self, row: int) -> bool | None:
        """Whether stop strings are looked for now; None while nobody knows whether this is a thought."""
        request = self.requests[row]
        if request.sampling.stop_in_thought or not self.tags.closes:
            return True
        if int(self.tag[row]) == OPENING:
            return None
        return int(self.answer_start[row]) != NEVER or int(self.tag[row]) == NO_THOUGHT

    def _searches_behind_tag(self, row: int) -> bool:
        """Whether stop strings are looked for in what follows a closing tag that the row has written."""
        request = self.requests[row]
        skips = not (request.sampling.stop_in_thought or request.starts_in_answer)
        return skips and int(self.answer_start[row]) != NEVER

    def _ends_in_stop(self, row: int) -> bool:
        """Whether a stop string is complete; a token brings at least a byte, so only the tail can hold a new one."""
        request, end = self.requests[row], int(self.generated[row])
        if not self.searches(row):
            return False
        stop, answer_start = request.sampling.stop, int(self.answer_start[row])
        first = 0 if row in self._decided else max(0, end - max(len(text.encode()) for text in stop) - 4)
        if self._searches_behind_tag(row) and first <= answer_start:
            first = max(0, answer_start - self.tags.reach)
            text = decode(self.tokenizer, self.ids[row, first:end].tolist(), self.tags).partition(self.tags.close)[2]
        else:
            text = decode(self.tokenizer, self.ids[row, first:end].tolist(), self.tags)
        return any(text_end in text for text_end in stop)

    def tokens(self, row: int) -> list[int]:
        """Everything generated so far."""
        ids: list[int] = self.ids[row, : int(self.generated[row])].tolist()
        return ids

    def complete(self, row: int, allocation: Allocation, *, held: int, bytes_per_slot: int) -> Completion:
        """The result of a finished row that holds `held` slots of its allocation."""
        request, ids = self.requests[row], self.tokens(row)
        end = set(self._ends.tolist())
        written = ids[:-1] if ids[-1] in end else ids
        thought_tokens = min(len(ids), int(self.answer_start[row]))
        whole = decode(self.tokenizer, written, self.tags)
        thought_ends, answer_starts = self._split(request, written, thought_tokens)
        text = whole
        if self.searches(row) is not False:
            behind_tag = self._searches_behind_tag(row)
            text = truncate_at_stop(whole, request.sampling.stop, answer_starts if behind_tag else 0)
        evicted_at = self.evicted_at[row, : len(ids)].tolist() if self.recorded[row] else None
        peak, likeliest = int(self.peak[row]), self.logprobs.get(request.index)
        return Completion(
            text=text,
            thought=text[:thought_ends].strip().removeprefix(self.tags.open).strip(),
            answer=text[answer_starts:].strip(),
            token_ids=tuple(ids),
            prompt_tokens=len(request.prompt_ids),
            cached_tokens=allocation.cached_tokens,
            thought_tokens=thought_tokens,
            answer_tokens=len(ids) - thought_tokens,
            finish_reason="stop" if int(self.ended[row]) == STOP else "length",
            peak_slots=peak,
            kept_slots=held,
            slot_steps=int(self.slot_steps[row]),
            evictions=int(self.evictions[row]),
            peak_kv_bytes=peak * bytes_per_slot,
            full_kv_bytes=(len(request.prompt_ids) + len(ids) - 1) * bytes_per_slot,
            reserved_kv_bytes=allocation.size * bytes_per_slot,
            logprobs=None if likeliest is None else tuple(self.own[row, : len(ids)].tolist()),
            top_logprobs=None if likeliest is None else tuple(likeliest or [()] * len(ids)),
            evicted_at=None if evicted_at is None else tuple(None if at < 0 else at for at in evicted_at),
            token_chars=token_chars(self.tokenizer, ids, text, self.tags) if self.record or request.record else None,
            scores=self._scores(row),
        )

    def _split(self, request: Request, written: list[int], thought_tokens: int) -> tuple[int, int]:
        """How many characters of the text precede the closing tag, and how many the answer; 0 without a thought."""
        if request.starts_in_answer:
            return 0, 0
        head = decode(self.tokenizer, written[: thought_tokens + 1], self.tags)
        before, tag, _ = head.rpartition(self.tags.close) if thought_tokens < len(written) else (head, "", "")
        return len(before), len(before) + len(tag)

    def _scores(self, row: int) -> Scores | None:
        request = self.requests[row]
        if request.index not in self.token_scores:
            return None
        halves_TC = self.token_scores[request.index][: int(self.generated[row])].numpy().astype("<f2")
        return pack(request.policy.horizons, halves_TC.tobytes())
