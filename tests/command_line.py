"""Runs the command line for tests: as a process, and what a refusal must look like."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "110"}


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command in a process of its own; a context manager.

    A background job of a shell ignores Ctrl-C and hands that on; the command is started as if from a terminal.
    """
    command = [sys.executable, "-m", "leanthink", *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, text=True, env=ENVIRONMENT, preexec_fn=hears, **pipes)


def leanthink(*arguments: object, given: str = "") -> SimpleNamespace:
    """Exit code, standard output and standard error of one command line."""
    with start(*arguments) as process:
        out, err = process.communicate(given, timeout=120)
    return SimpleNamespace(code=process.returncode, out=out, err=err)


def refused(result: SimpleNamespace, code: int, *words: str) -> None:
    """The result is one line that says these words, on standard error only, without a traceback."""
    assert result.code == code, result.err
    assert result.out == ""
    assert result.err.startswith("leanthink: ")
    assert result.err.count("\n") == 1, result.err
    for word in words:
        assert word in result.err


def on_terminal(
    *arguments: object, rows: int = 24, columns: int = 100, piped_out: bool = False, **variables: str
) -> Any:
    """The command with a terminal for standard output and error: exit code, what the terminal got, and the pipe.

    With `piped_out` standard output goes into a pipe instead. `variables` are added to its environment.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    known = {name: value for name, value in ENVIRONMENT.items() if name not in ("COLUMNS", "NO_COLOR")}
    environment = known | {"TERM": "xterm-256color"} | variables
    command = [sys.executable, "-m", "leanthink", *map(str, arguments)]
    out = subprocess.PIPE if piped_out else theirs
    with subprocess.Popen(command, stdin=theirs, stdout=out, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # what reading says when the other end is closed
            while piece := os.read(ours, 65536):
                shown += piece
        os.close(ours)
        data = process.stdout.read().decode() if process.stdout is not None else ""
    return SimpleNamespace(code=process.returncode, shown=shown.decode().replace("\r\n", "\n"), out=data)
