"""`python -m leanthink` is the command `leanthink`."""

from __future__ import annotations

from leanthink.entrypoints.cli import main

main()
