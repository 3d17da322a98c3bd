"""Samples per second of rollouts for training: our engine against what TRL does by default, transformers' generate.

Both generate one response for each row of the same generation batch (prompts of the embedded tasks, each repeated for
its group), with the same temperature, the same limit of tokens and the same end tokens, called the way GRPOTrainer
calls them; they take turns, and the first call of each is not counted. Sampled texts differ, so tokens are told too.

PYTHONPATH=src python3 bench/rollouts.py --out bench/results/rollouts
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from leanthink.data.tasks.registry import FAMILIES
from leanthink.engine.bench.measure import seconds, spread
from leanthink.models.loading import load
from leanthink.rl.config import DeepCompressConfig
from leanthink.rl.data import from_tasks
from leanthink.rl.trainer import DeepCompressTrainer
from leanthink.utils.provenance import provenance_record

Tokens = list[list[int]]


def main() -> None:
    """Measure, tell and write `rollouts.json`."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--levels", default="1,2,3", help="of the tasks, every family alike")
    parser.add_argument("--prompts", type=int, default=48 if on_gpu else 6)
    parser.add_argument("--group", type=int, default=16 if on_gpu else 2)
    parser.add_argument("--max-completion", type=int, default=2048 if on_gpu else 128)
    parser.add_argument("--rows", type=int, default=256 if on_gpu else 12, help="of the engine, at a time")
    parser.add_argument("--repeats", type=int, default=5 if on_gpu else 3)
    options = parser.parse_args()
    made = {kind: trainer_for(kind, options) for kind in ("engine", "transformers")}
    device = made["engine"].accelerator.device
    prompts = [row["prompt"] for row in made["engine"].train_dataset for _ in range(options.group)]
    ways: dict[str, Callable[[], Tokens]] = {
        "engine": lambda: list(made["engine"].rollout_func(prompts, made["engine"])["completion_ids"]),
        "transformers": lambda: generate(made["transformers"], prompts),
    }
    found: dict[str, dict[str, list[float]]] = {kind: {"seconds": [], "tokens": []} for kind in ways}
    for repeat in range(options.repeats + 1):
        for kind, way in ways.items():
            spent, texts = timed(way, device)
            assert len(texts) == len(prompts)
            tokens = sum(map(len, texts))
            print(f"{'warm-up' if repeat == 0 else repeat} {kind}: {spent:.2f} s, {tokens} tokens", flush=True)
            if repeat:
                found[kind]["seconds"].append(spent)
                found[kind]["tokens"].append(tokens)
    result = report(found, len(prompts)) | {
        "birth": provenance_record(),
        "settings": vars(options) | {"out": str(options.out)},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "rollouts.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"engine over transformers: {result['samples_per_second_ratio']:.2f} in samples, "
          f"{result['tokens_per_second_ratio']:.2f} in tokens")  # fmt: skip


def trainer_for(kind: str, options: argparse.Namespace) -> Any:
    """A trainer in the middle of nothing, with the model where and as it trains: bfloat16 autocast on a GPU."""
    on_gpu = torch.cuda.is_available()
    model, tokenizer = load(options.model, device="cpu", dtype=torch.float32)
    levels = [int(level) for level in options.levels.split(",")]
    each = -(-options.prompts // (len(FAMILIES) * len(levels)))
    data = from_tasks(list(FAMILIES), levels, each).shuffle(seed=0).select(range(options.prompts))
    settings: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(), "rollouts": kind, "num_generations": options.group, "report_to": "none",
        "per_device_train_batch_size": options.prompts * options.group, "use_cpu": not on_gpu, "bf16": on_gpu,
        "max_completion_length": options.max_completion, "rollout_rows": options.rows, "gradient_checkpointing": False,
    }  # fmt: skip
    trainer = DeepCompressTrainer(model, DeepCompressConfig(**settings), data, processing_class=tokenizer)
    trainer.model_wrapped = trainer.accelerator.prepare_model(trainer.model)
    trainer.model.train()
    return trainer


def generate(trainer: Any, prompts: list[Any]) -> Tokens:
    """As GRPOTrainer generates without a rollout_func."""
    ids, images, fields = trainer._tokenize_prompts(prompts)
    responses, _ = trainer._generate_single_turn(ids, images, fields, trainer.num_generations)
    return list(responses)


def timed(way: Callable[[], Tokens], device: torch.device) -> tuple[float, Tokens]:
    """Seconds, and what came of it."""
    texts: list[Tokens] = []
    spent = seconds(lambda: texts.append(way()), device)
    return spent, texts[0]


def report(found: dict[str, dict[str, list[float]]], samples: int) -> dict[str, Any]:
    """Samples and tokens per second of each way, and the ratios of the medians."""
    per_second: dict[str, dict[str, Any]] = {
        kind: {
            "seconds": spread(entry["seconds"]),
            "samples_per_second": spread([samples / value for value in entry["seconds"]]),
            "tokens_per_second": spread([t / s for t, s in zip(entry["tokens"], entry["seconds"], strict=True)]),
            "mean_tokens": sum(entry["tokens"]) / len(entry["tokens"]) / samples,
        }
        for kind, entry in found.items()
    }
    ratios = {
        f"{unit}_per_second_ratio": per_second["engine"][f"{unit}_per_second"]["median"]
        / per_second["transformers"][f"{unit}_per_second"]["median"]
        for unit in ("samples", "tokens")
    }
    return {"samples": samples, **ratios, **per_second}


if __name__ == "__main__":
    main()
