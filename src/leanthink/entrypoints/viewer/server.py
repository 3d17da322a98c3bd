"""Serves the viewer and some files of traces to a browser, with the standard library alone.

`/viewer/` is the page, `/viewer/traces.json` the list of traces, `/viewer/traces/N.json` the trace with number N.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from leanthink.data.traces.trace import Trace, from_line, trace_places
from leanthink.utils.errors import LeanThinkError, UsageError
from leanthink.utils.hosts import allowed_names, is_allowed, not_allowed

PAGE = Path(__file__).parent / "static"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
JSON = "application/json"
SHOWS = "traces"  # the query by which the page knows that there is a list of traces beside it
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One trace of the list, and where its line lies: `start` and `size` are bytes."""

    path: Path
    start: int
    size: int
    about: dict[str, object]

    def line(self) -> bytes:
        """Its line, as it is in the file; raises UsageError if the file has changed."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            line = file.read(self.size)
        try:
            same = from_line(line).key == self.about["key"]
        except UsageError:
            same = False
        if not same:
            raise UsageError(f"{self.path} has changed since it was read: start `leanthink view` again")
        return line


def list_traces(paths: Iterable[str | os.PathLike[str]]) -> list[Listed]:
    """All traces of these files, each line checked once.

    Raises:
        UsageError: there is no such file, or no trace in any of them.
        DamagedFile: a line cannot be read; the message names file and line.
    """
    given = [Path(path) for path in paths]
    listed: list[Listed] = []
    for path in given:
        for place in trace_places(path):
            about = {"number": len(listed), "file": path.name, **_about(place.trace)}
            listed.append(Listed(path=path, start=place.start, size=place.size, about=about))
    if not listed:
        raise UsageError(f"no trace in {', '.join(map(str, given))}: write some with `leanthink generate --trace`")
    return listed


def _about(trace: Trace) -> dict[str, object]:
    return {
        "key": trace.key,
        "problem": trace.problem,
        "policy": trace.policy,
        "tokens": len(trace.token_ids),
        "correct": trace.correct,
    }


def make_server(
    listed: Sequence[Listed], *, host: str, port: int, allowed_hosts: Sequence[str] = ()
) -> ThreadingHTTPServer:
    """A server that is bound and not yet running; port 0 is any free one, `allowed_hosts` as of `utils.hosts`.

    Raises:
        UsageError: the address cannot be bound.
    """
    try:
        return ThreadingHTTPServer((host, port), partial(_Request, listed, allowed_names(host, allowed_hosts)))
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"cannot listen on {host}:{port} ({error}): give another --port, 0 for any free one, or another --host"
        ) from None


def address_of(server: ThreadingHTTPServer) -> str:
    """Where a browser finds the page."""
    host, port = server.server_address[:2]
    return f"http://{host if isinstance(host, str) else host.decode()}:{port}/viewer/?{SHOWS}"


class _Request(BaseHTTPRequestHandler):
    """Answers one GET: a file of the page, the list or a trace."""

    server_version, sys_version = "leanthink", ""

    def __init__(self, listed: Sequence[Listed], names: Sequence[str], *connection: object) -> None:
        self.listed, self.names = listed, names
        super().__init__(*connection)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Send what the path names."""
        asked_for = self.headers.get("Host", "")
        if not is_allowed(asked_for, self.names):
            self._send(HTTPStatus.FORBIDDEN, "text/plain; charset=utf-8", not_allowed(asked_for).encode())
            return
        try:
            address = urlsplit(self.path)
        except ValueError as error:
            self._send(HTTPStatus.BAD_REQUEST, "text/plain; charset=utf-8", f"no address: {error}".encode())
            return
        path = address.path
        if path in ("/", "/viewer") or (path == "/viewer/" and address.query != SHOWS):
            self._send(HTTPStatus.FOUND, "text/plain", b"", {"Location": f"/viewer/?{SHOWS}"})
            return
        find = self._answer(path)
        if find is None:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is nothing here; the page is /viewer/")
            return
        kind, read = find
        try:
            self._send(HTTPStatus.OK, kind, read())
        except (LeanThinkError, FileNotFoundError) as error:
            self._send(HTTPStatus.GONE, "text/plain; charset=utf-8", str(error).encode())

    def _answer(self, path: str) -> tuple[str, Callable[[], bytes]] | None:
        name = path.removeprefix("/viewer/") or "index.html"
        if name == "traces.json":
            return JSON, lambda: json.dumps([one.about for one in self.listed]).encode()
        number = name.removeprefix("traces/").removesuffix(".json")
        is_number = number.isascii() and number.isdigit() and len(number) <= len(str(len(self.listed)))
        if name == f"traces/{number}.json" and is_number and int(number) < len(self.listed):
            return JSON, self.listed[int(number)].line
        file = next((file for file in PAGE.iterdir() if file.name == name and file.suffix in KINDS), None)
        return None if file is None else (KINDS[file.suffix], file.read_bytes)

    def _send(self, status: HTTPStatus, kind: str, body: bytes, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, **(more or {}), "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: the reader of the page sees what goes wrong."""
