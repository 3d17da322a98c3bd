"""The outermost layer: who may come in, how much they may bring, and one line of log and metrics for each request."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leanthink.entrypoints.openai.error_responses import APIError
from leanthink.entrypoints.openai.logs import log
from leanthink.entrypoints.openai.metrics import Metrics
from leanthink.entrypoints.viewer.server import HEADERS
from leanthink.utils.hosts import is_allowed, not_allowed

KEY = "leanthink.key"  # where in a request's scope its API key's number is, as keys are given; None without keys
FACTS = "leanthink.facts"  # where in a request's scope whoever answers it leaves what the log shall say
DRAINED_BYTES = 2**28  # of a body that is too large: read and dropped, so that its sender gets to read the refusal
DRAIN_SECONDS = 5.0


def key_number(given: str, keys: Sequence[str]) -> int | None:
    """Which of the keys an Authorization header bears; takes as long for every wrong one, and for every key."""
    scheme, _, token = given.partition(" ")
    digest = sha256(token.strip().encode()).digest()
    found = [hmac.compare_digest(digest, sha256(key.encode()).digest()) for key in keys]
    return found.index(True) if any(found) and scheme.lower() == "bearer" else None


@dataclass
class _Request:
    """What is known of a request while it is answered."""

    scope: Scope
    id: str
    started: float = field(default_factory=time.perf_counter)
    status: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


class ServerMiddleware:
    """Wraps the application.

    Args:
        app: it.
        hosts: names that are answered for, as `leanthink.utils.hosts.allowed_names` gives them.
        keys: one of which a request under /v1 must bear; empty: none.
        max_body_bytes: of a body; a larger one is refused with 413, if possible before it is read.
        metrics: counts.
        paths: that are counted by name; all others together are "other".
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Sequence[str],
        keys: Sequence[str],
        max_body_bytes: int,
        metrics: Metrics,
        paths: Sequence[str],
    ) -> None:
        self._app, self._hosts, self._keys, self._most = app, hosts, keys, max_body_bytes
        self._metrics, self._paths = metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(scope=scope, id=secrets.token_hex(8))
        scope[FACTS] = request.facts
        error: Exception | None = None
        try:
            error = self._error_for(scope)
            answer = self._app if error is None else error.response()
            if error is not None and error.status == 413:
                await _drain(receive)
            await answer(scope, self._counted(receive), self._marked(request, send))
        except Exception as caught:  # the edge: the application has answered with 500 by now
            error, request.status = caught, request.status or 500
        self._tell(request, error)

    def _error_for(self, scope: Scope) -> APIError | None:
        headers = Headers(scope=scope)
        if not is_allowed(headers.get("host", ""), self._hosts):
            return APIError(403, not_allowed(headers.get("host", "")), code="host_not_allowed")
        scope[KEY] = key_number(headers.get("authorization", ""), self._keys)
        if self._keys and scope["path"].startswith("/v1") and scope[KEY] is None:
            wanted = "send one of this server's keys as `Authorization: Bearer KEY`"
            return APIError(401, f"the API key is missing or wrong: {wanted}", code="invalid_api_key",
                           headers={"www-authenticate": "Bearer"})  # fmt: skip
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._most:
            return self._too_large()
        return None

    def _too_large(self) -> APIError:
        told = f"the body is too large: at most {self._most} bytes are allowed"
        return APIError(413, told, code="body_too_large", headers={"connection": "close"})

    def _counted(self, receive: Receive) -> Receive:
        """`receive`, until more than is allowed has come."""
        total = 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self._most:
                await _drain(receive)
                raise self._too_large()
            return message

        return counted

    def _marked(self, request: _Request, send: Send) -> Send:
        """`send`, with our headers, noting the status."""

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                headers["x-request-id"], headers["x-content-type-options"] = request.id, "nosniff"
                if request.scope["path"].startswith("/viewer"):
                    headers.update(HEADERS)
            await send(message)

        return marked

    def _tell(self, request: _Request, error: Exception | None) -> None:
        path, seconds = request.scope["path"], time.perf_counter() - request.started
        named = path if path in self._paths else "other"
        self._metrics.requests.labels(named, str(request.status)).inc()
        if path.startswith("/v1/"):
            self._metrics.seconds.observe(seconds)
        told = {"id": request.id, "method": request.scope["method"], "path": path[:200], "status": request.status}
        level = logging.INFO if request.status < 500 else logging.ERROR
        log("request", level=level, error=error, **told, seconds=round(seconds, 4), **request.facts)


async def _drain(receive: Receive) -> None:
    """Read and drop what a client is still sending: cut off in the middle, it would not see the error."""
    left = DRAINED_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
