"""What differs between the releases of transformers that LeanThink runs on: 5.16 to 5.24."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

CACHE_NAMES = ("cache", "past_key_values")  # what generate() calls its cache: since 5.24, and before


def filled_cache(model_kwargs: Mapping[str, Any]) -> str | None:
    """The name of the cache among the arguments that generate() passes on, if that cache already holds tokens."""
    for name in CACHE_NAMES:
        cache = model_kwargs.get(name)
        if cache is not None and int(cache.get_seq_length()) > 0:
            return name
    return None


@contextmanager
def old_names() -> Iterator[None]:
    """Silences what newer releases say of the older names of settings that TRL still uses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`\w*gradient_checkpointing\w*` is deprecated", FutureWarning)
        yield
