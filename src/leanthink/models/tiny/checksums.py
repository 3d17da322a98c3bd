"""The SHA-256 sums that travel with a weights folder: writing them, and refusing a folder that differs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from leanthink.utils.errors import DamagedFile
from leanthink.utils.file_reading import STRING, check_kinds, parse_json, reading

SUMS = "sha256.json"


def _sum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_sums(folder: Path) -> None:
    """Record every file directly in `folder`."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    (folder / SUMS).write_text(json.dumps({path.name: _sum(path) for path in files}, indent=1) + "\n")


def check_sums(folder: Path) -> None:
    """Compare every recorded file with its sum.

    Raises:
        DamagedFile: the list is missing or not readable, or a file is missing or differs; the message names the file.
    """
    if not (folder / SUMS).is_file():
        raise DamagedFile(f"{folder / SUMS} is missing: install leanthink again")
    with reading(folder / SUMS, "list of checksums", "install leanthink again"):
        expected = parse_json((folder / SUMS).read_bytes())
        check_kinds(expected, dict.fromkeys(expected, STRING))
    for name, expected_sum in expected.items():
        file = folder / name
        if not file.is_file():
            raise DamagedFile(f"{file} is missing: install leanthink again")
        if _sum(file) != expected_sum:
            raise DamagedFile(f"{file} fails its checksum (SHA-256 in {SUMS}): install leanthink again")
