"""Who may come in: keys, and how they are compared."""

from __future__ import annotations

import hmac
from typing import Any

import pytest

from leanthink.entrypoints.cli.options import read_list
from leanthink.entrypoints.openai import middleware
from leanthink.entrypoints.openai.error_responses import APIError, from_validation
from leanthink.entrypoints.openai.middleware import key_number
from leanthink.entrypoints.openai.settings import Settings
from leanthink.utils.errors import UsageError

KEYS = ("sk-one", "sk-two")


@pytest.mark.parametrize(
    ("header", "number"),
    [("Bearer sk-one", 0), ("bearer sk-two", 1), ("Bearer sk-on", None), ("Bearer sk-one1", None),
     ("Basic sk-one", None), ("sk-one", None), ("Bearer", None), ("", None), ("Bearer s\xe9", None)],
)  # fmt: skip
def test_only_a_key_as_it_was_given_opens(header: str, number: int | None) -> None:
    assert key_number(header, KEYS) == number


@pytest.mark.parametrize("header", ["Bearer sk-one", "Bearer nothing", "Basic x", ""])
def test_every_key_is_compared_in_constant_time_whether_or_not_one_fits(
    header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def noted(given: bytes, key: bytes) -> bool:
        compared.append((given, key))
        return real(given, key)

    monkeypatch.setattr(middleware.hmac, "compare_digest", noted)
    key_number(header, KEYS)
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
        ({"limit_concurrency": 0}, "limit_concurrency=0"),
        ({"read_timeout_seconds": 0.0}, "read_timeout_seconds=0.0"),
        ({"allowed_hosts": ("http://api.example.com",)}, "without scheme and port"),
        ({"allowed_hosts": ("api.*.com",)}, "a name like api.example.com"),
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
    assert Settings(name="tiny", allowed_origins=read_list("--allowed-origins", given)).allowed_origins == origins


@pytest.mark.parametrize(("given", "words"), [("[", "is no JSON list"), ("[1]", "give a list of text")])
def test_origins_that_cannot_be_read_are_refused(given: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_list("--allowed-origins", given)


def test_keys_are_not_shown() -> None:
    assert "sk-one" not in repr(Settings(name="tiny", keys=KEYS))


def test_a_refusal_can_always_be_sent() -> None:
    found = {"loc": ("a\ud800" * 1000,), "type": "missing", "msg": "", "input": 1}
    refusal = from_validation([found])
    assert refusal.response().status_code == 400
    assert refusal.param == "a?" * 100
    assert APIError(429, "later").document()["error"]["type"] == "rate_limit_error"
