"""Whether our policies keep what NVIDIA's kvpress keeps, where the rules coincide: on small random models, per head.

kvpress wants an older transformers than LeanThink, so this runs in an environment of its own, in which only the
policies of LeanThink are used, and these need torch alone:

    python -m venv other && other/bin/pip install kvpress matplotlib
    PYTHONPATH=src other/bin/python bench/kvpress_agreement.py --out bench/results/kvpress_agreement.json

kvpress drops slots once, after a prompt. So the whole sequence is taken for a thought without a prompt, at the moment
of an eviction: both rank the same keys by the same queries.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from kvpress import KeyDiffPress, ObservedAttentionPress, SnapKVPress, TOVAPress
from torch import Tensor
from transformers import CONFIG_MAPPING, AttentionInterface, AutoModelForCausalLM, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from leanthink.policies.budget import top_k
from leanthink.policies.h2o import H2O
from leanthink.policies.keydiff import KeyDiff
from leanthink.policies.observed import observed_attention
from leanthink.policies.policy import Policy, Slots
from leanthink.policies.snapkv import SnapKV
from leanthink.policies.tova import TOVA
from leanthink.utils.provenance import provenance_record

VOCABULARY = 300
WINDOW = 8
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """Two implementations of a rule; `score` ranks our slots, None for the policy's own."""

    press: Callable[[float], Any]
    policy: Policy
    window: int
    says: str
    score: Callable[[Slots], Tensor] | None = None


def per_query(slots: Slots) -> Tensor:
    """The attention that a slot got, divided by the number of queries that could pay it any."""
    assert slots.accumulated_attention is not None
    return slots.accumulated_attention / (slots.ages + 1)


CASES = {
    "snapkv, no pooling": Case(
        press=lambda ratio: SnapKVPress(ratio, window_size=WINDOW, kernel_size=1),
        policy=SnapKV(observation=WINDOW, kernel=1),
        window=WINDOW,
        says="same rule: mean attention of the last queries over query heads, their own slots stay",
    ),
    "snapkv, pooled": Case(
        press=lambda ratio: SnapKVPress(ratio, window_size=WINDOW, kernel_size=5),
        policy=SnapKV(observation=WINDOW, kernel=5),
        window=WINDOW,
        says="kvpress averages over the neighbours, ours takes the maximum as R-KV's decoding form does, and kvpress "
        "ends the pool at the window where ours goes on",
    ),
    "tova": Case(
        press=TOVAPress,
        policy=TOVA(),
        window=1,
        says="same rule: attention of the last query, mean over the heads of the layer; the last slot stays",
    ),
    "keydiff": Case(press=KeyDiffPress, policy=KeyDiff(), window=0, says="same rule: minus the cosine with the anchor"),
    "observed attention": Case(
        press=ObservedAttentionPress,
        policy=H2O(),
        window=0,
        score=per_query,
        says="same sums: ours divided by the number of queries, as kvpress does",
    ),
    "h2o": Case(
        press=ObservedAttentionPress,
        policy=H2O(),
        window=0,
        says="kvpress divides the sum by the number of queries that could see the slot; the paper, and ours, do not, "
        "which favours old slots",
    ),
}


def record(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, seen: list[Any], **how: Any) -> Any:
    """Attention as usual, with queries and keys of each layer noted."""
    seen.append((query, key, value))
    return sdpa_attention_forward(module, query, key, value, mask, **how)


AttentionInterface.register("recording", record)


def make_model(architecture: str, seed: int) -> Any:
    """A random model whose attention is neither flat nor on a single token."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[architecture](**SIZES), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=1.2 * parameter.shape[1] ** -0.5)
    return model


def layers_of(model: Any, ids: Tensor) -> list[Slots]:
    """What a policy is shown of each layer, the whole sequence being its thought."""
    seen: list[Any] = []
    model.config._attn_implementation = "recording"
    model(input_ids=ids, use_cache=False, seen=seen)
    model.config._attn_implementation = "eager"
    tokens = ids.shape[1]
    positions = torch.arange(tokens).expand(1, SIZES["num_key_value_heads"], -1)
    shown = []
    for layer, (query, key, value) in enumerate(seen):
        slots = Slots(
            ages=tokens - 1 - positions,
            positions=positions,
            next_position=torch.tensor([tokens]),
            prompt_tokens=torch.tensor([0]),
            seeds=torch.tensor([0]),
            layer=torch.tensor([layer]),
            keys=key,
            values=value,
            queries=query.unflatten(1, (key.shape[1], -1)),
            scaling=key.shape[-1] ** -0.5,
        )
        shown.append(replace(slots, accumulated_attention=observed_attention(slots, tokens).sum(dim=(2, 3))))
    return shown


def kept_by_press(model: Any, ids: Tensor, press: Any, layers: list[Slots]) -> list[list[set[int]]]:
    """Positions that kvpress leaves in each layer and head, found by their keys."""
    cache = DynamicCache()
    with press(model):
        model(input_ids=ids, past_key_values=cache)
    kept = []
    for held, slots in zip(cache.layers, layers, strict=True):
        assert slots.keys is not None
        far_HKS = torch.cdist(held.keys[0], slots.keys[0])
        kept.append([set(row.argmin(dim=-1).tolist()) for row in far_HKS])
        assert all(len(found) == held.keys.shape[2] for found in kept[-1]), "two tokens have one key"
    return kept


@torch.no_grad()
def compare(case: Case, architecture: str, tokens: int, ratio: float, seed: int) -> list[float]:
    """The share of slots that both keep, for each layer and head."""
    model = make_model(architecture, seed)
    ids = torch.randint(VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(seed))
    layers, shares = layers_of(model, ids), []
    theirs = kept_by_press(model, ids, case.press(ratio), layers)
    for slots, heads in zip(layers, theirs, strict=True):
        scores = case.policy.score(slots) if case.score is None else case.score(slots)
        ours = top_k(scores, slots.ages, torch.zeros_like(slots.ages, dtype=torch.bool), len(heads[0]), case.window)
        for mine, other in zip(ours[0].tolist(), heads, strict=True):
            shares.append(len(set(mine) & other) / len(other))
    return shares


def main() -> None:
    """Every case over architectures, lengths, ratios and seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    grid = [
        (architecture, tokens, ratio, seed)
        for architecture in ("llama", "qwen3")
        for tokens in (40, 200, 333)
        for ratio in (0.3, 0.75)
        for seed in range(options.seeds)
    ]
    rows = []
    for name, case in CASES.items():
        shares = [share for point in grid for share in compare(case, *point)]
        row = {"case": name, "n": len(shares), "same_sets": sum(share == 1 for share in shares) / len(shares)}
        row |= {"overlap": sum(shares) / len(shares), "least_overlap": min(shares), "why": case.says}
        rows.append(row)
        print(f"{name:20} n {row['n']}  same sets {row['same_sets']:.3f}  overlap {row['overlap']:.3f}", flush=True)
    absent = "R-KV, VaSE and SepLLM: not in this kvpress; random per head draws from its own generator"
    birth = provenance_record("cpu") | {"kvpress": version("kvpress")}
    result = {"birth": birth, "seeds": options.seeds, "not_compared": absent, "rows": rows}
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
