"""Runs the command line for tests: as a process, and what a refusal must look like."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

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
