"""What is killed or has no room is resumed: `python bench/survive.py kill|disk COMMAND... [--times 20] [--out F]`.

Commands are collect, label, fit, eval and train, on the embedded reasoner. `kill`: each is killed (SIGKILL) so many
times at random moments, half of them while a file is being written, and resumed; what it comes to must be what an
uninterrupted run writes. `disk` (root, for a tmpfs): each runs on a disk of half the room it needs; it must end in one
line, and come to the same once there is room. Leaves with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from leanthink.data.traces.trace import read_traces, to_line
from leanthink.entrypoints.cli import run
from leanthink.utils.file_writing import write_json
from leanthink.utils.provenance import provenance_record

NOT_OF_THE_RESULT = {"seconds", "start", "births", "birth", "train_runtime", "train_samples_per_second"}
OF_TIME = ("seconds", "step_time", "runtime", "per_second")
POLL_SECONDS = 0.0002


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command.

    Attributes:
        words: of its first start, with a folder for what it reads and one for what it writes.
        again: more words, that go on with what is there; of none there it is begun anew.
        result: what is compared, of the folder that it wrote into.
        drafts: patterns of files and folders that are there while something is written.
        writes: how many times that is.
    """

    words: Callable[[Path, Path], list[str]]
    again: Callable[[Path], list[str]]
    result: Callable[[Path], Any]
    drafts: tuple[str, ...] = ("*.partial",)
    writes: int = 1


def lines(path: Path) -> list[str]:
    """Lines of JSON in one order, without what is of a start and not of the result."""
    return sorted(json.dumps(_plain(json.loads(line)), sort_keys=True) for line in path.read_text().splitlines())


def _plain(found: Any) -> Any:
    if isinstance(found, dict):
        kept = {name: _plain(value) for name, value in found.items() if name not in NOT_OF_THE_RESULT}
        return {name: value for name, value in kept.items() if not any(part in name for part in OF_TIME)}
    return [_plain(one) for one in found] if isinstance(found, list) else found


def tensors(path: Path) -> dict[str, Any]:
    """A safetensors file: its metadata, and each tensor's bytes, as NaN is not equal to itself."""
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
    named = {name: json.loads(text) if text[:1] in "[{" else text for name, text in metadata.items()}
    return {"metadata": named, **{name: _bytes(value) for name, value in load_file(path).items()}}


def _bytes(value: Tensor) -> bytes:
    return bytes(value.contiguous().flatten().view(torch.uint8).numpy())


def trained(folder: Path) -> dict[str, Any]:
    """The weights that a run ended with, and its log."""
    run = folder / "run"
    logs = {name: lines(run / name) for name in ("log.jsonl", "rollouts.jsonl")}
    return {"weights": tensors(run / "final" / "model.safetensors"), **logs}


TASKS = ["--tasks", "sums", "--levels", "1"]
SAMPLED = ["--temperature", "0.8", "--max-new-tokens", "120", "--max-num-seqs", "4"]
COPIES = 7  # of each trace that is labelled, so that labels are saved more than once
TRAIN = ["train", "--tasks", "sums", "--levels", "1", "--count", "8", "--max-steps", "5"]
TRAIN += ["--num-generations", "4", "--per-device-train-batch-size", "4"]
TRAIN += ["--max-completion-length", "96", "--learning-rate", "1e-5", "--temperature", "1.5", "--set", "save_steps=1"]
TRAIN += ["--set", "max_num_gen_batches=1", "--set", "warmup_steps=0", "--set", "overlong_buffer=0"]


def _goes_on(path: str) -> Callable[[Path], list[str]]:
    return lambda folder: ["--resume"] if (folder / path).exists() else []


def _train_again(folder: Path) -> list[str]:
    from leanthink.rl.resume import last_whole_checkpoint

    if not (folder / "run").exists():
        return []
    return ["--overwrite"] if last_whole_checkpoint(folder / "run")[0] is None else ["--resume"]


COMMANDS = {
    "collect": Command(
        words=lambda _, to: ["collect", *TASKS, "--count", "8", *SAMPLED, "--out", str(to / "t.jsonl")],
        again=_goes_on("t.jsonl"),
        result=lambda folder: lines(folder / "t.jsonl"),
        drafts=(),
    ),
    "label": Command(
        words=lambda of, to: ["label", "--traces", str(of / "t.jsonl"), "--all", "--out", str(to / "l.safetensors")],
        again=_goes_on("l.safetensors"),
        result=lambda folder: tensors(folder / "l.safetensors"),
        writes=2,
    ),
    "fit": Command(
        words=lambda of, to: [
            "fit", "--traces", str(of / "t.jsonl"), "--labels", str(of / "l.safetensors"), "--all", "--steps", "60",
            "--batch", "512", "--out", str(to / "p.safetensors"),
        ],
        again=lambda folder: ["--overwrite"] if (folder / "p.safetensors").exists() else [],
        result=lambda folder: tensors(folder / "p.safetensors"),
    ),
    "eval": Command(
        words=lambda _, to: [
            "eval", *TASKS, "--count", "3", "--policies", "full,horizon", "--budgets", "48",
            "--eviction-interval", "16", *SAMPLED, "--out", str(to / "run"),
        ],
        again=lambda _: [],
        result=lambda folder: [lines(folder / "run" / "records.jsonl"), lines(folder / "run" / "result.json")],
        drafts=("run/*.partial",),
        writes=2,
    ),
    "train": Command(
        words=lambda _, to: [*TRAIN, "--out", str(to / "run")],
        again=_train_again,
        result=trained,
        drafts=("run/checkpoint-*", "run/*.partial"),
        writes=4,
    ),
}  # fmt: skip


def start(words: list[str], log: Path) -> int:
    """The process that carries out this command line, forked from this one, which has everything imported."""
    child = os.fork()
    if child:
        return child
    with log.open("ab") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    try:
        code = run(words)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ended(child: int, *, wait: bool) -> int | None:
    """The exit code, -9 where it was killed; None where it runs."""
    found, status = os.waitpid(child, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def is_written(folder: Path, drafts: tuple[str, ...]) -> bool:
    """Whether something is being written right now."""
    found = [path for pattern in drafts for path in folder.glob(pattern)]
    return any(not path.is_dir() or not (path / "trainer_state.json").exists() for path in found)


def killed(child: int, command: Command, folder: Path, chance: random.Random, seconds: float, *, writing: bool) -> int:
    """Kill it at a random moment, or while it writes; its exit code, -9 if the kill came before its end."""
    until = time.monotonic() + (10 * seconds if writing else chance.uniform(0, seconds))
    skipped = chance.randrange(command.writes)  # not always the first file
    was = False
    while (code := ended(child, wait=False)) is None:
        now = writing and is_written(folder, command.drafts)
        skipped -= now and not was
        was = now
        if time.monotonic() > until or (now and skipped < 0):
            if now:
                time.sleep(chance.uniform(0, 0.005))
            os.kill(child, signal.SIGKILL)
            return ended(child, wait=True) or 0
        time.sleep(POLL_SECONDS)
    return code


def kills(name: str, given: Path, times: int, seed: int, work: Path) -> dict[str, Any]:
    """Kill a command so many times, going on each time; every end that is reached is compared, and the last one."""
    command, chance, log = COMMANDS[name], random.Random(seed), work / f"{name}.log"
    whole = fresh(work / f"{name}-whole")
    begun = time.monotonic()
    assert ended(start(command.words(given, whole), log), wait=True) == 0, log.read_text()[-2000:]
    seconds, wanted = time.monotonic() - begun, command.result(whole)
    wrong: list[str] = []
    count, inside, compared = 0, 0, 0
    folder = fresh(work / name)
    while not wrong and (count < times or compared == 0):
        kill = count < times
        child = start([*command.words(given, folder), *command.again(folder)], log)
        writing = bool(command.drafts) and count % 2 == 1
        code = killed(child, command, folder, chance, seconds, writing=writing) if kill else ended(child, wait=True)
        if code == -signal.SIGKILL:
            count += 1
            inside += is_written(folder, command.drafts)
            continue
        if code == 0 and command.result(folder) == wanted:
            compared += 1
        else:
            wrong.append(f"exit code {code}, after {count} kills")
        folder = fresh(work / name)
    if "Traceback" in log.read_text():
        wrong.append("a traceback")
    return {"command": name, "kills": count, "inside_a_write": inside, "ends_compared": compared, "wrong": wrong,
            "seconds_uninterrupted": round(seconds, 2)}  # fmt: skip


def fresh(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """A file system in memory of this size."""
    fresh(folder)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def disk(name: str, given: Path, work: Path) -> dict[str, Any]:
    """Run a command where half of what it needs has room; then make room, and go on."""
    command, log = COMMANDS[name], work / f"{name}.log"
    whole, folder = fresh(work / f"{name}-whole"), work / f"{name}-disk"
    assert ended(start(command.words(given, whole), log), wait=True) == 0, log.read_text()[-2000:]
    wanted, needs = command.result(whole), sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    log.write_text("")
    wrong = []
    kilobytes = max(8, needs // 2048)
    with small_disk(folder, kilobytes):
        code = ended(start(command.words(given, folder), log), wait=True)
        told = [line for line in log.read_text().splitlines() if "cannot be written" in line]
        if code != 1 or len(told) != 1 or "Traceback" in log.read_text():
            wrong.append(f"exit code {code}, lines {told}")
        kept = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True)
        code = ended(start([*command.words(given, folder), *command.again(folder)], log), wait=True)
        if code != 0 or command.result(folder) != wanted:
            wrong.append(f"exit code {code} once there was room")
    return {"command": name, "needs_bytes": needs, "disk_kilobytes": kilobytes, "kept_bytes": kept,
            "told": [line.replace(str(folder), "DISK") for line in told], "wrong": wrong}  # fmt: skip


def prepared(work: Path) -> Path:
    """Traces and their labels, for what reads some."""
    given, log = fresh(work / "given"), work / "given.log"
    brief = [*COMMANDS["collect"].words(given, given), "--max-new-tokens", "40"]
    assert ended(start(brief, log), wait=True) == 0, log.read_text()[-2000:]
    traces = read_traces(given / "t.jsonl")
    copies = (to_line(replace(trace, sample=sample)) for trace in traces for sample in range(COPIES))
    (given / "t.jsonl").write_text("".join(line + "\n" for line in copies))
    assert ended(start(COMMANDS["label"].words(given, given), log), wait=True) == 0, log.read_text()[-2000:]
    return given


def import_all(commands: list[str]) -> None:
    """What these commands import, so that a fork starts at once."""
    import leanthink.eval.run
    import leanthink.importance.collect
    import leanthink.importance.fit

    if "train" in commands:
        import leanthink.rl.run
        import leanthink.rl.trainer  # noqa: F401


def main() -> None:
    """Run, print a line a command, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("how", choices=("kill", "disk"))
    parser.add_argument("commands", nargs="+", choices=COMMANDS)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    import_all(asked.commands)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        given = prepared(work) if {"label", "fit"} & set(asked.commands) else work
        found = []
        for command in asked.commands:
            is_kill = asked.how == "kill"
            one = kills(command, given, asked.times, asked.seed, work) if is_kill else disk(command, given, work)
            print(json.dumps(one), flush=True)
            found.append(one)
    if asked.out is not None:
        write_json(asked.out, {"birth": provenance_record("cpu"), "seed": asked.seed, "found": found}, indent=1)
    sys.exit(any(one["wrong"] for one in found))


if __name__ == "__main__":
    main()
