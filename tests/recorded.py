"""Traces made up of random tokens, and a small random model that they could have come from, for tests."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from leanthink.data.traces.trace import Trace

HORIZONS = (2, 8)


def small_model(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    shape = {
        "vocab_size": 20,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "initializer_range": 0.3,
    } | changes
    return Qwen3ForCausalLM(Qwen3Config(**shape)).eval()


def trace(name: str, sample: int = 0, *, thought: int = 20, answer: int = 5, **changes: Any) -> Trace:
    draws = random.Random(f"{name}{sample}")
    plain: dict[str, Any] = {
        "id": name,
        "sample": sample,
        "problem": "?",
        "gold": "1",
        "model": "small",
        "policy": "full",
        "budget": None,
        "seed": 0,
        "temperature": 1.0,
        "prompt_ids": tuple(draws.randrange(20) for _ in range(3)),
        "token_ids": tuple(draws.randrange(20) for _ in range(thought + answer)),
        "text": "",
        "thought_tokens": thought,
        "answer_tokens": answer,
        "finish_reason": "stop",
        "correct": True,
        "peak_slots": 0,
        "kept_slots": 0,
        "evictions": 0,
        "peak_kv_bytes": 0,
        "full_kv_bytes": 0,
    }
    return Trace(**(plain | changes))


TRACES = [trace(f"p{index}", sample, thought=20 + index) for index in range(6) for sample in range(2)]
