"""The provenance of a result: where, when, with what and by which commit of LeanThink it was measured.

The commit is the environment's COMMIT, else that of the checkout this package lies in, whatever folder one stands in;
else what pip noted of the repository it installed the package from; else the package's version.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import torch

import leanthink

SHORT = 7  # digits of a commit
NO_HOOKS = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")


def provenance_record(
    device: str | None = None, command: str | None = None, hardware: str | None = None
) -> dict[str, str]:
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
        "commit": commit(),
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


def commit() -> str:
    """The commit of this package, "+changes" where its checkout has some; "version N" where nothing tells a commit."""
    return os.environ.get("COMMIT") or _of_checkout() or _of_installation()


def _of_checkout() -> str | None:
    """None where git does not follow this file: a repository around an installation is another project's."""
    if _git("ls-files", "--error-unmatch", __file__) is None:
        return None
    head, changes = _git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain")
    return None if head is None else head + ("+changes" if changes else "")


def _of_installation() -> str:
    try:
        installed = distribution("leanthink")
    except PackageNotFoundError:
        return f"version {leanthink.__version__}"
    origin = json.loads(installed.read_text("direct_url.json") or "{}")  # written by pip, as of PEP 610
    named: str | None = origin.get("vcs_info", {}).get("commit_id")
    return f"version {leanthink.__version__}" if named is None else named[:SHORT]


def _git(*arguments: str) -> str | None:
    """What git says in the package's folder; None where it fails or is not there.

    Nothing that the repository's settings name is run: it may be another one's, around an installation.
    """
    command = ("git", "--no-optional-locks", *NO_HOOKS, "-C", str(Path(__file__).parent), *arguments)
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return None if found.returncode else found.stdout.strip()
