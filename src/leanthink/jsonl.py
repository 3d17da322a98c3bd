"""What a killed process leaves at the end of a file of JSON lines, put right before the file is gone on with."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def drop_cut_off_line(path: Path, read: Callable[[bytes], object]) -> None:
    """Truncate a file after its last line end, or complete a last line that lacks nothing but its line end.

    `read` is what a line is read by: it raises ValueError for one that was cut off.
    """
    with path.open("rb+") as file:
        data = file.read()
        end = data.rfind(b"\n") + 1
        tail = data[end:]
        if not tail:
            return
        try:
            read(tail)
        except ValueError:
            file.truncate(end)
        else:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
