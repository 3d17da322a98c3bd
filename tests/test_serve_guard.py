"""Who may come in: keys, and how they are compared."""

from __future__ import annotations

import hmac
from typing import Any

import pytest

from leanthink.cli.serve import read_origins
from leanthink.errors import UsageError
from leanthink.serve import guard
from leanthink.serve.guard import may_enter
from leanthink.serve.refusals import Refusal, of_validation
from leanthink.serve.settings import Settings

KEYS = ("sk-one", "sk-two")


@pytest.mark.parametrize(
    ("header", "enters"),
    [("Bearer sk-one", True), ("bearer sk-two", True), ("Bearer sk-on", False), ("Bearer sk-one1", False),
     ("Basic sk-one", False), ("sk-one", False), ("Bearer", False), ("", False), ("Bearer s\xe9", False)],
)  # fmt: skip
def test_only_a_key_as_it_was_given_opens(header: str, enters: bool) -> None:
    assert may_enter(header, KEYS) == enters


@pytest.mark.parametrize("header", ["Bearer sk-one", "Bearer nothing", "Basic x", ""])
def test_every_key_is_compared_in_constant_time_whether_or_not_one_fits(
    header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def noted(given: bytes, key: bytes) -> bool:
        compared.append((given, key))
        return real(given, key)

    monkeypatch.setattr(guard.hmac, "compare_digest", noted)
    may_enter(header, KEYS)
    assert len(compared) == len(KEYS)
    assert all(len(given) == len(key) == 32 for given, key in compared), "digests: no length is told either"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policy": "horizonn"}, "Did you mean 'horizon'?"),
        ({"policy": "full"}, "full takes no budget"),
        ({"budget": None}, "every other needs one"),
        ({"max_budget": 100}, "budget=256 is above max_budget=100"),
        ({"queue": -1}, "queue=-1: must be 0 or more"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds=nan"),
        ({"rows": 0}, "rows=0"),
        ({"port": 70_000}, "port=70000"),
        ({"kv_gib": 0.0}, "kv_gib=0.0"),
        ({"keys": ("a", "")}, "API key is empty"),
        ({"cache_salt_per_key": True}, "cache_salt_per_key without API keys: give keys"),
        ({"allowed_origins": ("http://localhost:3000/",)}, "no path, like http://localhost:3000"),
        ({"allowed_origins": ("*", "localhost:3000")}, "allowed_origins='localhost:3000'"),
        ({"allowed_origins": ("https://A.example",)}, "host in small letters"),
    ],
)
def test_settings_out_of_range_are_refused(changes: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("?", r"\?")):
        Settings(name="tiny", **changes)


@pytest.mark.parametrize(
    ("given", "origins"),
    [
        (None, ()),
        ("*", ("*",)),
        ("http://localhost:3000", ("http://localhost:3000",)),
        ('["*"]', ("*",)),
        ('["https://a.example", "http://[::1]:80", "null"]', ("https://a.example", "http://[::1]:80", "null")),
        ("[]", ()),
    ],
)
def test_origins_are_read_as_vllm_reads_them(given: str | None, origins: tuple[str, ...]) -> None:
    assert Settings(name="tiny", allowed_origins=read_origins(given)).allowed_origins == origins


@pytest.mark.parametrize(("given", "words"), [("[", "is no JSON list"), ("[1]", "give text")])
def test_origins_that_cannot_be_read_are_refused(given: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_origins(given)


def test_keys_are_not_shown() -> None:
    assert "sk-one" not in repr(Settings(name="tiny", keys=KEYS))


def test_a_refusal_can_always_be_sent() -> None:
    found = {"loc": ("body", "a\ud800" * 1000), "type": "extra_forbidden", "msg": "", "input": 1}
    refusal = of_validation([found])
    assert refusal.response().status_code == 400
    assert refusal.param == "a?" * 100
    assert Refusal(429, "later").document()["error"]["type"] == "rate_limit_error"
