"""Where things go: data on standard output, talk on standard error, files only where none is lost."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from leanthink.utils.errors import UsageError


def say(text: str) -> None:
    """One message on standard error."""
    sys.stdout.flush()
    print(f"leanthink: {text}", file=sys.stderr, flush=True)


def print_json(document: Any) -> None:
    """The one JSON document of a command, on standard output."""
    print(json.dumps(document, allow_nan=False, ensure_ascii=False), flush=True)


def refuse_existing(path: Path | None, *, overwrite: bool, resume: bool = False, resumable: bool = False) -> None:
    """Raise UsageError for an output that is there already, unless it was said what shall become of it."""
    if overwrite and resume:
        raise UsageError("--resume and --overwrite exclude each other: give one of them")
    if path is None or overwrite or resume or not path.exists():
        return
    cure = "--resume to go on with it, or --overwrite to replace it" if resumable else "--overwrite to replace it"
    raise UsageError(f"{path} exists: give another name, or {cure}")
