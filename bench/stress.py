"""Many random requests through one engine, each compared with the same request computed alone, float32 on the CPU.

    python bench/stress.py --requests 2000 --out bench/results/stress.json

Random prompts, lengths, policies, budgets, seeds and cancellations; the engine's integrity is checked after every step,
and the memory of the process is noted along the way.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from pathlib import Path
from typing import Any

from leanthink.data.tasks import registry
from leanthink.engine.engine import Engine
from leanthink.engine.generation import generate
from leanthink.engine.outputs import Completion
from leanthink.engine.sampling import Sampling
from leanthink.models.loading import load
from leanthink.policies.budget import Budget
from leanthink.utils.provenance import provenance_record

POLICIES = ("full", "window", "sinks", "random", "random-heads", "snapkv", "dynts", "horizon")


def draw(chance: random.Random, prompts: list[str]) -> dict[str, Any]:
    """The choices of one request."""
    policy = chance.choice(POLICIES)
    slots = chance.randrange(8, 48)
    budget = Budget(
        slots=slots,
        recent_window=chance.randrange(0, 8),
        eviction_interval=chance.randrange(1, 24),
        max_answer_slots=32,
    )
    return {
        "prompts": chance.choice(prompts),
        "policy": policy,
        "budget": None if policy == "full" else budget,
        "sampling": Sampling(
            max_new_tokens=chance.randrange(1, 90),
            temperature=chance.choice([0.0, 0.6, 1.0]),
            top_k=chance.choice([0, 20]),
            top_p=chance.choice([1.0, 0.95]),
            min_p=chance.choice([0.0, 0.02]),
            seed=chance.randrange(2**63),
        ),
    }


def main() -> None:
    """Run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--slots", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--async-scheduling", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    model, tokenizer = load("tiny")
    prompts = [p.prompt for family in registry.FAMILIES for p in registry.sample(family, 2, 20, options.seed)]
    engine = Engine(
        model,
        tokenizer,
        slots=options.slots,
        rows=options.rows,
        prefill_tokens=64,
        async_scheduling=options.async_scheduling,
    )
    asked: dict[int, dict[str, Any]] = {}
    finished: dict[int, Completion] = {}
    cancelled: set[int] = set()
    megabytes, steps, start = [], 0, time.perf_counter()
    while len(asked) < options.requests or engine.unfinished:
        while len(asked) < options.requests and engine.unfinished < 2 * options.rows:
            choices = draw(chance, prompts)
            asked[engine.add(choices["prompts"], **{k: v for k, v in choices.items() if k != "prompts"})] = choices
        finished |= engine.step().finished
        engine.check_integrity()
        steps += 1
        if chance.random() < 0.02:
            running = sorted(asked.keys() - finished.keys() - cancelled)
            victim = chance.choice(running) if running else -1
            if engine.cancel(victim):
                cancelled.add(victim)
            engine.check_integrity()
        if steps % 200 == 0:
            megabytes.append(_resident_megabytes())
    assert engine.stats().slots_reserved == 0, "slots were lost"
    together = time.perf_counter() - start
    wrong = [i for i, done in finished.items() if generate(model, tokenizer, **asked[i])[0].token_ids != done.token_ids]
    result = {
        "birth": provenance_record(None),
        "seed": options.seed,
        "async_scheduling": options.async_scheduling,
        "requests": len(asked),
        "finished": len(finished),
        "cancelled": len(cancelled),
        "evictions": sum(done.evictions for done in finished.values()),
        "steps": steps,
        "seconds_together": together,
        "different_from_alone": wrong,
        "resident_megabytes_every_200_steps": megabytes,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    options.out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


def _resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
