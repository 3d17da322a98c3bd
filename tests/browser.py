"""Starts headless Chromium for tests: playwright's own, or the system's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="NO BROWSER TESTS: playwright is not installed")
sys.path.append(str(Path(__file__).parent.parent / "bench"))
from viewer_speed import find_browser  # noqa: E402


@contextmanager
def started_browser() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    with playwright.sync_playwright() as started:
        own = Path(started.chromium.executable_path)
        path = str(own) if own.exists() else find_browser()
        if path is None:
            pytest.skip("NO BROWSER TESTS: there is no browser; playwright install chromium-headless-shell brings one")
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
