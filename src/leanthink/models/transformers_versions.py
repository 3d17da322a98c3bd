"""What differs between the releases of transformers that LeanThink runs on: 5.16 to 5.24."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import transformers

RELEASE = tuple(int(number) for number in transformers.__version__.split(".")[:2])
CACHE_NAMES = ("cache", "past_key_values")  # what models and generate() call their cache: since 5.24, and before
CACHE_NAME = CACHE_NAMES[RELEASE < (5, 24)]


def withholds_options(model_type: str) -> bool:
    """Whether models of this type do not hand to their attention what a forward is given: until 5.17 Falcon-H1's."""
    return model_type == "falcon_h1" and RELEASE < (5, 17)


def filled_cache(model_kwargs: Mapping[str, Any]) -> str | None:
    """The name of the cache among the arguments that generate() passes on, if that cache already holds tokens."""
    for name in CACHE_NAMES:
        cache = model_kwargs.get(name)
        if cache is not None and int(cache.get_seq_length()) > 0:
            return name
    return None


def unpacked_gguf() -> dict[str, Any]:
    """What `from_pretrained` is told to unpack a GGUF file's weights: newer releases leave them packed, others never.

    Packed blocks can neither be trained nor put side by side.
    """
    kind = getattr(transformers, "GgufConfig", None)
    return {} if kind is None else {"quantization_config": kind(dequantize=True)}


@contextmanager
def old_names() -> Iterator[None]:
    """Silences what newer releases say of the older names of settings that TRL still uses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`\w*gradient_checkpointing\w*` is deprecated", FutureWarning)
        yield
