"""Connections that bring nothing, or not in time, and more of them than there is room for."""

from __future__ import annotations

import http.client
import json
import os
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from server import Server, serving

LIMIT, READ_SECONDS = 12, 1.0
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
HALF_OPEN = {"nothing": b"", "half a head": HEAD, "half a body": HEAD + b'content-length: 100\r\n\r\n{"model"'}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Server]:
    flags = ["--model", folder, "--name", "tiny", "--policy", "window", "--kv-gib", 0.1, "--max-num-seqs", LIMIT]
    bounds = ["--limit-concurrency", LIMIT, "--read-timeout", READ_SECONDS, "--max-new-tokens", 2000]
    with serving(tmp_path_factory.mktemp("connections") / "log", *flags, *bounds) as server:
        yield server


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=20)


def stream(server: Server) -> socket.socket:
    """A stream that has begun, on a connection of its own."""
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
    line = connect(server)
    line.sendall(HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    assert line.recv(12) == b"HTTP/1.1 200"
    return line


def descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def until_closed(line: socket.socket) -> bytes:
    """All that comes before the other side closes."""
    found = b""
    while piece := line.recv(10_000):
        found += piece
    return found


def test_an_answer_on_a_connection_that_is_kept_does_not_wait_for_an_acknowledgement(server: Server) -> None:
    kept = http.client.HTTPConnection("127.0.0.1", int(server.url.rsplit(":", 1)[1]), timeout=20)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        kept.request("GET", "/health")
        kept.getresponse().read()
        seconds.append(time.perf_counter() - start)
    kept.close()
    assert statistics.median(seconds) < 0.02, "40 ms is what an acknowledgement is delayed by"


@pytest.mark.parametrize("sent", HALF_OPEN.values(), ids=HALF_OPEN)
def test_a_request_that_does_not_come_whole_is_given_up(server: Server, sent: bytes) -> None:
    with connect(server) as line:
        line.sendall(sent)
        start = time.monotonic()
        told = until_closed(line)
        assert READ_SECONDS / 2 < time.monotonic() - start < 5 * READ_SECONDS
    if sent == HALF_OPEN["half a body"]:
        head, _, body = told.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert json.loads(body)["error"]["code"] == "request_timeout"
    else:
        assert told == b""


def test_a_request_that_comes_drop_by_drop_is_given_up_too_also_behind_another(server: Server) -> None:
    with connect(server) as line:
        line.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b" 200 " in line.recv(10_000)
        start = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - start < 10 * READ_SECONDS:
                line.sendall(b"G")
                time.sleep(0.1)
        assert time.monotonic() - start < 5 * READ_SECONDS


def test_an_answer_that_takes_longer_than_a_request_may_is_not_cut(server: Server) -> None:
    with stream(server) as line:
        start = time.monotonic()
        told = until_closed(line)
        assert time.monotonic() - start > 1.5 * READ_SECONDS, "give a larger --max-new-tokens"
    assert told.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_more_connections_than_are_allowed_cost_those_that_bring_nothing(server: Server) -> None:
    with ExitStack() as lines:
        streams = [lines.enter_context(stream(server)) for _ in range(3)]
        for i in range(5 * LIMIT):
            line = lines.enter_context(connect(server))
            line.sendall(list(HALF_OPEN.values())[i % 3])
        start = time.monotonic()
        assert server.request("/health") == (200, {"status": "ok"})
        assert time.monotonic() - start < 0.5
        assert descriptors(server) < LIMIT + 20
        assert all(until_closed(line).endswith(b"0\r\n\r\n") for line in streams)
    told = [line for line in server.lines() if line["event"] == "as many connections as are allowed"]
    assert [(line["level"], line["limit"]) for line in told] == [("warning", LIMIT)], "told once a minute"


def test_where_all_connections_are_at_work_one_more_is_told_to_come_again(server: Server) -> None:
    with ExitStack() as lines:
        for _ in range(LIMIT):
            lines.enter_context(stream(server))
        status, document = server.request("/health")
        assert (status, document["error"]["code"]) == (503, "too_many_connections")
    deadline = time.monotonic() + 20
    while server.request("/health")[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_descriptors_one_line_is_logged_and_half_open_connections_make_room(server: Server) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    before = len(server.lines())
    with ExitStack() as lines:
        most = descriptors(server) + LIMIT // 2  # reached before the bound on connections is
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (most, limits[1]))
        for _ in range(LIMIT):
            lines.enter_context(connect(server))
        start = time.monotonic()
        assert server.request("/health")[0] == 200
        assert time.monotonic() - start < 5
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
    told = [line for line in server.lines()[before:] if line["level"] == "warning"]
    assert [line["event"] for line in told] == ["no descriptor is left for another connection"]
    assert "Traceback" not in server.log.read_text()
