"""All HTTP requests with unfinished choices: what goes to the engine's thread, and to whom belongs what comes back.

Everything here lives on the event loop; only what `_soon` returns may be called from another thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from leanthink.engine.engine import Engine
from leanthink.engine.outputs import Completion, Step
from leanthink.engine.request import Request
from leanthink.entrypoints.openai.engine_thread import EngineCommand, EngineThread, EngineUpdate
from leanthink.utils.errors import RequestFailed


class ChoiceUpdate(NamedTuple):
    """What a job gets: a token of a choice, a finished choice, or both; `reason` is why it was cut, if it was."""

    choice: int
    step: Step | None
    completion: Completion | None
    reason: str | None

    @property
    def is_last(self) -> bool:
        """Whether nothing more comes for this choice."""
        return self.completion is not None or self.reason is not None


class EngineDeadError(Exception):
    """An error that nobody planned for ended the engine's thread: nothing more will come."""


@dataclass(eq=False)
class Job:
    """One HTTP request's choices; lives on the event loop."""

    ids: range
    streamed: bool
    started: float
    reason: str | None = None  # why it is being cut
    open: set[int] = field(default_factory=set)  # ids that are not finished
    last_seen: dict[int, float] = field(default_factory=dict)  # when the latest token of each choice came
    _mail: list[ChoiceUpdate] = field(default_factory=list)
    _waiter: asyncio.Future[None] | None = None
    _error: Exception | None = None

    async def updates(self) -> list[ChoiceUpdate]:
        """All that came since the last call, at least one. Raises what the job was failed with."""
        if not self._mail and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._error is not None:
            raise self._error
        return self.unread()

    def unread(self) -> list[ChoiceUpdate]:
        """All that came since the last call, if anything, whether or not the job has failed."""
        mail, self._mail = self._mail, []
        return mail

    def put(self, update: ChoiceUpdate) -> None:
        """Deliver."""
        self._mail.append(update)
        self._ring()

    def fail(self, error: Exception) -> None:
        """Nothing more will come, for this reason."""
        self._error = error
        self._ring()

    def _ring(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Dispatcher:
    """All jobs, on the event loop: hands requests to the engine, and what it brings to the jobs.

    Args:
        engine: to be stepped.
        on_update: called with what each step brought, after it was delivered.
        on_token: called for each token of a streamed choice, with the job and the choice's id.
        on_failed: called for each choice that failed, before its job hears of it.
        on_failure: called when the engine broke.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        on_update: Callable[[EngineUpdate], None],
        on_token: Callable[[Job, int], None],
        on_failed: Callable[[RequestFailed], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_update, self._on_token, self._on_failure = on_update, on_token, on_failure
        self._on_failed = on_failed
        self._jobs: dict[int, Job] = {}
        self._next_id = 0
        self.broken: BaseException | None = None
        self._thread = EngineThread(engine, tell=self._soon(self._take), fail=self._soon(self._break))

    def _soon(self, call: Callable[..., None]) -> Callable[..., None]:
        """`call`, in the event loop's thread; nothing once that has ended."""

        def hand_over(what: object) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(call, what)

        return hand_over

    def start(self) -> None:
        """Begin stepping."""
        self._thread.start()

    def stop(self) -> None:
        """End the engine's thread."""
        self._thread.stop()

    @property
    def unfinished(self) -> int:
        """Choices that wait or run."""
        return len(self._jobs)

    @property
    def jobs(self) -> set[Job]:
        """Those with unfinished choices."""
        return set(self._jobs.values())

    def submit(self, requests: Sequence[Request], *, streamed: bool) -> Job:
        """Queue the choices of one HTTP request; the job fails with RequestFailed if one of them does."""
        ids = range(self._next_id, self._next_id + len(requests))
        self._next_id = ids.stop
        job = Job(ids=ids, streamed=streamed, started=self._loop.time(), open=set(ids))
        if self.broken is not None:
            job.fail(EngineDeadError())
            return job
        for request_id, request in zip(ids, requests, strict=True):
            self._jobs[request_id] = job
            self._thread.send(EngineCommand("add", request_id, replace(request, index=request_id), streamed))
        return job

    def abandon(self, job: Job) -> None:
        """Nobody waits for this job any more: free its slots."""
        for request_id in job.open:
            self._jobs.pop(request_id, None)
            self._thread.send(EngineCommand("cancel", request_id))
        job.open.clear()

    def cut(self, job: Job, reason: str) -> None:
        """End this job with what it has; it will say why."""
        if job.reason is None:
            job.reason = reason
            for request_id in job.open:
                self._thread.send(EngineCommand("cut", request_id))

    def _take(self, gathered: list[EngineUpdate]) -> None:
        for update in gathered:
            self._deliver(update)
        self._loop.call_soon(self._thread.taken)  # behind all who were woken: they have written by then

    def _deliver(self, update: EngineUpdate) -> None:
        for request_id, step in update.progress.steps.items():
            job = self._jobs.get(request_id)
            if job is not None:
                self._on_token(job, request_id)
                self._put(job, request_id, step, step.completion, None)
        for request_id, completion in update.progress.finished.items():
            job = self._jobs.get(request_id)
            if job is not None and not job.streamed:
                self._put(job, request_id, None, completion, None)
        for request_id, cut in update.cut.items():
            job = self._jobs.get(request_id)
            if job is not None:
                self._put(job, request_id, None, cut, job.reason)
        for request_id, failure in (update.refused | update.progress.failed).items():
            job = self._jobs.get(request_id)
            if job is not None:
                job.open.discard(request_id)
                del self._jobs[request_id]
                self._on_failed(failure)
                job.fail(failure)
        self._on_update(update)

    def _put(
        self, job: Job, request_id: int, step: Step | None, completion: Completion | None, reason: str | None
    ) -> None:
        update = ChoiceUpdate(request_id - job.ids.start, step, completion, reason)
        if update.is_last:
            job.open.discard(request_id)
            del self._jobs[request_id]
        job.put(update)

    def _break(self, error: BaseException) -> None:
        self.broken = error
        for job in self.jobs:
            job.fail(EngineDeadError())
        self._jobs.clear()
        self._on_failure(error)
