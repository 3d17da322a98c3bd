"""One run of `research/deepcompress.py`: training by the product's own path, and the evaluation."""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from deepcompress_table import MEASURED, START, by_level
from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar

from leanthink.data.grading.grading import last_boxed
from leanthink.data.tasks import registry
from leanthink.data.tasks.problem import Problem
from leanthink.engine.generation import generate
from leanthink.engine.outputs import Completion
from leanthink.engine.sampling import Sampling
from leanthink.models.loading import load
from leanthink.models.tiny.checkpoint import save_weights
from leanthink.rl.run import train
from leanthink.rl.run_log import LOG
from leanthink.rl.trl_reward import SELF_CHECK
from leanthink.utils.provenance import provenance_record

ARMS: dict[str, dict[str, Any]] = {
    START: {},
    "none": {"length_reward_mode": "none"},
    "penalty": {"length_reward_mode": "penalty"},
    "bonus": {"length_reward_mode": "bonus"},
    "published": {"length_reward_mode": "dual", "ema_initial_value": 1.0, "all_correct_weight": 0.0},
    "ours": {"length_reward_mode": "dual", "ema_initial_value": "observed"},  # and a weight of mastered groups
}
HALF_LIFE = 0.115  # of the average, as a share of the steps: 69 of 600, as published
EVALUATION_SEED = 7
ASIDE = ("out", "work", "weights", "pilot", "table", "tell_s", "one", "until")  # options that change no number
CURVE = (
    "accuracy", "thought_tokens", "simple/accuracy", "simple/thought_tokens", "hard/accuracy", "hard/thought_tokens",
    "share_simple", "beta", "pass_ratio/batch", "pass_ratio/average", "length_reward", "groups/all_right",
    "groups/all_wrong", "entropy", "self_checks", "closed", "dynamic_sampling/rounds", "dynamic_sampling/filled",
    "reward", "loss", "grad_norm",
)  # fmt: skip


class TimeLimit(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Stops a run before a step as long as the longest yet would end after `until`, in seconds of `time.time`."""

    def __init__(self, until: float) -> None:
        self.until, self.last, self.longest = until, time.time(), 0.0
        self.stopped: str | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Look at the clock. The first step, which makes the engine's graphs, only counts while it is the only one."""
        now = time.time()
        seconds, self.last = now - self.last, now
        self.longest = seconds if state.global_step <= 2 else max(self.longest, seconds)
        if now + self.longest > self.until and state.global_step < state.max_steps:
            self.stopped = f"time was up after {state.global_step} of {state.max_steps} steps"
            control.should_training_stop = True


def run(arm: str, seed: int, options: argparse.Namespace) -> None:
    """Train, evaluate, and write the result as far as it has come."""
    disable_progress_bar()  # the last line of a log is what is told of a run
    path = options.out / f"{arm}-{seed}.json"
    result: dict[str, Any] = {"arm": arm, "seed": seed, "settings": told(options), "birth": provenance_record()}
    folder = options.start
    if arm != START:
        limit = TimeLimit(options.until - options.reserve_s)
        started = time.time()
        settings = settings_of(arm, seed, options)
        done = train(settings, overwrite=True, tell=lambda line: print(line, flush=True), callbacks=[limit])
        assert done is not None
        folder = done["final"]
        result |= {"training": settings, "curve": curve(Path(done["out"])), "stopped": limit.stopped}
        result["train_seconds"] = time.time() - started
        write(path, result)
        gc.collect()  # the trainer, with its optimiser and the graphs of its engine
        torch.cuda.empty_cache()
    print("evaluation", flush=True)
    model, tokenizer = load(folder)
    result["evaluation"] = evaluate(model, tokenizer, options)
    write(path, result)
    if options.weights and arm != START:
        save_weights(model, options.weights / f"{arm}-{seed}")


def settings_of(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Of `leanthink.rl.run.train`: alike for all arms but for the method.

    One update a generation batch, so that no pass over old log-probabilities is needed, and no checkpoints.
    """
    return {
        "model": options.start,
        "out": str(options.work / f"{arm}-{seed}"),
        "data": {"tasks": options.families, "levels": options.levels, "seed": seed},
        "max_steps": options.steps,
        "learning_rate": options.lr,
        "lr_scheduler_type": options.schedule,
        "max_grad_norm": options.clip,
        "temperature": options.temperature,
        "warmup_steps": min(4, options.steps // 10),
        "num_generations": options.group,
        "per_device_train_batch_size": options.micro,
        "gradient_accumulation_steps": options.prompts * options.group // options.micro,
        "max_completion_length": options.max_tokens,
        "overlong_buffer": options.buffer,
        "oversample": options.oversample,
        "max_num_gen_batches": options.max_rounds,
        "rollout_rows": options.oversample * options.prompts * options.group,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "seed": seed,
        "ema_decay": 0.5 ** (1 / (HALF_LIFE * options.steps)),
        **ARMS[arm],
        **({"all_correct_weight": options.mastered_weight} if arm == "ours" else {}),
    }


def curve(folder: Path) -> list[dict[str, Any]]:
    """What the run log has of each step so far, and the seconds that went into rollouts and into the update."""
    path = folder / LOG
    lines = path.read_text().splitlines() if path.exists() else []
    steps = []
    for record in map(json.loads, lines):
        if "loss" in record:
            seconds = record["rollouts/seconds"]
            step = {"step": record["step"], **{name: record.get(name) for name in CURVE}}
            steps.append(step | {"rollout_seconds": seconds, "update_seconds": record["step_time"] - seconds})
    return steps


def evaluate(model: Any, tokenizer: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Held-out problems of all families and levels, with the full cache; the longest are asked first.

    What is told of a problem is the mean of its samples.
    """
    started = time.time()
    cells = [(family, level) for level in reversed(registry.LEVELS) for family in options.families]
    problems = [p for cell in cells for p in registry.sample(*cell, options.asked, EVALUATION_SEED)]
    asked = [p for p in problems for _ in range(options.eval_samples)]
    how = {"temperature": options.eval_temperature, "max_new_tokens": options.eval_tokens}
    completions = completed(model, tokenizer, asked, max_rows=options.eval_rows, **how)
    found = averaged(judged(asked, completions), options.eval_samples)
    return {
        "seed": EVALUATION_SEED,
        "samples": options.eval_samples,
        "temperature": options.eval_temperature,
        "max_tokens": options.eval_tokens,
        "seconds": time.time() - started,
        "levels": by_level(found),
        "problems": found,
    }


def completed(model: Any, tokenizer: Any, problems: list[Problem], *, max_rows: int, **how: Any) -> list[Completion]:
    """A response to each problem with the full cache, sampled as `how` says, each with a seed of its own."""
    samplings = [Sampling(seed=index, **how) for index in range(len(problems))]
    prompts = [p.prompt for p in problems]
    return generate(model, tokenizer, prompts, policy="full", sampling=samplings, max_rows=max_rows)


def averaged(found: dict[str, list[Any]], samples: int) -> dict[str, list[Any]]:
    """A column for each thing that is known of a problem, from columns of its responses, which lie together."""
    return {
        name: [sum(values[i : i + samples]) / samples for i in range(0, len(values), samples)]
        if name in MEASURED
        else values[::samples]
        for name, values in found.items()
    }


def judged(problems: list[Problem], completions: Iterable[Completion]) -> dict[str, list[Any]]:
    """A column for each thing that is known of a response, with an entry for each problem."""
    found: dict[str, list[Any]] = {name: [] for name in ("id", "family", "level", *MEASURED)}
    for problem, done in zip(problems, completions, strict=True):
        found["id"].append(problem.id)
        found["family"].append(problem.family)
        found["level"].append(problem.level)
        found["right"].append(int(registry.is_correct(problem, last_boxed(done.answer))))
        found["thought_tokens"].append(done.thought_tokens)
        found["unfinished"].append(int(done.finish_reason == "length"))
        found["checks"].append(len(SELF_CHECK.findall(done.thought)))
    return found


def told(options: argparse.Namespace) -> dict[str, Any]:
    """The options that decide a result, in plain JSON types."""
    given = {name: value for name, value in vars(options).items() if name not in ASIDE}
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}


def write(path: Path, result: dict[str, Any]) -> None:
    """All of it or nothing: whoever reads meanwhile finds the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(result) + "\n")
    beside.replace(path)
