"""One server at work: what a checked body goes through, until its answer has left or its client has."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from leanthink.engine.engine import Engine
from leanthink.engine.request import Request
from leanthink.entrypoints.openai.dispatcher import Dispatcher, EngineDeadError, Job
from leanthink.entrypoints.openai.engine_thread import EngineUpdate
from leanthink.entrypoints.openai.error_responses import APIError
from leanthink.entrypoints.openai.logs import log
from leanthink.entrypoints.openai.metrics import Metrics
from leanthink.entrypoints.openai.middleware import FACTS, KEY
from leanthink.entrypoints.openai.protocol import ChatBody, TextBody
from leanthink.entrypoints.openai.request_bodies import LARGE_BODY, give_memory_back, parse
from leanthink.entrypoints.openai.request_parsing import RequestParser
from leanthink.entrypoints.openai.responses import DONE, ResponseBuilder, event
from leanthink.entrypoints.openai.settings import Settings
from leanthink.policies import spec_of
from leanthink.utils.errors import RequestFailed

STALLED_SECONDS = 60.0  # a client that takes nothing for so long is gone
MOST_RETRY_SECONDS = 60


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Service:
    """Answers bodies; to be made on a running event loop.

    Args:
        engine: stepped by this service alone from now on.
        settings: of the server.
        on_failure: called when the engine broke: nothing can be answered any more.
    """

    def __init__(self, engine: Engine, settings: Settings, *, on_failure: Callable[[], None]) -> None:
        self.settings, self.engine = settings, engine
        stats = engine.stats()
        self._max_rows = stats.max_rows
        largest = settings.max_slots or stats.max_slots_per_request
        self.parser = RequestParser(engine.model, engine.tokenizer, settings, largest=largest)
        self.metrics = Metrics(slots=stats.slots_total)
        self._on_failure, self._loop = on_failure, asyncio.get_running_loop()
        self.dispatcher = Dispatcher(
            engine, on_update=self._note, on_token=self._time, on_failed=self._tell, on_failure=self._fail
        )
        self._parsing = ThreadPoolExecutor(1, thread_name_prefix="parser")
        self._choice_seconds = 1.0  # moving average
        self.draining = False
        self.dispatcher.start()

    # -- states ----------------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether one more choice would be refused."""
        return self.dispatcher.unfinished >= self._max_rows + self.settings.queue

    def drain(self) -> None:
        """Take no more requests, and cut those that still run after the grace time."""
        if not self.draining:
            self.draining = True
            log("draining", unfinished=self.dispatcher.unfinished, grace_seconds=self.settings.grace_seconds)
            self._loop.call_later(self.settings.grace_seconds, self.cut_all)

    def cut_all(self) -> None:
        """End everything that runs with what it has."""
        for job in self.dispatcher.jobs:
            self.dispatcher.cut(job, "shutdown")

    def stop(self) -> None:
        """End the threads."""
        self.dispatcher.stop()
        self._parsing.shutdown()

    def _note(self, update: EngineUpdate) -> None:
        self.metrics.show(update.stats)

    def _time(self, job: Job, request_id: int) -> None:
        """A token of a streamed choice has come."""
        now, last = self._loop.time(), job.last_seen.get(request_id)
        if last is None:
            self.metrics.first_token.observe(now - job.started)
        else:
            self.metrics.between.observe(now - last)
        job.last_seen[request_id] = now

    def _tell(self, failure: RequestFailed) -> None:
        self.metrics.ended(None, "error")
        log("a choice failed", level=logging.ERROR, error=failure.__cause__, why=failure.why)

    def _fail(self, error: BaseException) -> None:
        log("the engine broke", level=logging.CRITICAL, error=error)
        self._on_failure()

    # -- requests --------------------------------------------------------------------------------------------------

    async def answer(self, kind: type[ChatBody | TextBody], asked: HTTPRequest) -> Response:
        """The answer to a body of this kind; of a stream it has not begun yet.

        Raises:
            APIError: the body asks for what is not allowed, or there is no room now.
        """
        self._check_room(1)  # before anything is read for nothing
        try:
            sent = await asked.body()
        except ClientDisconnect:
            return Response(status_code=499)
        body, requests = await self._loop.run_in_executor(self._parsing, self._parse, kind, sent, asked)
        self._check_room(len(requests))
        response = ResponseBuilder(
            chat=isinstance(body, ChatBody),
            model=body.model,
            requests=requests,
            tokenizer=self.parser.tokenizer,
            tags=self.parser.tags,
            kv_events=bool(body.kv_events),
            with_usage=body.stream_options is not None and body.stream_options.include_usage,
        )
        facts: dict[str, Any] = asked.scope[FACTS]
        facts |= {"choices": len(requests), "policy": str(spec_of(requests[0].policy)), "stream": bool(body.stream)}
        if self.settings.log_text:
            facts["body"] = body.model_dump(exclude_none=True)
        job = self.dispatcher.submit(requests, streamed=bool(body.stream))
        if body.stream:
            return EventStream(self, job, response)
        return await self._document(job, response, facts, asked.receive)

    def _parse(
        self, kind: type[ChatBody | TextBody], sent: bytes, asked: HTTPRequest
    ) -> tuple[ChatBody | TextBody, list[Request]]:
        """From bytes to requests, in the thread for parsing: neither must hold up the streams."""
        try:
            body = parse(kind, sent, asked.headers.get("content-type", ""))
            return body, self.parser.parse(body, self._salt(body, asked.scope[KEY]))
        finally:
            if len(sent) > LARGE_BODY:
                give_memory_back()

    def _check_room(self, choices: int) -> None:
        """Raise APIError where no more choices are taken, or not so many."""
        if self.draining:
            raise APIError(503, "the server is going down: ask another one", code="shutting_down",
                          headers={"retry-after": str(math.ceil(self.settings.grace_seconds) or 1)})  # fmt: skip
        if self.dispatcher.unfinished + choices > self._max_rows + self.settings.queue:
            raise APIError(429, f"the queue is full ({self.settings.queue} wait): try again later", code="queue_full",
                          headers={"retry-after": str(self._retry_seconds())})  # fmt: skip

    def _salt(self, body: ChatBody | TextBody, key: int | None) -> str | None:
        """The body's own, behind that of its API key where each key has one."""
        return f"{key}:{body.cache_salt or ''}" if self.settings.cache_salt_per_key else body.cache_salt

    async def _document(self, job: Job, response: ResponseBuilder, facts: dict[str, Any], receive: Receive) -> Response:
        try:
            async with self.follow(job, response, facts, receive):
                while not response.note(await job.updates()):
                    pass
        except ClientGone:
            return Response(status_code=499)  # nobody reads it; the log says so
        except (EngineDeadError, RequestFailed) as error:
            raise _broken(error) from None
        if len(response.completions) < len(job.ids):
            status, why = (503, "the server is going down") if job.reason == "shutdown" else (504, "time is up")
            raise APIError(status, f"{why}, and not every choice has begun: try again", code=job.reason)
        return JSONResponse(response.document())

    @asynccontextmanager
    async def follow(
        self, job: Job, response: ResponseBuilder, facts: dict[str, Any], receive: Receive
    ) -> AsyncGenerator[None, None]:
        """Inside, a client that leaves fails the job with ClientGone, and the timeout cuts it; then slots are freed."""
        watch = asyncio.create_task(_until_gone(receive))
        watch.add_done_callback(lambda watch: None if watch.cancelled() else job.fail(ClientGone()))
        timer = self._loop.call_later(self.settings.timeout_seconds, self.dispatcher.cut, job, "timeout")
        try:
            yield
        finally:
            watch.cancel()
            timer.cancel()
            gone = len(job.open)
            response.note(job.unread())  # what had ended before the job failed counts
            self.dispatcher.abandon(job)
            self._sum_up(job, response, facts, gone)

    def _sum_up(self, job: Job, response: ResponseBuilder, facts: dict[str, Any], gone: int) -> None:
        """Count what has ended, and tell the log."""
        for choice, reason in response.reasons.items():
            self.metrics.ended(response.completions.get(choice), reason)
        for _ in range(gone):
            self.metrics.ended(None, "gone")
        self._choice_seconds += 0.1 * (self._loop.time() - job.started - self._choice_seconds)
        spent = response.usage
        facts |= {name: spent[name] for name in ("prompt_tokens", "completion_tokens")}
        facts |= {"finish_reasons": sorted(response.reasons.values()), "gone": gone, **spent["kv"]}
        if self.settings.log_text:
            facts["texts"] = [completion.text for completion in response.completions.values()]

    def _retry_seconds(self) -> int:
        """About when the first of those that wait will have gone."""
        each = self._choice_seconds / self._max_rows
        return max(1, min(MOST_RETRY_SECONDS, math.ceil(each * (1 + self.settings.queue))))


class EventStream(Response):
    """A stream of server-sent events; what came while the client was slow goes out together."""

    def __init__(self, service: Service, job: Job, response: ResponseBuilder) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._service, self._job, self._response = service, job, response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, as it comes."""

        async def write(data: bytes, *, more: bool = True) -> None:
            async with asyncio.timeout(STALLED_SECONDS):
                await send({"type": "http.response.body", "body": data, "more_body": more})

        service, response, facts = self._service, self._response, scope[FACTS]
        try:
            async with service.follow(self._job, response, facts, receive):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await write(response.opening())
                ended = False
                while not ended:
                    updates = await self._job.updates()
                    ended = response.note(updates)
                    if data := response.chunks(updates):
                        await write(data)
            await write(response.end(), more=False)
        except (EngineDeadError, RequestFailed) as error:
            await write(event(_broken(error).document()) + DONE, more=False)
        except (ClientGone, TimeoutError):
            pass


def _broken(error: EngineDeadError | RequestFailed) -> APIError:
    """What whoever asked is told: an exception's own words are for the log alone."""
    if isinstance(error, EngineDeadError):
        return APIError(500, "the engine broke while it worked on this: the log knows why")
    why = "an error in the engine: the log knows it" if error.__cause__ is not None else error.why
    return APIError(500, f"this request failed, and others go on: {why}", code="request_failed")


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
