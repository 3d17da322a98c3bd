"""How bench/fuzz.py makes an input of another: odd values in its JSON, words of its target in its bytes."""

from __future__ import annotations

import contextlib
import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any

from fuzz_target import Target

DEEP = "the place of something deep"
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 4096, 2**31, 2**53 + 1, 2**63, 10**400, 0.5, -0.0, 1e-45, 1e308, math.inf, math.nan,
    "", "x", "\ud800", "\0", "é\u2028", "x" * 3000, [], [[]], [None], ["x"], [0], [0, 1], {}, {"": 0},
    {"\udfff": "\ud800"}, DEEP,
)  # fmt: skip
JSON_WORDS = (
    *(json.dumps(value).encode() for value in ODD if value != DEEP), b"[" * 1000, b'{"":' * 1000, b"1" * 5000, b"1e400",
    b"\\ud800", b"\xff", b"\xef\xbb\xbf", b",", b":", b"{", b"}", b"[", b"]",
)  # fmt: skip


def mutated(data: bytes, target: Target, draws: random.Random, mutate: Callable[[bytes], bytes]) -> bytes:
    """Another input, after one to four changes; `mutate` is the fuzzer's own, which knows nothing of the target."""
    for _ in range(draws.choice((1, 1, 2, 4))):
        how = draws.random()
        if how < 0.5 and target.unpack is not None:
            with contextlib.suppress(ValueError, RecursionError, AttributeError, TypeError, struct.error):
                data = rewritten(data, target, draws)
        elif how < 0.8:
            data = spliced(data, target, draws)
        else:
            data = mutate(data)
    return data


def rewritten(data: bytes, target: Target, draws: random.Random) -> bytes:
    """An input with another value in its JSON."""
    assert target.unpack is not None
    found, pack = target.unpack(data)
    depth = draws.choice((10, 100, draws.randrange(800, 1000), 5000))
    around = draws.choice(("[]", '{"":}'))
    deep = around[:-1] * depth + "0" + around[-1] * depth
    return pack(json.dumps(changed(found, draws)).replace(json.dumps(DEEP), deep))


def changed(found: Any, draws: random.Random) -> Any:
    """Something like JSON with another value in one place, or with one place less or more."""
    if not isinstance(found, list | dict) or not found or draws.random() < 0.15:
        return draws.choice(ODD)
    keys = list(found) if isinstance(found, dict) else list(range(len(found)))
    key, how, copy = draws.choice(keys), draws.random(), found.copy()
    if how < 0.1:
        del copy[key]
    elif how < 0.2 and isinstance(copy, list):
        copy.insert(key, copy[draws.choice(keys)])
    elif how < 0.3:
        copy[key] = copy[draws.choice(keys)]
    else:
        copy[key] = changed(found[key], draws)
    return copy


def spliced(data: bytes, target: Target, draws: random.Random) -> bytes:
    """An input with a word in it, in place of something or not, or with a piece of it many times."""
    start = draws.randrange(len(data) + 1)
    end = min(len(data), start + draws.choice((0, 0, 1, 2, 8, 64)))
    if draws.random() < 0.3 and start < end:
        return data[:start] + data[start:end] * draws.choice((2, 8, 100, 1000)) + data[end:]
    return data[:start] + draws.choice(target.words) + data[end:]
