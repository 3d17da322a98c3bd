"""How files are written: by one process at a time, whole or not at all, and with one error where there is no room.

A file that grows line by line is a `LineFile`; any other is written under another name and then takes its place.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leanthink.utils.errors import CannotWrite, UsageError

OF_TORCH = ("inline_container", "PytorchStreamWriter")  # in what torch.save raises where there is no room
STAYS = "make room, or give another place; what was there before is unharmed, and can be resumed"


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Nobody else may write to `path` in here. The lock is a file beside it, which is gone afterwards.

    Raises:
        UsageError: another process holds it.
        CannotWrite: there is no such folder, or no room in it.
    """
    lock = Lock(path)
    try:
        yield
    finally:
        lock.release()


class Lock:
    """`held`, for those that have a beginning and an end of their own."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(f"{path.name}.lock")
        with writing(path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o644)
            while not self._is_mine(path):
                os.close(self._file)
                self._file = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o644)

    def _is_mine(self, path: Path) -> bool:
        """Whether the file that is locked now is still the one that others would find."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise UsageError(f"another process writes to {path}: wait for it, or give another name") from None
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self._path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let others write. Twice is as good as once."""
        if self._file >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever keeps a file from being written is one CannotWrite.

    Raises:
        CannotWrite: there is no room, no right or no such folder.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(name in str(error) for name in OF_TORCH):
            raise
        why = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise CannotWrite(f"{path} cannot be written ({why}): {STAYS}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft to be written in here, which then takes the place of `path`: a reader sees the old file or the new one.

    What a killed process left of a draft is overwritten by the next.

    Raises:
        CannotWrite: there is no room, no right or no such folder.
    """
    draft = path.with_name(f"{path.name}.partial")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield draft
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_json(path: Path, document: Any, *, indent: int | None = None) -> None:
    """Write a whole file or none: a killed process leaves the old one. Raises like `replacing`."""
    text = json.dumps(document, indent=indent, allow_nan=False) + "\n"
    with replacing(path) as draft:
        draft.write_text(text)


class LineFile:
    """A file of lines that grows; each line is on the disk when `append` returns, or not in the file at all.

    Raises:
        CannotWrite: there is no room, no right or no such folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o644)

    def append(self, *lines: str) -> None:
        """Write these lines, which come without their ends."""
        before = os.fstat(self._file).st_size
        data = memoryview("".join(f"{line}\n" for line in lines).encode())
        try:
            with writing(self.path):
                while data:
                    data = data[os.write(self._file, data) :]
                os.fsync(self._file)
        except BaseException as error:
            # A part of a line would be a line for whoever appends next. Ctrl-C after the write leaves whole ones.
            if data or isinstance(error, CannotWrite):
                os.ftruncate(self._file, before)
            raise

    def drop_cut_off_line(self, read: Callable[[bytes], object]) -> None:
        """Truncate after the last line end, or complete a last line that lacks nothing but that.

        `read` is what a line is read by: it raises ValueError for one that was cut off.
        """
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        if not data[end:]:
            return
        try:
            read(data[end:])
        except ValueError:
            os.ftruncate(self._file, end)
        else:
            self.append("")

    def clear(self) -> None:
        """Drop all lines."""
        os.ftruncate(self._file, 0)

    def close(self) -> None:
        """No more lines. Twice is as good as once."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
