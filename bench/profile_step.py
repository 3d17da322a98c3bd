"""Where a decode step of the embedded reasoner goes on this machine: milliseconds per step and the busiest kernels."""

from __future__ import annotations

import argparse
import time

import torch

from leanthink.data.tasks import registry
from leanthink.engine.generation import generate
from leanthink.engine.sampling import Sampling
from leanthink.models.loading import load
from leanthink.policies.budget import Budget


def main() -> None:
    """Time `--steps` steps of `--rows` rows under one policy, then profile twenty."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--policy", default="full")
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    model, tokenizer = load("tiny", device=options.device)
    prompts = [p.prompt for p in registry.sample("sums", 5, options.rows, 3)]
    budget = None if options.policy == "full" else Budget(slots=300, max_answer_slots=128)

    def run(steps: int) -> float:
        start = time.perf_counter()
        sampling = Sampling(temperature=0.6, max_new_tokens=steps)
        generate(
            model, tokenizer, prompts, policy=options.policy, budget=budget, sampling=sampling, max_rows=options.rows
        )
        return time.perf_counter() - start

    run(3)
    short, long = run(20), run(options.steps)
    milliseconds = 1e3 * (long - short) / (options.steps - 20)
    print(f"{milliseconds:.2f} ms a step, {options.rows} rows, {options.policy}; first 20 steps: {short:.2f} s")
    with torch.profiler.profile() as profile:
        run(20)
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=16, max_name_column_width=44))
    if model.device.type == "cuda":
        print(profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=8, max_name_column_width=44))


if __name__ == "__main__":
    main()
