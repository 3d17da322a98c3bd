"""Connections, bounded in number and in the time that a request may take to come: uvicorn bounds neither."""

from __future__ import annotations

import asyncio
import errno
import json
import resource
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from leanthink.entrypoints.openai.error_responses import APIError
from leanthink.entrypoints.openai.logs import RateLimitedLog

RESERVED = 256  # descriptors for all else, and for connections that come in between two turns of the event loop
BACKLOG = RESERVED // 2  # connections accepted in one turn
OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def raise_descriptors(connections: int) -> int:
    """Let this process open as many descriptors as so many connections need; how many connections there is room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    wanted = connections + RESERVED
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(connections, max(1, soft - RESERVED))


class Connections:
    """What all connections of a server share.

    Args:
        limit: most of them at a time. One more costs the one that has waited longest for its request; where all have
            theirs, it is refused with 503.
        read_seconds: within which a request must have come whole, from when its connection was free for it.
    """

    def __init__(self, *, limit: int, read_seconds: float) -> None:
        self.limit, self.read_seconds = limit, read_seconds
        self._waiting: dict[Connection, None] = {}  # without a whole request, the one that waits longest first
        self._full = RateLimitedLog("as many connections as are allowed")
        self._late = RateLimitedLog("requests did not come whole in time")
        self._out = RateLimitedLog("no descriptor is left for another connection")

    def __call__(self, **uvicorn: Any) -> Connection:
        """A new one, as uvicorn asks for it."""
        return Connection(self, **uvicorn)

    def make_room(self, open_now: int) -> bool:
        """Whether there is room for the newest of `open_now` connections, if need be in place of one that waits."""
        if open_now <= self.limit:
            return True
        self._full.tell(limit=self.limit)
        return self._drop_one()

    def _drop_one(self) -> bool:
        """Close the connection that has waited longest for a request; False if none waits."""
        longest = next(iter(self._waiting), None)
        if longest is not None:
            longest.transport.abort()
            self.not_waiting(longest)
        return longest is not None

    def waiting(self, connection: Connection) -> None:
        """It waits for a request."""
        self._waiting[connection] = None

    def not_waiting(self, connection: Connection) -> None:
        """It has its request, or is gone."""
        self._waiting.pop(connection, None)

    def late(self) -> None:
        """Tell the log of a request that did not come in time."""
        self._late.tell(read_timeout_seconds=self.read_seconds)

    def on_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle an error of the event loop, which tells hundreds of times a second that no descriptor is left."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in OUT_OF_RESOURCES:
            self._out.tell(why=str(error))
            self._drop_one()
        else:
            loop.default_exception_handler(context)


class Connection(H11Protocol):
    """One connection: uvicorn's, closed if a request does not come whole in time."""

    def __init__(self, connections: Connections, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._all = connections
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """It is open."""
        super().connection_made(transport)
        if not self._all.make_room(len(self.connections)):
            self.app = _too_many
        self._watch()

    def data_received(self, data: bytes) -> None:
        """A piece of a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """It is free for the next request."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._rest()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Let the time run while there is no whole request."""
        cycle = self.cycle
        has_request = cycle is not None and not cycle.response_complete and not cycle.more_body
        if has_request or self.transport.is_closing():
            self._rest()
        elif self._timer is None:
            self._timer = self.loop.call_later(self._all.read_seconds, self._give_up)
            self._all.waiting(self)

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._all.not_waiting(self)

    def _give_up(self) -> None:
        self._timer = None
        self._all.late()
        if self.cycle is not None and not self.cycle.response_started:
            self.transport.write(_late_answer(self._all.read_seconds))
        self.transport.close()


async def _too_many(scope: Any, receive: Any, send: Any) -> None:
    """Answer one request beyond the bound."""
    error = APIError(503, "too many connections: try again later", code="too_many_connections",
                      headers={"retry-after": "1", "connection": "close"})  # fmt: skip
    await error.response()(scope, receive, send)


def _late_answer(seconds: float) -> bytes:
    """What a client is told whose body does not come: the application does not have the request yet."""
    error = APIError(408, f"the request did not come whole within {seconds:g} seconds", code="request_timeout")
    body = json.dumps(error.document()).encode()
    head = "HTTP/1.1 408 Request Timeout", "content-type: application/json", f"content-length: {len(body)}"
    return "\r\n".join((*head, "connection: close", "", "")).encode() + body
