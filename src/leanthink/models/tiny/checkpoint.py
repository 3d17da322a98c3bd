"""Writes a trained embedded reasoner: weights, tokenizer, checksums, and the provenance of the run."""

from __future__ import annotations

import copy
import dataclasses
import json
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from leanthink.models.tiny.checksums import write_sums
from leanthink.models.tiny.tokenizer import save_tokenizer

if TYPE_CHECKING:
    from leanthink.models.tiny.train import Options, Record


def save_run(model: nn.Module, folder: Path, record: Record, options: Options, arguments: list[str]) -> None:
    """Fill `folder` with everything that `load_tiny` needs, and `train.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder)
    provenance = training_provenance(model, record, options, arguments)
    (folder / "train.json").write_text(json.dumps(provenance) + "\n")
    write_sums(folder)
    print(f"step {record.steps}: loss {record.final_loss:.5f}, saved to {folder}", file=sys.stderr, flush=True)


def save_weights(model: nn.Module, folder: Path) -> None:
    """bf16 safetensors in shards of at most 15 MB, the configs and the tokenizer. `model` is left as it is."""
    saved: Any = copy.deepcopy(model).to("cpu", torch.bfloat16)
    saved.config.dtype = torch.bfloat16
    saved.save_pretrained(folder, max_shard_size="15MB")
    save_tokenizer(folder)


def training_provenance(model: nn.Module, record: Record, options: Options, arguments: list[str]) -> dict[str, Any]:
    """How these weights came to be, in plain JSON types."""
    on_gpu = next(model.parameters()).is_cuda
    return {
        "command": " ".join(["python -m leanthink.models.tiny.train", *arguments]),
        "options": {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(options).items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if on_gpu else 0,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **dataclasses.asdict(record),
    }
