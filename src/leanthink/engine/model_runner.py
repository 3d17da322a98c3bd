"""The device's part of a step: forward → score tokens → sample; on a GPU replayed as a CUDA graph.

Prompts are fed by a forward of their own, or ride along in that of the rows' tokens, which then is no graph.

N rows   B rows of a graph, the next size of bucket   V vocabulary
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from leanthink.engine import attention, decoder
from leanthink.engine.cache import SlotCache
from leanthink.engine.forward_batch import PromptChunk
from leanthink.engine.hidden_states import (
    gather_consecutive,
    gather_hidden_states,
    rows_scored_together,
    store_hidden_states,
)
from leanthink.engine.sampling import NO_TOKEN, Sampler, Uses, log_probabilities
from leanthink.policies import Policy

TokenScoring = tuple[Policy, int, Tensor]  # a policy, the first of its columns, the rows whose tokens it scores
Prompts = tuple[Sequence[int], Sequence[PromptChunk]]  # tokens of chunks, which follow one another, and the chunks
NO_RANKING = NO_TOKEN - 1  # stands for the token of a row whose slots a score that is not finite has ranked
MAX_UNREAD = 2  # steps that are launched and whose tokens nobody has read yet


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What a graph was captured for; what nobody uses is left out."""

    rows: int
    uses: Uses
    logprobs: int
    span: int  # slots, a power of two, that no allocation exceeds: decides how attention is split


class _SampledIds:
    """The tokens of one step on their way to the host."""

    def __init__(self, rows: int, *, on_gpu: bool) -> None:
        self._ids = torch.zeros(rows, dtype=torch.int64, pin_memory=on_gpu)
        self._copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        self._first_places = torch.arange(rows)
        self.place_of_row = self._first_places.clone()  # among these tokens, kept up where rows move

    def copy(self, ids_N: Tensor) -> None:
        """Begin to copy the tokens of the first N rows."""
        self.place_of_row.copy_(self._first_places)
        self._ids[: len(ids_N)].copy_(ids_N, non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    def read(self, rows: int) -> Tensor:
        """Those of the first so many rows, once they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._ids[self.place_of_row[:rows]]


class ModelRunner:
    """Runs the device's part of a step: no host synchronisation but one copy of the sampled tokens.

    Args:
        model: in evaluation mode.
        cache: told of each forward, given token scores and accounted for here.
        sampler: picks the tokens.
        graphs: None: CUDA graphs on a GPU.

    Attributes:
        lean: our own forward; None for a model that has to use transformers'.
        packs_prompts: whether a layer's attention to all prompts of a step is one call, and `lean` feeds them if it is
            there: on a GPU, in half precision, where one call a prompt takes 1.7 to 2.3 times as long.
    """

    def __init__(self, model: Any, cache: SlotCache, sampler: Sampler, *, graphs: bool | None = None) -> None:
        self.model, self.cache, self.sampler = model, cache, sampler
        lean = decoder.is_llama_like(model)
        device, self.lean = model.device, decoder.LeanDecoder(model) if lean else None
        self._decode = self.lean or partial(attention.decode, model)
        self.packs_prompts = device.type == "cuda" and cache.queries.dtype.itemsize == 2
        self.graphs = device.type == "cuda" if graphs is None else graphs
        rows = cache.max_rows + 1
        self.last_ids = torch.zeros(rows, dtype=torch.int64, device=device)
        self.finite = torch.ones(rows, dtype=torch.bool, device=device)  # whether all scores of its evictions were
        self._ids = torch.zeros(rows, dtype=torch.int64, device=device)  # sampled in the latest step
        self._sampled = cycle([_SampledIds(rows, on_gpu=device.type == "cuda") for _ in range(MAX_UNREAD)])
        self._unread: deque[_SampledIds] = deque()  # of the steps whose tokens are still to be read, oldest first
        self._log_values: Tensor | None = None
        self._captured: dict[_Kind, tuple[Any, Tensor | None] | None] = {}  # None: it cannot be captured
        self._pool: Any = None

    def assign_rows(self, first: int, last_prompt_ids: Sequence[int]) -> None:
        """Requests whose prompts end with these tokens take the rows from `first` on."""
        self.feed(first, last_prompt_ids)
        self.finite[first : first + len(last_prompt_ids)] = True

    def feed(self, first: int, token_ids: Sequence[int]) -> None:
        """Rows from `first` on are fed these tokens next."""
        self.last_ids[first : first + len(token_ids)] = self.cache.indices(token_ids)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Rows `sources` become rows `targets`."""
        for sampled in self._unread:
            sampled.place_of_row[targets] = sampled.place_of_row[sources]
        source, target = self.cache.indices(sources), self.cache.indices(targets)
        for of_rows in (self.last_ids, self.finite):
            of_rows[target] = of_rows[source]

    def note_scores(self, rows_R: Tensor, scores: Tensor) -> None:
        """These scores rank slots of these rows; a row with one that is not finite gets no more tokens.

        That is told with the next step's tokens. The scores are [R, ...], or [R L, ...] where each layer of a row is a
        row of its own, those of one next to each other.
        """
        scores_RM = scores.reshape(len(rows_R), -1)
        if scores.is_cuda:
            from leanthink.engine.kernels.finite import note_finite

            note_finite(scores_RM, rows_R, self.finite)
        else:
            self.finite[rows_R] &= scores_RM.isfinite().all(dim=1)

    def forget(self) -> None:
        """Drop the captured graphs: what they read has moved."""
        self._captured.clear()

    @property
    def mixes_prompts(self) -> bool:
        """Whether `launch` takes prompts along."""
        return self.lean is not None and self.packs_prompts

    def launch(
        self, rows: int, scoring: Sequence[TokenScoring], *, logprobs: int, prompts: Prompts | None = None
    ) -> None:
        """Start a step of rows 0 to `rows` - 1; `logprobs` of how many alternatives, -1 for none at all.

        `scoring` are the policies that score tokens in every step, `prompts` what the same forward feeds of these. The
        last one to be fed of a prompt may be a row's already.
        """
        captured = self._graph(rows, scoring, logprobs) if self.graphs and prompts is None else None
        if captured is None:
            self._log_values = self.launch_plain(rows, scoring, logprobs=logprobs, prompts=prompts)
        else:
            graph, self._log_values = captured
            graph.replay()
        assert len(self._unread) < MAX_UNREAD, "the tokens of an older step are still to be read"
        self._unread.append(next(self._sampled))
        self._unread[-1].copy(self._ids[:rows])

    def _graph(self, rows: int, scoring: Sequence[TokenScoring], logprobs: int) -> tuple[Any, Tensor | None] | None:
        """The graph of a step like this one, captured when it is first asked for."""
        span = 1 << (self.cache.allocator.largest_so_far - 1).bit_length()
        uses, rows = self.sampler.uses(rows), min(bucket(rows), self.cache.max_rows)
        kind = _Kind(rows=rows, uses=uses, logprobs=logprobs, span=span)
        if kind not in self._captured:
            self._captured[kind] = self._capture(kind, scoring)
        return self._captured[kind]

    def launch_plain(
        self, rows: int, scoring: Sequence[TokenScoring], *, logprobs: int, prompts: Prompts | None = None
    ) -> Tensor | None:
        """A step without a graph, whose tokens nobody is told; returns the log-probabilities if they are wanted."""
        device = self.last_ids.device
        of_rows = [(policy, column, rows_R.to(device)) for policy, column, rows_R in scoring if len(rows_R)]
        return self._run(None, rows, of_rows, self.sampler.uses(rows), logprobs, prompts)

    def score_tokens(self, policy: Policy, column: int, rows_R: Tensor) -> None:
        """Score the last `policy.stride` tokens of these rows that have all their followers."""
        cache, late = self.cache, policy.offsets[-1]
        for part_R in torch.split(rows_R, rows_scored_together(policy, cache.hidden_states[0, 0])):
            if policy.stride == 1:
                scores_RC = policy.score_tokens(gather_hidden_states(cache, part_R, policy.offsets))
                scores_SRC = scores_RC.view(1, len(part_R), -1)
            else:
                scores_SRC = policy.score_consecutive(gather_consecutive(cache, part_R, late + policy.stride))
            cache.store_token_scores(part_R, scores_SRC.transpose(0, 1), first=column, late=late)

    def prefill(self, token_ids: Sequence[int], chunks: Sequence[PromptChunk]) -> None:
        """One forward over these chunks of prompts, whose tokens follow one another.

        One for each chunk where layers keep states: a recurrence would run on from one prompt into the next.
        """
        if self.cache.recurrent is not None and len(chunks) > 1:
            ids = iter(token_ids)
            for chunk in chunks:
                self.prefill(list(islice(ids, chunk.tokens)), [chunk])
            return
        ids_1S = self.cache.indices(token_ids)[None]
        positions_1S = self.cache.start_prefill(chunks, packed=self.packs_prompts)
        if self.lean is not None and self.packs_prompts:
            self.lean.prefill(self.cache, ids_1S, positions_1S)
        else:
            attention.prefill(self.model, self.cache, ids_1S, positions_1S)

    def ids(self, rows: int) -> Tensor:
        """The sampled tokens of the oldest step that is not read, [N] on the host; waits for the device.

        Of the rows as they are now, wherever they have moved meanwhile. NO_TOKEN for a row whose logits are NaN or
        infinite, NO_RANKING for one of which a score was.
        """
        return self._unread.popleft().read(rows)

    def drop_unread(self) -> None:
        """Nobody will read the tokens of the steps so far: all of their rows are gone."""
        self._unread.clear()

    def logprobs(self, rows: int) -> Tensor:
        """Columns as of `leanthink.engine.sampling.log_probabilities`, [N, X] on the host; waits for the device."""
        assert self._log_values is not None, "launched without logprobs"
        return self._log_values.cpu()[self._unread[0].place_of_row[:rows]]

    def _run(
        self,
        graph_rows: int | None,
        rows: int,
        scoring: Sequence[TokenScoring],
        uses: Uses,
        logprobs: int,
        prompts: Prompts | None = None,
    ) -> Tensor | None:
        """Forward → score tokens → sample, all on the device; returns the log-probabilities if they are wanted."""
        cache, ids = self.cache, self.last_ids[:rows]
        if prompts is not None:
            cache.start_prefill(prompts[1], packed=self.packs_prompts)
            ids = torch.cat([cache.indices(prompts[0]), ids])
        positions = cache.start_step(graph_rows)
        if cache.requirements.token_ids:
            cache.note_token_ids(self.last_ids[:rows])
        hidden_NF, logits_NV = self._decode(cache, ids, positions)
        if cache.requirements.hidden_states:
            store_hidden_states(cache, hidden_NF)
        for policy, column, rows_R in scoring:
            self.score_tokens(policy, column, rows_R)
        counts_N = cache.next_positions[:rows] - cache.prompt_lengths[:rows]
        ids_N = self.sampler.pick(logits_NV, counts_N, uses)
        self._ids[:rows] = ids_N.where(self.finite[:rows], NO_RANKING)
        self.last_ids[:rows] = ids_N.clamp_(min=0)  # what is no token cannot be fed
        return None if logprobs < 0 else log_probabilities(logits_NV, ids_N, logprobs)

    def _capture(self, kind: _Kind, scoring: Sequence[TokenScoring]) -> tuple[Any, Tensor | None] | None:
        """A graph of a step of `kind.rows` rows, in which every policy that scores tokens scores those of all rows.

        While it is captured no row is live, so that what runs now changes nothing that anybody holds. None for a step
        that runs but cannot be captured, as where the host waits for a policy's token scores or for experts' counts.
        """
        live, last_ids = self.cache.live.clone(), self.last_ids.clone()
        self.cache.live.zero_()
        every = [(policy, column, self.cache.rows_N[: kind.rows]) for policy, column, _ in scoring]
        arguments = (kind.rows, kind.rows, every, kind.uses, kind.logprobs)
        before, stream = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(before)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(stream):
                for _ in range(2):
                    self._run(*arguments)
            before.wait_stream(stream)
            try:
                with torch.cuda.graph(graph, pool=self._pool):
                    log_values = self._run(*arguments)
            except RuntimeError as error:  # errors of CUDA are; it has just run without being captured
                why = str(error).partition("\n")[0]
                warnings.warn(f"a step cannot be captured: such steps run without CUDA graphs ({why})", stacklevel=2)
                end_failed_capture(before)
                return None
        finally:
            self.cache.live.copy_(live)
            self.last_ids.copy_(last_ids)
        self._pool = graph.pool()
        return graph, log_values


def end_failed_capture(stream: torch.cuda.Stream) -> None:
    """Go back to the stream of before, and let random numbers be drawn again.

    Where a capture fails, torch leaves neither its stream nor the capture of its device's generator (torch 2.11 to
    2.13, pytorch/pytorch#171263): the process could not draw a random number on that device any more.
    """
    torch.cuda.set_stream(stream)
    generator = torch.cuda.default_generators[stream.device.index]
    generator.graphsafe_set_state(generator.clone_state())  # a copy has the same numbers, and no capture


def bucket(rows: int) -> int:
    """The size of graph for so many rows: 1, 2, 4, 8, then multiples of 8, of 32 from 128 on, of 256 from 1024 on."""
    if rows <= 8:
        return 1 << (rows - 1).bit_length()
    step = 8 if rows <= 128 else 32 if rows <= 1024 else 256
    return -(-rows // step) * step
