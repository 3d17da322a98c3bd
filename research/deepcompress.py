r"""DeepCompress on the embedded reasoner: five ways to reward length, from one start, with the same data and seeds.

- none: GRPO with dynamic sampling and no length reward, what the others are compared with
- penalty, bonus: the length reward with β = 1 and with β = -1 for every problem
- published: the dual reward; its average starts at 1.0, groups that are all right are dropped
- ours: the dual reward; its average starts at what is observed, groups that are all right keep a bounded signal
- start: no training, only the evaluation

The average forgets half of its start within 11.5 % of the steps, as 0.99 does in the published 600.

1. A start that is right in some of its samples and wrong in others, that can be brief, and that looks at the problem
   before it chooses how to write. The shipped model is hardly ever wrong but in its short style, and chooses its styles
   without looking. So it is trained on, most of all on short thoughts, then by a teacher with habits, who writes one
   kind of problem briefly and another at length, and last by one who errs where nothing is checked (eight minutes on
   an H200):

    export PYTHONPATH=src
    python -m leanthink.models.tiny.train --init tiny --out terse --terse-share 0.7 --steps 2000 --lr 3e-3 \
        --adamw-lr 3e-3 --decay-share 0.7
    python -m leanthink.models.tiny.train --init terse --out habits --terse-share 0.6 --habits 1.0 --steps 2000 \
        --lr 3e-3 --adamw-lr 3e-3 --decay-share 0.7
    python -m leanthink.models.tiny.train --init habits --out start --terse-share 0.3 --habits 1.0 \
        --slip-if-unchecked 0.004 --steps 200 --lr 1e-3 --adamw-lr 1e-3 --warmup-steps 20 --decay-share 1

   That is the start "seeing" among the results. "blind" is without the second step, and has in the last the default
   --terse-share, --habits 0.7 and --slip-if-unchecked 0.008: these habits are hardly learned in 200 steps. "brisk" has
   a style more, short and with checks (and was trained with --lr 1.8e-4, which is too much), from the folder that
   examples/tiny-brief.sh writes:

    python -m leanthink.models.tiny.train --init tiny-brief --out styles --terse-share 0.4 \
        --brisk-share 0.25 --habits 0.5 --steps 1500 --lr 3e-3 --adamw-lr 3e-3 --decay-share 0.7
    python -m leanthink.models.tiny.train --init styles --out start --terse-share 0.12 --brisk-share 0.15 --habits 0.5 \
        --slip-if-unchecked 0.02 --slip-from-level 5 --steps 200 --lr 1e-3 --adamw-lr 1e-3 --warmup-steps 20 \
        --decay-share 1

   "hot" is from the same start as "brisk", with --temperature 1.3 --prompts 32 --oversample 1 --lr 1.5e-4 --clip 0.02
   --steps 88.

2. The pilot: pass ratios of the start's samples by family and level, and by style. Wanted are levels from about 0.2 to
   0.95; give levels that are out of range smaller counts, or leave them out, and leave out those whose thoughts
   --max-tokens cuts: the penalty for that shortens thoughts in every arm.

    python research/deepcompress.py --pilot --start start --asked 8 --max-tokens 3712 --out results

3. The experiment. Each arm is a process, on one of the GPUs in turn (with a GPU for each, --micro 64
   is faster). What comes out is one JSON for each run, and `summary.md`; logs and trained models stay in --work:

    python research/deepcompress.py --start start --seeds 1,2 --parallel 10 --prompts 16 --micro 32 --lr 1.2e-4 \
        --levels 1:64,2:64,3:64,4:64,5:64 --max-tokens 3712 --buffer 64 --eval-temperature 1 --mastered-weight 0.15 \
        --limit-s 900 --out results

   and, with the files of several commands in one folder:

    python research/deepcompress.py --table --out results

Processes on one GPU take turns unless NVIDIA's MPS runs (`nvidia-cuda-mps-control -d` before, `echo quit |
nvidia-cuda-mps-control` after, with CUDA_MPS_PIPE_DIRECTORY and CUDA_MPS_LOG_DIRECTORY set to folders of one's own).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from deepcompress_pilot import pilot
from deepcompress_run import ARMS, curve, run, told, write
from deepcompress_table import START, read, summary

from leanthink.data.tasks.registry import FAMILIES, LEVELS
from leanthink.rl.rewards import ALL_CORRECT_WEIGHT
from leanthink.utils.errors import UsageError, unknown
from leanthink.utils.provenance import provenance_record

GRACE_S = 20  # after its time a run is ended from outside
SUMMARY = "summary.md"


def main(arguments: list[str]) -> int:
    """The command line; the exit status is 1 if a run failed."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        check(options)
        if options.one is not None:
            run(options.one[0], int(options.one[1]), options)
            return 0
        options.out.mkdir(parents=True, exist_ok=True)
        failed = 0
        if options.pilot:
            print(pilot(options), end="")
            return 0
        if not options.table:
            failed = run_all(arguments, options)
        text = summary(read(options.out))
    except UsageError as error:
        parser.error(str(error))
    (options.out / SUMMARY).write_text(text)
    print(text, end="")
    return int(failed > 0)


def make_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the results")
    add("--work", type=Path, default=None, help="folder of logs and trained models; default: a temporary one")
    add("--weights", type=Path, default=None, help="folder for each arm's final weights, bf16 in shards below 15 MB")
    add("--pilot", action="store_true", help="no training: the start's pass ratios")
    add("--table", action="store_true", help="only make the summary anew, of the results in --out")
    add("--start", default="tiny", help="the model that every arm starts from: a folder, or tiny")
    add("--arms", default=",".join(ARMS))
    add("--seeds", default="1", help="of data and training")
    add("--steps", type=int, default=80)
    add("--families", default=",".join(FAMILIES))
    add("--levels", default="1:96,2:96,3:96,4:96,5:96", help="to train on, each with problems of every family")
    add("--prompts", type=int, default=32, help="of a step")
    add("--group", type=int, default=16, help="responses to each prompt")
    add("--micro", type=int, default=16, help="responses in one forward and backward pass")
    add("--max-tokens", type=int, default=2560, help="of a response in training and in the pilot")
    add("--buffer", type=int, default=None, help="last tokens of those, over which a penalty grows; default: a fifth")
    add("--oversample", type=int, default=2, help="of dynamic sampling: prompts of a round for each of the step")
    add("--max-rounds", type=int, default=1, help="of dynamic sampling")
    add("--lr", type=float, default=5e-5)
    add("--schedule", default="cosine", help="of the learning rate, as transformers names it")
    add("--clip", type=float, default=1.0, help="norm above which an update's gradient is scaled down")
    add("--temperature", type=float, default=1.0, help="of the samples in training and in the pilot")
    add("--mastered-weight", type=float, default=ALL_CORRECT_WEIGHT, help="of the arm ours")
    add("--asked", type=int, default=40, help="problems of each family and level in evaluation and pilot")
    add("--eval-samples", type=int, default=4, help="of each problem in the evaluation")
    add("--eval-temperature", type=float, default=0.6, help="0 for greedy, with a single sample")
    add("--eval-tokens", type=int, default=4000, help="of a response in the evaluation")
    add("--eval-rows", type=int, default=1600, help="responses at a time in evaluation and pilot")
    add("--parallel", type=int, default=5, help="arms at a time; the start is evaluated beside them")
    add("--limit-s", type=float, default=550, help="seconds for all runs together; what is late stops at its next step")
    add("--reserve-s", type=float, default=75, help="of that, for a run's evaluation")
    add("--tell-s", type=float, default=20, help="seconds between two reports")
    add("--one", nargs=2, metavar=("ARM", "SEED"), help="carry out one run in this process")
    add("--until", type=float, default=math.inf, help="of --one: when it must have ended, seconds since 1970")
    return parser


def check(options: argparse.Namespace) -> None:
    """Turn what is given as text into what it means. Raises UsageError."""
    options.arms = _names("arm", options.arms, ARMS)
    options.families = _names("family", options.families, FAMILIES)
    options.seeds = [_number("--seeds", text) for text in options.seeds.split(",")]
    pairs = [entry.split(":") for entry in options.levels.split(",")]
    if not all(len(pair) == 2 for pair in pairs):
        raise UsageError(f"--levels {options.levels!r}: give each level with a count, such as 1:64,2:128")
    options.levels = {_number("--levels", level): _number("--levels", count) for level, count in pairs}
    for level in options.levels:
        if level not in LEVELS:
            raise unknown("level", level, LEVELS)
    counts = (
        "steps", "prompts", "micro", "max_tokens", "oversample", "max_rounds", "asked", "eval_samples", "eval_tokens",
        "eval_rows", "parallel",
    )  # fmt: skip
    for name in counts:
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(options, name)}: at least 1")
    for name in ("clip", "temperature"):
        if getattr(options, name) <= 0:
            raise UsageError(f"--{name} {getattr(options, name):g}: above 0, or nothing would be learned")
    if options.eval_temperature == 0 and options.eval_samples > 1:
        raise UsageError(f"--eval-samples {options.eval_samples}: greedy samples are all alike, give 1")
    if options.prompts * options.group % options.micro:
        raise UsageError(
            f"--micro {options.micro} does not divide the {options.prompts * options.group} responses of a step "
            f"(--prompts {options.prompts} x --group {options.group}): give a divisor of it"
        )
    if options.reserve_s >= options.limit_s:
        raise UsageError(f"--reserve-s {options.reserve_s:g} leaves nothing of --limit-s {options.limit_s:g} to train")
    if options.start != "tiny" and not (Path(options.start) / "config.json").is_file():
        raise UsageError(f"--start {options.start!r} is no folder with a model: give one, or tiny")


def _names(what: str, given: str, known: Iterable[str]) -> list[str]:
    for name in given.split(","):
        if name not in list(known):
            raise unknown(what, name, list(known))
    return given.split(",")


def _number(flag: str, text: str) -> int:
    if not text.strip().isdecimal():
        raise UsageError(f"{flag}: {text!r} is no whole number")
    return int(text)


@dataclass(kw_only=True)
class Job:
    """One run, as a process of its own."""

    arm: str
    seed: int
    until: float = math.inf  # seconds of time.time()
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.arm}-{self.seed}"


def jobs_of(options: argparse.Namespace, began: float) -> list[Job]:
    """The runs in their order. Where not all go at a time, each wave of them gets an equal part of the time."""
    trained = [Job(arm=arm, seed=seed) for seed in options.seeds for arm in options.arms if arm != START]
    waves = math.ceil(len(trained) / options.parallel)
    for index, job in enumerate(trained):
        job.until = began + options.limit_s * (index // options.parallel + 1) / waves
    start = [Job(arm=START, seed=options.seeds[0], until=began + options.limit_s)] if START in options.arms else []
    return [*start, *trained]


def run_all(arguments: list[str], options: argparse.Namespace) -> int:
    """Carry out all runs, so many at a time; returns how many failed, each of which has a result that says why."""
    began = told_last = time.time()
    options.work = options.work or Path(tempfile.mkdtemp(prefix="deepcompress-"))
    options.work.mkdir(parents=True, exist_ok=True)
    print(f"logs in {options.work}", flush=True)
    waiting, failed = deque(jobs_of(options, began)), 0
    running: dict[int, Job] = {}  # by place, which decides the GPU; place -1 is that of the start
    try:
        while waiting or running:
            launch(waiting, running, arguments, options)
            time.sleep(0.2)
            for place, job in list(running.items()):
                if ended(job):
                    del running[place]
                    failed += not finished(job, options, time.time() - began)
            if time.time() - told_last > options.tell_s:
                told_last = time.time()
                for job in running.values():
                    print(f"[{told_last - began:4.0f} s] {job.name}: {last_line(options.work, job)}", flush=True)
    finally:
        for job in running.values():
            assert job.process is not None
            job.process.kill()
    return failed


def launch(waiting: deque[Job], running: dict[int, Job], arguments: list[str], options: argparse.Namespace) -> None:
    """Start what has a place; the start needs none."""
    free = [place for place in range(options.parallel) if place not in running]
    while waiting and (free or waiting[0].arm == START):
        job = waiting.popleft()
        place = -1 if job.arm == START else free.pop(0)
        job.process = start(job, place, arguments, options)
        running[place] = job


def start(job: Job, place: int, arguments: list[str], options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Its process, on one of the GPUs in turn."""
    (options.out / f"{job.name}.json").unlink(missing_ok=True)  # of an earlier command
    words = [*arguments, "--work", str(options.work), "--one", job.arm, str(job.seed), "--until", str(job.until)]
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // (options.parallel + 1))), **os.environ}
    count = torch.cuda.device_count()
    if count > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[place % count]
    with (options.work / f"{job.name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), *words], env=environment, stdout=log, stderr=log
        )


def ended(job: Job) -> bool:
    """Whether its process has; one that is too late is killed."""
    assert job.process is not None
    if time.time() > job.until + GRACE_S:
        job.process.kill()
        job.process.wait()
    return job.process.poll() is not None


def finished(job: Job, options: argparse.Namespace, seconds: float) -> bool:
    """Tell that a run has ended; of one that failed, write what is known."""
    assert job.process is not None
    status = job.process.returncode
    print(f"[{seconds:4.0f} s] {job.name} ended with status {status}: {last_line(options.work, job)}", flush=True)
    path = options.out / f"{job.name}.json"
    if status == 0:
        return True
    late = time.time() > job.until
    error = "killed: it was late" if late and status < 0 else f"status {status}: {last_line(options.work, job)}"
    result = {"arm": job.arm, "seed": job.seed, "settings": told(options), "birth": provenance_record()}
    result["curve"] = curve(options.work / job.name)
    known = json.loads(path.read_text()) if path.exists() else {}
    write(path, result | known | {"error": error})
    print((options.work / f"{job.name}.log").read_text()[-2000:], flush=True)
    return False


def last_line(work: Path, job: Job) -> str:
    """Of its log."""
    lines = (work / f"{job.name}.log").read_text(errors="replace").split("\n")
    return next((line.strip()[-160:] for line in reversed(lines) if line.strip()), "-")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
