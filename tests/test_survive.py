"""What is killed or runs out of disk is resumed; `bench/survive.py` does it twenty times a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "bench" / "survive.py"


def survived(how: str, *commands: str) -> list[dict[str, object]]:
    """What the script prints of each command."""
    words = [sys.executable, str(SCRIPT), how, *commands, "--times", "2"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def can_mount(folder: Path) -> bool:
    """Whether this user may: root may not everywhere."""
    mounted = os.geteuid() == 0 and not subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)]).returncode
    return mounted and not subprocess.run(["umount", str(folder)]).returncode


@pytest.mark.slow
def test_a_killed_command_comes_to_what_an_uninterrupted_one_writes() -> None:
    for found in survived("kill", "collect", "eval"):
        assert found["kills"] == 2
        assert found["ends_compared"]
        assert found["wrong"] == []


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_can_be_resumed(tmp_path: Path) -> None:
    if not can_mount(tmp_path):
        pytest.skip("a small disk takes the right to mount one")
    for found in survived("disk", "collect", "eval"):
        assert found["wrong"] == []
        assert "No space left on device" in str(found["told"])
