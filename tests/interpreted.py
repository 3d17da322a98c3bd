"""Runs a file of tests of Triton kernels under Triton's interpreter, in a process of its own: no GPU is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def assert_passes_interpreted(tests: Path) -> None:
    """Every test of the file passes, and none is skipped."""
    pytest.importorskip("triton", minversion="3.7", reason="the interpreter of Triton 3.6 fails with NumPy 2.4")
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout
