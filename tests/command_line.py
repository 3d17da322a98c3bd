"""Runs the command line for tests: as a process or on a terminal, and what a refusal must look like."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from leanthink.entrypoints import cli

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "110"}


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command in a process of its own; a context manager.

    A background job of a shell ignores Ctrl-C and hands that on; the command is started as if from a terminal. Its
    environment has what Ray adds to that of a process that starts a cluster.
    """
    command = [sys.executable, "-m", "leanthink", *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, text=True, env={**os.environ, **ENVIRONMENT}, preexec_fn=hears, **pipes)


def leanthink(*arguments: object) -> SimpleNamespace:
    """Exit code, standard output and standard error of one command line."""
    with start(*arguments) as process:
        out, err = process.communicate(timeout=120)
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
    """The command in this process, with a terminal in place of its descriptors: exit code, what that got, and the pipe.

    With `piped_out` standard output goes into a pipe instead. `variables` are added to its environment.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    pipe, piped = os.pipe()
    known = {name: value for name, value in ENVIRONMENT.items() if name not in ("COLUMNS", "NO_COLOR")}
    environment = known | {"TERM": "xterm-256color"} | variables
    kept = [os.dup(descriptor) for descriptor in range(3)]
    with ThreadPoolExecutor(2) as threads:
        shown, out = threads.submit(_all_of, ours), threads.submit(_all_of, pipe)
        for descriptor, end in enumerate((theirs, piped if piped_out else theirs, theirs)):
            os.dup2(end, descriptor)
        os.close(theirs)
        os.close(piped)
        try:
            with (
                open(1, "w", closefd=False) as stdout,
                open(2, "w", closefd=False) as stderr,
                redirect_stdout(stdout),
                redirect_stderr(stderr),
                patch.dict(os.environ, environment, clear=True),
            ):
                code = cli.run([str(argument) for argument in arguments])
        finally:
            for descriptor, end in enumerate(kept):
                os.dup2(end, descriptor)
                os.close(end)
    return SimpleNamespace(code=code, shown=shown.result().replace("\r\n", "\n"), out=out.result())


def _all_of(descriptor: int) -> str:
    """What comes until all other ends are closed."""
    found = b""
    with suppress(OSError):  # what reading says when the other end of a terminal is closed
        while piece := os.read(descriptor, 65536):
            found += piece
    os.close(descriptor)
    return found.decode()
