"""What `leanthink view` serves, to whom, and what it refuses."""

from __future__ import annotations

import http.client
import json
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from command_line import leanthink, refused, start
from leanthink.data.traces.trace import TraceWriter, to_line
from leanthink.entrypoints.viewer.server import KINDS, PAGE, list_traces, make_server
from leanthink.utils.errors import DamagedFile, UsageError
from recorded import TRACES


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, traces in zip(paths, (TRACES[:3], TRACES[3:5]), strict=True):
        with TraceWriter(path) as writer:
            for trace in traces:
                writer.write(trace)
    return paths


@pytest.fixture
def port(files: list[Path]) -> Iterator[int]:
    with make_server(list_traces(files), host="127.0.0.1", port=0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def get(port: int, path: str, host: str = "localhost") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def test_all_traces_of_all_files_are_listed_and_served_as_they_are_written(port: int) -> None:
    status, headers, body = get(port, "/viewer/traces.json")
    listed = json.loads(body)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert [(one["number"], one["file"], one["key"]) for one in listed] == [
        (index, "a.jsonl" if index < 3 else "b.jsonl", trace.key) for index, trace in enumerate(TRACES[:5])
    ]
    for index, trace in enumerate(TRACES[:5]):
        assert get(port, f"/viewer/traces/{index}.json")[2].decode().strip() == to_line(trace)


@pytest.mark.parametrize("path", ["/", "/viewer", "/viewer/", "/viewer/?x"])
def test_the_bare_address_leads_to_the_page(port: int, path: str) -> None:
    status, headers, _ = get(port, path)
    assert (status, headers["Location"]) == (302, "/viewer/?traces")


def test_every_file_of_the_page_is_served_with_its_kind_and_a_strict_policy(port: int) -> None:
    for file in [*PAGE.iterdir(), PAGE / ""]:
        status, headers, body = get(port, f"/viewer/{file.name if file.is_file() else '?traces'}")
        page = file if file.is_file() else PAGE / "index.html"
        assert (status, body, headers["Content-Type"]) == (200, page.read_bytes(), KINDS[page.suffix])
        assert "default-src 'none'; script-src 'self'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/viewer/../server.py",
        "/viewer/..%2fserver.py",
        "/viewer/%2e%2e/server.py",
        "//etc/passwd",
        "/viewer//etc/passwd",
        "/viewer/traces/5.json",
        "/viewer/traces/-1.json",
        "/viewer/traces/².json".encode().decode("latin-1"),
        "/viewer/traces/x.json",
        f"/viewer/traces/{'1' * 5000}.json",
        "/traces.json",
        "/viewer/nothing.js",
    ],
)
def test_nothing_else_is_served(port: int, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection._validate_path = lambda url: None  # type: ignore[attr-defined] # sent as it is
    connection._encode_request = lambda request: request.encode("latin-1")  # type: ignore[attr-defined]
    connection.request("GET", path)
    assert connection.getresponse().status == 404
    connection.close()


def test_a_foreign_name_for_this_machine_gets_no_trace(port: int) -> None:
    for host in (
        "evil.example",
        "evil.example:80",
        "",
        "127.0.0.1.evil.example",
        "[::1",
        "[",
        "localhost/@evil.example",
    ):
        assert get(port, "/viewer/traces/0.json", host)[0] == 403
    for host in ("localhost", f"127.0.0.1:{port}", "[::1]:80"):
        assert get(port, "/viewer/traces/0.json", host)[0] == 200


@pytest.mark.parametrize("change", [lambda path: path.write_text("other\n"), lambda path: path.unlink()])
def test_a_file_that_has_changed_since_is_said_to_have(port: int, files: list[Path], change: Any) -> None:
    change(files[0])
    status, _, body = get(port, "/viewer/traces/1.json")
    assert status == 410
    assert b"a.jsonl" in body
    assert get(port, "/viewer/traces/3.json")[0] == 200


def test_a_taken_port_and_files_without_traces_are_usage_errors(port: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"cannot listen on 127.0.0.1:{port}.*--port"):
        make_server([], host="127.0.0.1", port=port)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UsageError, match=r"no trace in .*empty.jsonl"):
        list_traces([tmp_path / "empty.jsonl"])
    with pytest.raises(UsageError, match="no file of traces"):
        list_traces([tmp_path / "none.jsonl"])
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(DamagedFile, match=r"bad.jsonl, line 1"):
        list_traces([tmp_path / "bad.jsonl"])


def test_the_command_serves_until_ctrl_c_and_then_has_succeeded(files: list[Path]) -> None:
    with start("view", *files, "--port", 0, "--no-open", "--json") as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert [trace["policy"] for trace in told["traces"]] == ["full"] * 5
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/viewer/\?traces", told["url"])
        with urlopen(told["url"]) as page:
            assert page.read() == (PAGE / "index.html").read_bytes()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "leanthink: done\n")


def test_an_open_address_is_warned_of(files: list[Path]) -> None:
    with start("view", files[0], "--host", "0.0.0.0", "--port", 0, "--no-open") as process:
        assert process.stderr is not None
        assert "3 traces at http://0.0.0.0:" in process.stderr.readline()
        assert "whoever reaches it can read" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def test_the_command_refuses_what_it_cannot_show(tmp_path: Path) -> None:
    refused(leanthink("view", tmp_path / "none.jsonl"), 2, "no file of traces", "leanthink collect")


def test_the_page_needs_nothing_from_elsewhere_and_nothing_inline() -> None:
    for file in PAGE.iterdir():
        text = file.read_text()
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text), file
        assert "innerHTML" not in text, file
        assert "eval(" not in text, file
    page = (PAGE / "index.html").read_text()
    assert re.findall(r"<script[^>]*>([^<]*)</script>", page) == [""]
    assert not re.findall(r"<style|\sstyle=|\son\w+=", page)
