"""The engine in a thread of its own: commands go in as they come, and what steps brought comes out in hand-overs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from leanthink.engine.engine import Engine
from leanthink.engine.outputs import Completion, Progress
from leanthink.engine.request import Request
from leanthink.engine.stats import EngineStats
from leanthink.utils.errors import RequestFailed, UsageError


@dataclass(frozen=True, kw_only=True)
class EngineUpdate:
    """What the engine's thread hands over at a time; `refused` are requests that the engine did not take, or cut."""

    progress: Progress
    cut: dict[int, Completion | None]
    refused: dict[int, RequestFailed]
    stats: EngineStats


class EngineCommand(NamedTuple):
    """What the engine shall do: `act` on this request; "add" comes with the request."""

    act: str
    request_id: int
    request: Request | None = None
    streamed: bool = False


class EngineThread:
    """Steps the engine while there is work, and sleeps otherwise.

    Both threads want the interpreter's lock, so the one that writes to clients is left in peace: while it is at work on
    one hand-over, steps go on and what they bring is gathered for the next.

    Args:
        engine: touched by nobody else from now on.
        tell: called in this thread with what the steps since the last call brought; `taken` answers it.
        fail: called in this thread, once, when the engine broke; then the thread has ended.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        tell: Callable[[list[EngineUpdate]], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self.engine, self._tell, self._fail = engine, tell, fail
        self._commands: deque[EngineCommand] = deque()
        self._wake, self._stop = threading.Event(), False
        self._gathered: list[EngineUpdate] = []
        self._taken = threading.Event()
        self._taken.set()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def send(self, command: EngineCommand) -> None:
        """Obeyed before the next step; from any thread."""
        self._commands.append(command)
        self._wake.set()

    def stop(self) -> None:
        """End after the step in hand, and wait for that."""
        self._stop = True
        self._wake.set()
        self._taken.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop:
                if not self.engine.unfinished and not self._commands:
                    self.engine.check_integrity()
                    self._taken.wait()
                    self._hand_over()
                    self._wake.wait()
                self._wake.clear()  # before the commands are read: one that comes from now on wakes again
                cut, refused = self._obey()
                progress = self.engine.step() if self.engine.unfinished else Progress()
                stats = self.engine.stats()
                self._gathered.append(EngineUpdate(progress=progress, cut=cut, refused=refused, stats=stats))
                if self._taken.is_set():
                    self._hand_over()
        except BaseException as error:  # the edge of a thread: whoever waits for it must hear of it
            self._fail(error)

    def _hand_over(self) -> None:
        if self._gathered:
            self._taken.clear()
            self._tell(self._gathered)
            self._gathered = []

    def taken(self) -> None:
        """What was told is dealt with; from any thread."""
        self._taken.set()

    def _obey(self) -> tuple[dict[int, Completion | None], dict[int, RequestFailed]]:
        cut, refused = {}, {}
        while self._commands:
            command = self._commands.popleft()
            try:
                if command.request is not None:
                    self.engine.add_request(command.request, streamed=command.streamed)
                elif command.act == "cut":
                    cut[command.request_id] = self.engine.finish_early(command.request_id)
                else:
                    self.engine.cancel(command.request_id)
            except RequestFailed as failure:
                refused[command.request_id] = failure
            except UsageError as error:
                refused[command.request_id] = RequestFailed(command.request_id, str(error))
        return cut, refused
