"""The birth certificate that every result file carries: where, when and with what it was measured.

The commit is that of the working copy, or the environment's COMMIT where there is no repository.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from importlib.metadata import version

import torch


def certificate(device: str | None = None) -> dict[str, str]:
    """Command, commit, hardware and versions; a commit with local changes says so."""
    on_gpu = torch.cuda.is_available() and device != "cpu"
    return {
        "command": "python " + " ".join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": os.environ.get("COMMIT") or _commit(),
        "hardware": torch.cuda.get_device_name()
        if on_gpu
        else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def _commit() -> str:
    return _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain") else "")


def _git(*arguments: str) -> str:
    found = subprocess.run(("git", *arguments), capture_output=True, text=True, check=False)
    return found.stdout.strip() or ("unknown" if found.returncode else "")
