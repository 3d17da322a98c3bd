"""Which versions of verl the adapter was tested with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

from leanthink.utils.errors import UsageError

VERL = SpecifierSet(">=0.9.1,<0.10")  # 0.9.1 brought the checkpoint callback


def check_version(installed: str | None = None) -> None:
    """Raise UsageError for a verl whose insides nobody has looked at, or for none."""
    try:
        found = version("verl") if installed is None else installed
    except PackageNotFoundError:
        raise UsageError(f"verl is not installed: docs/verl.md says how to install verl{VERL}") from None
    if found not in VERL:
        raise UsageError(
            f"verl {found} is installed, and the adapter is tested with verl{VERL}: install that one, see docs/verl.md"
        )
