"""The files of a training run, and what is read back from them; `leanthink.rl.run_log` says what each line holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanthink.utils.errors import DamagedFile, UsageError
from leanthink.utils.file_reading import OBJECT, check_kinds, is_int, parse_json, reading

RUN, LOG, ROLLOUTS, FINAL, REPORT = "run.json", "log.jsonl", "rollouts.jsonl", "final", "report.html"
PER_RESPONSE = ("tokens", "thought_tokens", "right")  # lists of a group that the report reads
COUNT = "a whole number >= 0"


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """What a run has written so far.

    Attributes:
        name: what it is called beside other runs.
        log: of log.jsonl, in its order; each has `step` and numbers or nulls by their names.
        groups: of rollouts.jsonl; empty where there is no such file.
        settings, provenance: of run.json; empty where there is no such file.
    """

    name: str
    folder: Path
    log: list[dict[str, Any]]
    groups: list[dict[str, Any]]
    settings: dict[str, Any]
    provenance: dict[str, Any]


def read_runs(folders: list[Path]) -> list[RecordedRun]:
    """The runs in these folders, called by their folders' names, or by their paths where names are equal.

    Raises:
        UsageError: none, one of them twice, or a folder without a log of a training step.
        DamagedFile: a line that cannot be read, but for a last one that is still being written.
    """
    if not folders:
        raise UsageError("no folder of a run: name at least one, such as `leanthink train --report runs/a runs/b`")
    resolved = [folder.resolve() for folder in folders]
    for folder in folders:
        if resolved.count(folder.resolve()) > 1:
            raise UsageError(f"{folder} is given twice: name each run once")
    names = [folder.name for folder in resolved]
    alike = len(set(names)) < len(names)
    return [read_run(folder, str(folder) if alike else name) for folder, name in zip(folders, names, strict=True)]


def read_run(folder: Path, name: str) -> RecordedRun:
    """One run; raises like `read_runs`."""
    if not (folder / LOG).is_file():
        raise UsageError(f"there is no {LOG} in {folder}: give the folder that a run was told to write, its --out")
    log = _lines(folder / LOG, _check_record)
    if not any("loss" in record for record in log):
        raise UsageError(f"{folder / LOG} tells of no training step yet: wait for the first, or give another folder")
    about = about_run(folder / RUN)
    return RecordedRun(
        name=name,
        folder=folder,
        log=log,
        groups=_lines(folder / ROLLOUTS, _check_group) if (folder / ROLLOUTS).is_file() else [],
        settings=about.get("settings", {}),
        provenance=about.get("birth", {}),
    )


def _lines(path: Path, check: Callable[[dict[str, Any]], str | None]) -> list[dict[str, Any]]:
    """The objects of a file; `check` says what is wrong with one. A last line without its end is left out."""
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            record = parse_json(line)
        except ValueError as error:
            raise DamagedFile(f"{path}, line {number}: no line of JSON ({error})") from None
        wrong = check(record) if isinstance(record, dict) else "a JSON object was expected"
        if wrong is not None:
            raise DamagedFile(f"{path}, line {number}: {wrong}")
        found.append(record)
    return found


def _is_count(value: Any) -> bool:
    return is_int(value) and value >= 0


def _check_record(record: dict[str, Any]) -> str | None:
    if not _is_count(record.get("step")):
        return f"step must be {COUNT}"
    for name, value in record.items():
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            return f"{name} must be a number or null"
    return None


def _check_group(group: dict[str, Any]) -> str | None:
    if not _is_count(group.get("step")):
        return f"step must be {COUNT}"
    lists = [group.get(name) for name in PER_RESPONSE]
    if not all(isinstance(one, list) and one and len(one) == len(lists[0] or ()) for one in lists):
        return f"{', '.join(PER_RESPONSE)} must be lists with an entry for each response"
    tokens, thought, right = lists
    if not all(map(_is_count, [*(tokens or ()), *(thought or ())])):
        return f"entries of tokens and thought_tokens must be {COUNT}"
    if not all(one is None or isinstance(one, bool) for one in right or ()):
        return "entries of right must be true, false or null"
    if not isinstance(group.get("family"), str | None) or not isinstance(group.get("level"), int | None):
        return "family must be text or null, level a whole number or null"
    return None


def about_run(path: Path) -> dict[str, Any]:
    """What run.json holds, {} where it is not there."""
    if not path.is_file():
        return {}
    with reading(path, "record of a run", "remove it, or put back what `leanthink train` wrote"):
        about: dict[str, Any] = parse_json(path.read_bytes())
        check_kinds({"settings": {}, "birth": {}} | about, dict.fromkeys(("settings", "birth"), OBJECT))
    return about
