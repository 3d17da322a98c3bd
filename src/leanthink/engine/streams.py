"""The requests whose tokens are told as they come: their text so far, and what nobody has read yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from leanthink.data.think_tags import ThinkTags
from leanthink.engine.eviction_recorder import Recorder
from leanthink.engine.faults import Faults
from leanthink.engine.outputs import Completion, Progress, Step, TextStream
from leanthink.engine.request import Request
from leanthink.engine.rows import Rows
from leanthink.engine.running_batch import NEVER
from leanthink.utils.errors import RequestFailed

Mail = deque[Step | RequestFailed]


class Streams:
    """Makes a `Step` of each new token of a streamed request, and keeps it until whoever reads the stream asks for it.

    Args:
        tokenizer: of the model.
        tags: where thoughts begin and end.
        rows: of the engine.
        faults: of the engine.

    Attributes:
        texts: of each streamed request, by id, its text so far.
    """

    def __init__(self, tokenizer: Any, tags: ThinkTags, rows: Rows, faults: Faults) -> None:
        self._tokenizer, self._tags, self._rows, self._faults = tokenizer, tags, rows, faults
        self.texts: dict[int, TextStream] = {}
        self._mail: dict[int, Mail] = {}  # of streams that are being read, not yet yielded
        self._unclaimed = Progress()  # what ended while a stream was read, not yet reported

    def add(self, request: Request) -> None:
        """The tokens of this request are told."""
        self.texts[request.index] = TextStream(self._tokenizer, self._tags, request.sampling.stop)

    def open(self, request_id: int) -> Mail:
        """Somebody reads this stream: its steps are kept here from now on, not only from the first one asked for."""
        self._mail[request_id] = deque()
        return self._mail[request_id]

    def close(self, request_id: int) -> None:
        """Nobody reads this stream any more."""
        del self._mail[request_id]

    def deliver(self, progress: Progress) -> None:
        """Put what a step brought where its stream finds it, and keep what belongs to no stream for the next report."""
        for news in (progress.steps, progress.failed):
            for request_id in news.keys() & self._mail.keys():
                self._mail[request_id].append(news[request_id])
        kept = self._unclaimed
        kept.finished.update({i: done for i, done in progress.finished.items() if i not in self._mail})
        kept.failed.update({i: failure for i, failure in progress.failed.items() if i not in self._mail})

    def with_unclaimed(self, progress: Progress) -> Progress:
        """The same, with what ended while streams were read, which is now reported."""
        before, self._unclaimed = self._unclaimed, Progress()
        return replace(progress, finished=before.finished | progress.finished, failed=before.failed | progress.failed)

    def steps(self, done: Mapping[int, Completion], recorder: Recorder) -> dict[int, Step]:
        """The new token of each streamed request; `done` are the completions of those that have finished."""
        if not self.texts:
            return {}
        cache, batch, steps = self._rows.cache, self._rows.batch, {}
        for row, request in enumerate(batch.requests):
            if request.index not in self.texts or request.index in self._faults.failed or not batch.generated[row]:
                continue
            generated = int(batch.generated[row])
            token_id, completion = int(batch.ids[row, generated - 1]), done.get(request.index)
            likeliest = batch.logprobs.get(request.index)
            text_stream = self.texts[request.index]
            try:
                text = text_stream.push(token_id, last=completion is not None, searched=batch.searches(row))
            except Exception as error:  # the tokenizer's
                self._faults.note(request, error)
                continue
            steps[request.index] = Step(
                token_id=token_id,
                text=text,
                in_thought=int(batch.answer_start[row]) == NEVER,
                slots=int(cache.host_lengths[row]),
                full_slots=len(request.prompt_ids) + generated - 1,
                eviction=recorder.take(request.index),
                logprob=None if likeliest is None else float(batch.own[row, generated - 1]),
                top_logprobs=None if likeliest is None else (likeliest or [()])[-1],
                completion=completion,
            )
        return steps
