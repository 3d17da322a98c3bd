"""The birth certificate of a result: where, when and with what it was measured.

The commit is that of the working copy, or the environment's COMMIT where there is no repository.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import version

import torch


def certificate(device: str, command: str) -> dict[str, str]:
    """Command, date, commit, hardware and versions; a commit with local changes says so."""
    processor = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": os.environ.get("COMMIT") or _commit(),
        "hardware": processor if device == "cpu" else torch.cuda.get_device_name(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def _commit() -> str:
    return _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain") else "")


def _git(*arguments: str) -> str:
    try:
        found = subprocess.run(("git", *arguments), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or ("unknown" if found.returncode else "")
