"""Which names a server answers for: a page that points its own name at this machine must not read or use it.

A browser tells the name by which a page asked in the header `Host`. No page can make an address its name, so that
addresses are always answered; a name is where it means this machine, or was allowed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from leanthink.utils.errors import UsageError

NAME = re.compile(r"\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
LONGEST_SHOWN = 100  # characters


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that is bound to this host."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_names(bound_to: str, given: Sequence[str]) -> tuple[str, ...]:
    """The names that a server answers for: those that are given; else none but this machine's on loopback, and any
    elsewhere.

    Raises:
        UsageError: a name has a scheme, a port, or a "*" elsewhere than at its beginning.
    """
    for name in given:
        if not NAME.fullmatch(name):
            raise UsageError(
                f"allowed_hosts={name!r}: must be *, a name like api.example.com, or *.example.com for all that end "
                "so, without scheme and port"
            )
    return tuple(given) or (() if is_loopback(bound_to) else ("*",))


def is_allowed(header: str, names: Sequence[str]) -> bool:
    """Whether a request with this header `Host` is answered.

    Args:
        header: name or address, with or without a port; "" where there is none.
        names: as `allowed_names` gives them: "*" is any, "*.example.com" what ends in that.
    """
    if "*" in names:
        return True
    name = _name_of(header)
    if name == "localhost" or name.endswith(".localhost") or _is_address(name):
        return True
    return any(name == one or (one.startswith("*.") and name.endswith(one[1:])) for one in map(str.lower, names))


def not_allowed(header: str) -> str:
    """What whoever asked is told."""
    return (
        f"this server does not answer for {header[:LONGEST_SHOWN]!r}: ask for it by its address or as localhost, or "
        "start it with --allowed-hosts and that name"
    )


def _name_of(header: str) -> str:
    """In small letters, without the port; "" for what is no host."""
    try:
        parts = urlsplit(f"//{header}")
        name = parts.hostname or ""
    except ValueError:
        return ""
    return name if parts.netloc == header and "@" not in header else ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
