"""How many more requests vLLM runs at once in one cache when their thoughts are bounded.

    OMP_NUM_THREADS=1 python bench/vllm_concurrency.py --out bench/results/vllm_concurrency.json

Needs the environment of `make test-vllm`. The same problems go to the same engine three times, all at once: without a
budget, with the policy horizon, and with the policy random, which keeps as many slots. After each step the scheduler
and its block pool are asked what runs and what is held; what is told of a run is over the steps in which requests
waited, as those are the ones that memory holds back. Counts are told and no times: they are the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from leanthink import Budget, load
from leanthink.data.grading.grading import last_boxed
from leanthink.data.tasks import registry
from leanthink.data.tasks.problem import Problem
from leanthink.integrations.vllm.settings import VARIABLE
from leanthink.integrations.vllm.version import ROWS
from leanthink.models.prompt import encode_prompt
from leanthink.models.tiny import weights_path
from leanthink.utils.provenance import provenance_record

POLICIES = ("full", "horizon", "random")
BLOCK = 32


def main() -> None:
    """Run all three, tell and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10, help="problems of each family")
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--budget", type=int, default=160)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--interval", type=int, default=32)
    parser.add_argument("--answer", type=int, default=160)
    parser.add_argument("--tokens", type=int, default=1400, help="most tokens of an answer")
    parser.add_argument("--blocks", type=int, default=96, help=f"of the cache, {BLOCK} slots each")
    options = parser.parse_args()
    os.environ |= {
        VARIABLE: json.dumps({"policies": ["horizon", "random"]}),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the scheduler is asked after each step
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    from vllm import LLM

    llm = LLM(
        model=str(weights_path()),
        dtype="float32",
        enforce_eager=True,
        max_model_len=1536,
        block_size=BLOCK,
        num_gpu_blocks_override=options.blocks,
        max_num_seqs=128,
        logits_processors=[ROWS],
    )
    budget = Budget(
        slots=options.budget,
        recent_window=options.window,
        eviction_interval=options.interval,
        max_answer_slots=options.answer,
    )
    problems = [
        problem
        for family in registry.FAMILIES
        for problem in registry.sample(family, options.level, options.count, options.seed)
    ]
    runs = {policy: run(llm.llm_engine, problems, policy, budget, options.tokens) for policy in POLICIES}
    document = provenance_record("cpu") | {
        "vllm": version("vllm-cpu"),
        "dtype": "float32",
        "level": options.level,
        "seed": options.seed,
        "requests": len(problems),
        "blocks": options.blocks,
        "slots_of_a_block": BLOCK,
        "budget": budget.record,
        "runs": runs,
        "more_at_once": {
            policy: runs[policy]["running"]["mean"] / runs["full"]["running"]["mean"] for policy in POLICIES[1:]
        },
    }
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))


def run(engine: Any, problems: Sequence[Problem], policy: str, budget: Budget, tokens: int) -> dict[str, Any]:
    """Answer all problems, and what was seen meanwhile."""
    from vllm import SamplingParams

    _, tokenizer = load("tiny", device="cpu")
    asked: dict[str, Any] = {"leanthink_policy": policy}
    if policy != "full":
        asked |= {"leanthink_budget": budget.slots, "leanthink_recent_window": budget.recent_window}
        asked |= {
            "leanthink_eviction_interval": budget.eviction_interval,
            "leanthink_max_answer_slots": budget.max_answer_slots,
        }
    for index, problem in enumerate(problems):
        prompt = {"prompt_token_ids": encode_prompt(tokenizer, 0, problem.prompt)}
        params = SamplingParams(temperature=0, max_tokens=tokens, extra_args=dict(asked))
        engine.add_request(f"{policy}-{index}", prompt, params)
    scheduler = engine.engine_core.engine_core.scheduler
    manager = scheduler.kv_cache_manager.coordinator.single_type_managers[0]
    preemptions: dict[str, int] = {}
    seen, most, texts, written, steps = [], 0, {}, 0, 0
    while engine.has_unfinished_requests():
        steps += 1
        for output in engine.step():
            if output.finished:
                texts[int(output.request_id.split("-")[1])] = output.outputs[0].text
                written += len(output.outputs[0].token_ids)
        most = max([most, *map(len, manager.req_to_blocks.values())])
        preemptions |= {name: request.num_preemptions for name, request in scheduler.requests.items()}
        if scheduler.waiting:
            seen.append(len(scheduler.running))
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    assert free == scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1, "blocks were lost"
    right = sum(registry.is_correct(problem, last_boxed(texts[index])) for index, problem in enumerate(problems))
    return {
        "running": {"mean": sum(seen) / len(seen), "least": min(seen), "most": max(seen), "steps": len(seen)},
        "most_blocks_of_a_request": most,
        "preemptions": sum(preemptions.values()),
        "tokens": written,
        "steps": steps,
        "correct": right,
    }


if __name__ == "__main__":
    main()
