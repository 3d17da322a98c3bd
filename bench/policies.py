"""Accuracy of every policy at the same thought slots, on held-out problems whose full thought is long.

    python bench/policies.py --out bench/results

The full cache is run first, greedy, over all families and levels (accuracy.json). Problems of levels 4 and 5 with a
thought of at least 1000 tokens are kept, at most --per-family of each family. Then every policy answers the same
problems at the same budget, greedy and in samples, with the prompt pinned for all of them (policies.json). The peak of
a ratio r is (mean full thought) / r thought slots = budget + interval.

A name may have a variant behind a colon: "published" is a peer on the terms it was published with, the prompt ranked
inside the budget (which has the slots of a mean prompt on top, so that as many are held, and of a longer prompt as
many as it needs to fit) and the window its own; "wide" is DynTS with the window of its paper; "ceil", "one" and "bare"
take a part of ours away: the rule that a slot is ranked by the horizon it has reached, all horizons but one, or the
window.

The matrix may be shared among processes: one writes the answers of the full cache with --baseline FILE, the others
read them there, each with a part of --policies and an --out of its own; `--join FOLDER... --out DIR` puts the rows
together. An oracle is a policy for each request, and so evicts each alone: run it greedy, with --samples 0.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import accuracy
import one_a_line
import torch

from leanthink.data.grading.grading import last_boxed
from leanthink.data.tasks import registry
from leanthink.data.tasks.problem import Problem
from leanthink.engine.generation import generate
from leanthink.engine.outputs import Completion
from leanthink.engine.sampling import Sampling
from leanthink.eval.statistics import estimate, mean
from leanthink.importance.labels import Thought
from leanthink.importance.oracle import oracles
from leanthink.models.loading import load
from leanthink.models.predictor import load_predictor
from leanthink.models.prompt import encode_prompt
from leanthink.models.tiny import predictors_path
from leanthink.policies import Policy, make_policy, parse_spec
from leanthink.policies.budget import Budget
from leanthink.utils.provenance import provenance_record

OURS = ("horizon", "dynts", "dynts:wide", "oracle", "horizon:ceil", "horizon:one", "horizon:bare", "dynts:bare")
PEERS = ("sinks", "snapkv", "h2o", "r-kv", "tova", "keydiff", "vase", "sepllm")
COMPARED = (*OURS, *PEERS, *(f"{name}:published" for name in PEERS), "random", "random-heads")
# Windows that are not the common one: shares of the budget, and slots.
SHARE = {"dynts:wide": 2000 / 2900, "h2o:published": 1 / 2}
WINDOWS = {"snapkv:published": 8, "r-kv:published": 8, "vase:published": 64}
# What a variant sets, but for those that only have another budget.
SETTINGS = {
    **{f"{name}:published": f"{name}:pins_prompt=false" for name in PEERS},
    "horizon:ceil": "horizon:rule=ceil",
    "horizon:one": "horizon:only=256",
    "horizon:bare": "horizon:local=false",
}
GREEDY = Sampling(temperature=0.0, max_new_tokens=4000)
INTERVAL, WINDOW, ANSWER = 16, 32, 256


def choose(problems: list[Problem], completions: list[Completion], per_family: int, seed: int) -> list[int]:
    """Indices of problems of levels 4 and 5 whose thought has at least 1000 tokens, at most so many of each family."""
    chosen = []
    for family in registry.FAMILIES:
        pairs = enumerate(zip(problems, completions, strict=True))
        group = [i for i, (p, c) in pairs if p.family == family and p.level >= 4 and c.thought_tokens >= 1000]
        chosen += random.Random(seed).sample(group, min(per_family, len(group)))
    return chosen


def samplings(samples: int, seed: int) -> list[Sampling]:
    """One greedy, then `samples` at temperature 0.6."""
    drawn = [replace(GREEDY, temperature=0.6, seed=seed * 1000 + k) for k in range(samples)]
    return [GREEDY, *drawn]


def measure(problems: list[Problem], per_sampling: list[list[Completion]], seed: int) -> dict[str, object]:
    """Accuracy greedy and sampled, with bootstrap intervals over problems, lengths, slots and families."""
    right = [
        [registry.is_correct(p, last_boxed(c.answer)) for p, c in zip(problems, cs, strict=True)] for cs in per_sampling
    ]
    greedy, sampled = right[:1], right[1:]
    everything = [c for cs in per_sampling for c in cs]
    by_family = {
        family: fmean(r for row in right for r, p in zip(row, problems, strict=True) if p.family == family)
        for family in {p.family for p in problems}
    }
    return {
        "greedy": interval(greedy, seed),
        "sampled": interval(sampled, seed) if sampled else None,
        "by_family": [by_family.get(family) for family in registry.FAMILIES],
        "thought_tokens": sum(c.thought_tokens for c in everything) / len(everything),
        "unfinished": sum(c.finish_reason == "length" for c in everything) / len(everything),
        "peak_thought_slots": max(c.peak_slots - c.prompt_tokens - c.answer_tokens for c in everything),
        "peak_slots": sum(c.peak_slots for c in everything) / len(everything),
        "peak_kv_bytes": sum(c.peak_kv_bytes for c in everything) / len(everything),
    }


def interval(right: Sequence[Sequence[bool]], seed: int) -> list[float | None]:
    """Mean and its 95 % interval, by drawing problems (not samples) with replacement."""
    share_P = torch.tensor(right, dtype=torch.float64).mean(dim=0)
    return estimate(mean(share_P), len(share_P), seed).bounds


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=None)
    parser.add_argument("--per-family", type=int, default=36)
    parser.add_argument("--asked", type=int, default=200, help="problems of each family and level")
    parser.add_argument("--levels", default="1,2,3,4,5", help="of accuracy.json; the matrix needs 4 and 5")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--ratios", default="3.6,4.3/2.8/6,8", help="those between slashes run in one batch")
    parser.add_argument("--policies", default=",".join(COMPARED))
    parser.add_argument("--predictors", type=Path, default=predictors_path(), help="folder of the predictors")
    parser.add_argument("--rows", type=int, default=10000)
    parser.add_argument("--full-rows", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="keep what policies.json has, and add what it lacks")
    parser.add_argument("--baseline", type=Path, help="answers of the full cache: read if it is there, else written")
    parser.add_argument("--join", type=Path, nargs="+", help="run nothing: put the rows of these folders together")
    parser.add_argument("--out", type=Path, required=True, help="folder for accuracy.json and policies.json")
    return parser.parse_args()


def main() -> None:
    """The full cache first, then the matrix; what is finished is written at once."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.join:
        write(options.out, join([read(folder) for folder in options.join]))
        return
    model, tokenizer = load("tiny", device=options.device)
    birth = provenance_record(options.device)
    run = partial(complete, model, tokenizer)
    many = samplings(options.samples, options.seed)
    if options.baseline and options.baseline.exists():
        problems, baseline = read_baseline(options.baseline, many, options)
    else:
        problems, baseline = run_full(run, many, birth, options)
        if options.baseline:
            write_baseline(options.baseline, problems, baseline)
    mean_thought = sum(c.thought_tokens for c in baseline[0]) / len(problems)
    result: dict[str, Any] = {
        "birth": birth,
        "n": len(problems),
        "samples": options.samples,
        "seed": options.seed,
        "mean_full_thought": mean_thought,
        "families": {f: sum(p.family == f for p in problems) for f in registry.FAMILIES},
        "rows": [{"ratio": 1.0, "policy": "full", **measure(problems, baseline, options.seed)}],
    }
    show(result["rows"][-1])
    if options.resume and (options.out / "policies.json").exists():
        result = resumed(read(options.out), result)
    prompts = [encode_prompt(tokenizer, i, p.prompt) for i, p in enumerate(problems)]
    names = options.policies.split(",")
    mean_prompt = round(sum(map(len, prompts)) / len(prompts))
    policies = {name: make(name, model, tokenizer, options.predictors) for name in names if name != "oracle"}
    knowing = make_oracles(model, prompts, baseline) if "oracle" in names else []
    done = {(row["ratio"], row["policy"]) for row in result["rows"]}
    for batch in options.ratios.split("/"):
        start = time.perf_counter()
        cells = [
            Configuration(float(r), name, budget_at(mean_thought / float(r), name))
            for r in batch.split(",")
            for name in names
            if (float(r), name) not in done
        ]
        jobs = [
            Job(knowing[k * len(problems) + i] if cell.name == "oracle" else policies[cell.name], budgets[i], s, p)
            for cell in cells
            for budgets in [[with_prompt(cell.budget, cell.name, mean_prompt, len(ids)) for ids in prompts]]
            for k, s in enumerate(many)
            for i, p in enumerate(problems)
        ]
        per_cell = in_runs(run(jobs, options.rows), len(problems) * len(many))
        for cell, completions in zip(cells, per_cell, strict=True):
            row = measure(problems, in_runs(completions, len(problems)), options.seed)
            result["rows"].append({"ratio": cell.ratio, "policy": cell.name, "budget": cell.budget.record, **row})
            show(result["rows"][-1])
        print(f"{time.perf_counter() - start:.0f} s for ratios {batch}", flush=True)
        write(options.out, result)


@dataclass(frozen=True)
class Job:
    """One request of the matrix."""

    policy: Policy
    budget: Budget | None
    sampling: Sampling
    problem: Problem


@dataclass(frozen=True)
class Configuration:
    """One policy at one ratio."""

    ratio: float
    name: str
    budget: Budget


def complete(model: Any, tokenizer: Any, jobs: list[Job], rows: int) -> list[Completion]:
    """All jobs in one call, in their order."""
    return generate(
        model,
        tokenizer,
        [job.problem.prompt for job in jobs],
        policy=[job.policy for job in jobs],
        budget=[job.budget for job in jobs],
        sampling=[job.sampling for job in jobs],
        max_rows=rows,
    )


def run_full(
    run: Callable[[list[Job], int], list[Completion]],
    many: list[Sampling],
    birth: dict[str, str],
    options: argparse.Namespace,
) -> tuple[list[Problem], list[list[Completion]]]:
    """Write accuracy.json; the problems chosen for the matrix and their completions with the full cache."""
    full = make_policy("full")
    asked = asked_problems(options)
    greedy = run([Job(full, None, GREEDY, p) for p in asked], options.full_rows)
    rows = accuracy.table(asked, greedy)
    print(*map(accuracy.line, rows), sep="\n", flush=True)
    one_a_line.write_table(options.out / "accuracy.json", {"birth": birth, "seed": options.seed, "rows": rows}, "rows")
    chosen = choose(asked, greedy, options.per_family, options.seed)
    problems = [asked[i] for i in chosen]
    sampled = run([Job(full, None, s, p) for s in many[1:] for p in problems], options.full_rows) if many[1:] else []
    return problems, in_runs([*(greedy[i] for i in chosen), *sampled], len(problems))


def asked_problems(options: argparse.Namespace) -> list[Problem]:
    """Problems of every family and of the levels of accuracy.json."""
    levels = [int(level) for level in options.levels.split(",")]
    return [p for f in registry.FAMILIES for k in levels for p in registry.sample(f, k, options.asked, options.seed)]


def write_baseline(path: Path, problems: list[Problem], baseline: list[list[Completion]]) -> None:
    """What other processes need of the full cache's answers; it appears whole or not at all."""
    runs = [[asdict(completion) for completion in completions] for completions in baseline]
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"ids": [problem.id for problem in problems], "runs": runs}))
    part.replace(path)


def read_baseline(
    path: Path, many: list[Sampling], options: argparse.Namespace
) -> tuple[list[Problem], list[list[Completion]]]:
    """The problems and answers that another process wrote, which must have been asked as this one would ask."""
    found = json.loads(path.read_text())
    by_id = {problem.id: problem for problem in asked_problems(options)}
    if len(found["runs"]) != len(many) or not set(found["ids"]) <= set(by_id):
        raise SystemExit(f"{path} was written with other --samples, --seed, --asked or --levels: give another file")
    runs = [[Completion(**done | {"token_ids": tuple(done["token_ids"])}) for done in run] for run in found["runs"]]
    return [by_id[name] for name in found["ids"]], runs


def join(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One result with the rows of all, in the order in which the policies are named above."""
    joined = parts[0]
    for part in parts[1:]:
        joined = resumed(joined, part)
        known = {(row["ratio"], row["policy"]) for row in joined["rows"]}
        joined["rows"] = joined["rows"] + [row for row in part["rows"] if (row["ratio"], row["policy"]) not in known]
    order = {name: place for place, name in enumerate(("full", *COMPARED))}
    joined["rows"].sort(key=lambda row: (row["ratio"], order.get(row["policy"], len(order))))
    return joined


def write(folder: Path, result: dict[str, Any]) -> None:
    one_a_line.write_table(folder / "policies.json", {"resumed": [], **result}, "resumed", "rows")


def read(folder: Path) -> dict[str, Any]:
    return one_a_line.read_table(folder / "policies.json", "resumed", "rows")


def resumed(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """An earlier result, to be added to; it must be of the same problems, and of as many samples or of none."""
    for fact in ("n", "seed", "families", *(("samples",) if now["samples"] else ())):
        if before[fact] != now[fact]:
            raise SystemExit(f"policies.json has {fact} {before[fact]}, this run {now[fact]}: give another --out")
    return {**before, "resumed": [*before.get("resumed", []), now["birth"], *now.get("resumed", [])]}


def budget_at(peak: float, name: str) -> Budget:
    """The budget that never holds more than `peak` thought slots."""
    slots = round(peak) - INTERVAL
    window = 0 if name.endswith((":bare", ":published")) else WINDOW
    window = round(SHARE[name] * slots) if name in SHARE else WINDOWS.get(name, window)
    return Budget(slots=slots, recent_window=window, eviction_interval=INTERVAL, max_answer_slots=ANSWER)


def with_prompt(budget: Budget, name: str, mean_prompt: int, prompt: int) -> Budget:
    """As many slots in the mean, where the prompt is inside the budget: one number for all prompts that fit in it."""
    if not name.endswith(":published"):
        return budget
    return replace(budget, slots=max(budget.slots + mean_prompt, prompt - budget.eviction_interval))


def in_runs(completions: list[Completion], size: int) -> list[list[Completion]]:
    """Cut into runs of `size`, one for each sampling or cell."""
    return [completions[i : i + size] for i in range(0, len(completions), size)]


def make(name: str, model: Any, tokenizer: Any, predictors: Path) -> Policy:
    """A policy, with its predictor from the folder if it ranks by one."""
    spec = parse_spec(SETTINGS.get(name, name.partition(":")[0]))
    learned = spec.kind.target is not None
    predictor = load_predictor(predictors / f"{spec.name}.safetensors", model) if learned else None
    return make_policy(str(spec), predictor, tokenizer)


def make_oracles(model: Any, prompts: list[list[int]], baseline: list[list[Completion]]) -> list[Policy]:
    """One for each problem, sampling after sampling, that knows what was read with the full cache."""
    thoughts = [
        Thought(token_ids=[*ids, *c.token_ids], prompt_tokens=len(ids), thought_end=len(ids) + c.thought_tokens)
        for completions in baseline
        for ids, c in zip(prompts, completions, strict=True)
    ]
    return list(oracles(model, thoughts))


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    of_each = zip(registry.FAMILIES, row["by_family"], strict=True)
    families = " ".join(f"{name[:4]} {share:.2f}" for name, share in of_each if share is not None)
    sampled = "-" if row["sampled"] is None else " ".join(f"{x:.3f}" for x in row["sampled"])
    greedy = " ".join(f"{x:.3f}" for x in row["greedy"])
    print(
        f"{row['ratio']:4} {row['policy']:17} greedy {greedy}  sampled {sampled}  thought {row['thought_tokens']:.0f} "
        f"unfinished {row['unfinished']:.3f} peak {row['peak_thought_slots']}  {families}",
        flush=True,
    )


if __name__ == "__main__":
    main()
