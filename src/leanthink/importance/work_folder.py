"""What lies beside a predictor while it is made: traces, labels, and of each stage its settings and seconds."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open

from leanthink.utils.errors import DamagedFile, UsageError
from leanthink.utils.file_reading import NOT_NEGATIVE, OBJECT, check_kinds, parse_json, reading
from leanthink.utils.file_writing import held, write_json

RECORD = "stages.json"


class WorkFolder:
    """The folder `OUT.work` of the predictor `OUT`, which may not be there yet.

    Attributes:
        out: the predictor's file.
        path: the folder.
        traces, labels: its files, as `collect` and `label` write them.
        stages: for each stage that was begun its `settings`, its `seconds` and what else is to be remembered of it.
            The seconds of a stage that goes on are added up.

    Raises:
        UsageError: OUT is a folder.
        DamagedFile: the record of the stages cannot be read.
    """

    def __init__(self, out: str | os.PathLike[str]) -> None:
        self.out = Path(out)
        if self.out.is_dir():
            raise UsageError(f"{self.out} is a folder: give the name of a file for the predictor")
        self.path = self.out.with_name(f"{self.out.name}.work")
        self.traces, self.labels = self.path / "traces.jsonl", self.path / "labels.safetensors"
        self.stages: dict[str, dict[str, Any]] = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        path = self.path / RECORD
        if not path.exists():
            return {}
        with reading(path, "record of stages", "remove it; traces and labels stay"):
            found: dict[str, dict[str, Any]] = parse_json(path.read_bytes())
            check_kinds(found, dict.fromkeys(found, OBJECT))
            for stage in found.values():
                check_kinds(stage, {"settings": OBJECT, "seconds": NOT_NEGATIVE})
        return found

    def check(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuse to go on with what was made with other settings; those of each stage by its name.

        Raises:
            UsageError: a stage that has written something had another value of one of these.
        """
        written = {"collect": self.traces, "label": self.labels, "fit": self.out}
        for stage, path in written.items():
            before = self.stages.get(stage, {}).get("settings", {})
            for name, value in _as_json(settings[stage]).items() if path.exists() else ():
                if name in before and before[name] != value:
                    raise UsageError(
                        f"{path} was made with {name} {before[name]!r}, asked for is {value!r}: give the same to go on "
                        "with it, or another output file"
                    )

    def held(self) -> AbstractContextManager[None]:
        """Nobody else may make this predictor in here (UsageError)."""
        return held(self.path / RECORD)

    def clear(self) -> None:
        """Remove traces, labels and the record of the stages. The predictor stays until there is another."""
        for path in (self.traces, self.labels, self.path / RECORD):  # the record last: it says how the others were made
            path.unlink(missing_ok=True)
        self.stages = {}

    @contextmanager
    def stage(self, name: str, settings: Mapping[str, Any], *, anew: bool = False) -> Iterator[dict[str, Any]]:
        """Time a stage and record it, however it ends; inside, what else is to be remembered may be added.

        `anew`: nothing of an earlier attempt is used, and its seconds do not count.
        """
        before = 0.0 if anew or name not in self.stages else self.stages[name]["seconds"]
        entry: dict[str, Any] = {"settings": _as_json(settings), "seconds": before}
        self._write(name, entry)  # a killed process leaves it like this
        start = time.monotonic()
        try:
            yield entry
        finally:
            entry["seconds"] = before + time.monotonic() - start
            self._write(name, entry)

    def _write(self, name: str, entry: dict[str, Any]) -> None:
        self.stages[name] = entry
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / RECORD, self.stages, indent=1)

    def found(self) -> str:
        """How much is there, in words."""
        traces = self.traces.read_bytes().count(b"\n") if self.traces.exists() else 0
        return f"{self.path} holds {traces} traces and the labels of {_labelled(self.labels)}"


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they are read back."""
    found: dict[str, Any] = json.loads(json.dumps(settings))
    return found


def _labelled(path: Path) -> int:
    """How many traces a file of labels is of; 0 where there is none that can be read."""
    try:
        with reading(path, "file of labels", ""), safe_open(str(path), framework="pt") as file:
            return len(parse_json(file.metadata()["checksums"]))
    except (OSError, DamagedFile):
        return 0
