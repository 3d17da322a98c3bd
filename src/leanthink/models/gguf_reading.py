"""GGUF files, read in less time: transformers parses a header anew for config, tokenizer and weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import RLock
from typing import Any

import numpy as np

ONE_THREAD = RLock()  # names of a package are replaced meanwhile
GROUP_BYTES = 2**18  # unpacked at a time: more leaves the processor's cache
GROUP_ROWS = 16  # that gguf takes at a time


@contextmanager
def read_once() -> Iterator[None]:
    """While it lasts, each GGUF file's header is parsed once, and weights are unpacked in larger groups."""
    import gguf

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        """Reads a plain array: each number out of a mapped file costs several times as much."""

        data: Any

        def _get(self, *where: Any, **how: Any) -> Any:
            if isinstance(self.data, np.memmap):
                self.data = self.data.view(np.ndarray)
            return super()._get(*where, **how)

    def unpacked(data: Any, kind: Any) -> Any:
        return dequantize(in_long_rows(data), kind).reshape(*data.shape[:-1], -1)

    with ONE_THREAD:
        reader, dequantize = gguf.GGUFReader, gguf.dequantize
        gguf.GGUFReader, gguf.dequantize = cache(Reader), unpacked
        try:
            yield
        finally:
            gguf.GGUFReader, gguf.dequantize = reader, dequantize


def in_long_rows(data: Any) -> Any:
    """Packed weights [..., bytes] with rows as long as several, [rows, more bytes]: their blocks follow each other."""
    rows, joined = data.size // data.shape[-1], 1
    while rows % (2 * joined) == 0 and 2 * joined * GROUP_ROWS * data.shape[-1] * data.itemsize <= GROUP_BYTES:
        joined *= 2
    return data.reshape(rows // joined, -1)
