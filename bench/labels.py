"""Cost and error of exact attention labels for a model of Llama-3.1-8B's shape with random weights.

python bench/labels.py --out bench/results/labels.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from leanthink.engine.bench.weights import build
from leanthink.importance.labels import HORIZONS, label_trace
from leanthink.utils.provenance import provenance_record

ANSWER_TOKENS, PROMPT_TOKENS = 200, 100


def shape(layers: int, dtype: torch.dtype) -> LlamaConfig:
    """Weights are to be drawn wide, so that attention is far from uniform."""
    return LlamaConfig(
        vocab_size=128256 if dtype == torch.bfloat16 else 1024, hidden_size=4096, intermediate_size=14336,
        num_hidden_layers=layers, num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131072,
        initializer_range=0.04,
    )  # fmt: skip


@torch.no_grad()
def plain(model: Any, ids: list[int], thought_end: int) -> Tensor:
    """The same labels from the whole attention matrices of transformers' eager attention, float32 softmax."""
    model.set_attn_implementation("eager")
    maps = model(torch.tensor([ids], device=model.device), output_attentions=True, use_cache=False).attentions
    model.set_attn_implementation("sdpa")
    rows = torch.arange(len(ids), device=model.device)
    distance = rows[:, None] - rows
    answer = torch.stack([m[0, :, thought_end + 1 :].float().mean((0, 1)) for m in maps]).mean(0)
    largest = torch.stack([m[0].float().amax(0) for m in maps]).amax(0)
    far = [largest.masked_fill(distance < d, 0).amax(0) for d in HORIZONS]
    return torch.stack([answer, *far], 1)[PROMPT_TOKENS:thought_end].cpu()


def error(device: str, layers: int, tokens: int = 1024) -> dict[str, float]:
    """Our labels against the plain matrices, both in float32, so that nothing but the label code differs."""
    model = build(shape(layers, torch.float32), device, torch.float32)
    ids = torch.randint(0, 1024, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    ours = label_trace(model, ids, PROMPT_TOKENS, tokens - ANSWER_TOKENS).values_TC
    theirs = plain(model, ids, tokens - ANSWER_TOKENS)
    difference = ours - theirs
    return {"largest_absolute": float(difference.abs().max()), "relative": float(difference.norm() / theirs.norm())}


def cost(layers: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Seconds and peak memory on the GPU in bf16, after one warm-up."""
    model = build(shape(layers, torch.bfloat16), "cuda", torch.bfloat16)
    weights = torch.cuda.memory_allocated()
    ids = torch.randint(0, 128256, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    seconds = []
    for _ in range(repeats + 1):
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        label_trace(model, ids, PROMPT_TOKENS, tokens - ANSWER_TOKENS)
        seconds.append(time.perf_counter() - start)
    return {
        "layers": layers,
        "tokens": tokens,
        "weight_bytes": weights,
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "seconds_median": statistics.median(seconds[1:]),
        "seconds_all": seconds[1:],
    }


def main() -> None:
    """Error, and on a GPU the cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--error-layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    result: dict[str, Any] = {"birth": provenance_record(options.device), "error_layers": options.error_layers}
    result["float32_error_at_1024_tokens"] = error(options.device, options.error_layers)
    if options.device != "cpu":
        torch.cuda.empty_cache()
        result |= cost(options.layers, options.tokens, options.repeats)
    print(json.dumps(result, indent=1))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
