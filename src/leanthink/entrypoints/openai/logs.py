"""Logs on standard error, one JSON object a line; never a prompt or an answer unless the server was told so."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any

SELDOM_SECONDS = 60.0
LEVELS = {"leanthink.serve": logging.INFO, "uvicorn.error": logging.WARNING, "asyncio": logging.WARNING}
LOGGER = logging.getLogger("leanthink.serve")


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, event, and what was given as `facts`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        facts: dict[str, Any] = getattr(record, "facts", {})
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": at, "level": record.levelname.lower(), "event": record.getMessage(), **facts}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def start_logging() -> None:
    """Send our log and those of the web server and the event loop to standard error."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(JsonLines())
    for name, level in LEVELS.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [lines], False
        logger.setLevel(level)


def log(event: str, *, level: int = logging.INFO, error: BaseException | None = None, **facts: Any) -> None:
    """One line; `error` adds its traceback."""
    LOGGER.log(level, event, extra={"facts": facts}, exc_info=error)


class RateLimitedLog:
    """A warning of what strangers can make happen often: told at once, then once a minute with how often it was."""

    def __init__(self, event: str) -> None:
        self._event, self._times, self._next = event, 0, 0.0

    def tell(self, **facts: Any) -> None:
        """It has happened again."""
        self._times += 1
        now = time.monotonic()
        if now >= self._next:
            log(self._event, level=logging.WARNING, times=self._times, **facts)
            self._times, self._next = 0, now + SELDOM_SECONDS
