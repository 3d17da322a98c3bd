"""The birth certificate of a result: where, when and with what it was measured.

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


def certificate(device: str | None = None, command: str | None = None, hardware: str | None = None) -> dict[str, str]:
    """Command, date, commit, hardware and versions; a commit with local changes says so.

    Args:
        device: what was measured on; None: a GPU where there is one.
        command: the command line; None: that of this process.
        hardware: where it was measured on other machines: what they are, in words.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "command": command or " ".join(["python", _script(), *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": os.environ.get("COMMIT") or _commit(),
        "hardware": hardware or hardware_of(torch.device(device)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def hardware_of(device: torch.device) -> str:
    """The name of a GPU, or the processor and its threads."""
    if device.type == "cpu":
        return f"{platform.machine()}, {torch.get_num_threads()} threads"
    return torch.cuda.get_device_name(device)


def _script() -> str:
    """The script as one would name it here: where it lies on this machine is nobody's business."""
    return os.path.relpath(sys.argv[0]) if os.path.isabs(sys.argv[0]) else sys.argv[0]


def _commit() -> str:
    return _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain") else "")


def _git(*arguments: str) -> str:
    try:
        found = subprocess.run(("git", *arguments), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or ("unknown" if found.returncode else "")
