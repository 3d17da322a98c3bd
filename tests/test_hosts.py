"""Which names a server answers for."""

from __future__ import annotations

import pytest

from leanthink.utils.errors import UsageError
from leanthink.utils.hosts import allowed_names, is_allowed, is_loopback, not_allowed

OWN = ("localhost", "LocalHost:8000", "app.localhost:80", "127.0.0.1", "127.9.9.9:1", "[::1]:8000", "192.168.0.7:80")
FOREIGN = (
    "evil.example",
    "evil.example:8000",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "notlocalhost",
    "me",
)
BROKEN = ("", ":80", "[::1", "[", "]", "[x]", "localhost/", "localhost@evil.example", "evil.example@localhost", "a b",
          "localhost#", "\x00", "1" * 5000, "local\thost")  # fmt: skip


@pytest.mark.parametrize("bound_to", ["127.0.0.1", "::1", "localhost"])
def test_on_loopback_addresses_and_the_name_of_this_machine_are_answered_and_no_other(bound_to: str) -> None:
    names = allowed_names(bound_to, ())
    assert [header for header in OWN if not is_allowed(header, names)] == []
    assert [header for header in (*FOREIGN, *BROKEN) if is_allowed(header, names)] == []


def test_elsewhere_every_name_is_answered_until_some_are_given() -> None:
    assert all(is_allowed(header, allowed_names("0.0.0.0", ())) for header in (*OWN, *FOREIGN, *BROKEN))
    names = allowed_names("0.0.0.0", ("api.Example.com", "*.lan"))
    for header in (*OWN, "api.example.com:443", "API.example.com", "gpu.lan", "a.b.lan:8000"):
        assert is_allowed(header, names), header
    for header in (*FOREIGN, *BROKEN, "x.api.example.com", "lan", "evillan", "gpu.lan.evil.example"):
        assert not is_allowed(header, names), header


def test_a_star_lets_every_name_in_on_loopback_too() -> None:
    assert is_allowed("evil.example", allowed_names("127.0.0.1", ("*",)))


@pytest.mark.parametrize("name", ["http://a.example", "a.example:80", "a.*", "*a.example", "", "a..b", "[::1]"])
def test_a_name_that_no_request_could_bear_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="must be"):
        allowed_names("127.0.0.1", ("a.example", name))


def test_a_refusal_says_what_to_do_and_repeats_no_long_name() -> None:
    told = not_allowed("x" * 10_000)
    assert "--allowed-hosts" in told
    assert len(told) < 300


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("me.lan", False),
    ],
)
def test_what_only_this_machine_can_reach(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
