"""Writes a quantised copy of a checkpoint: the linear weights of its layers, rounded, with their scales beside them.

    python bench/quantised_checkpoint.py FOLDER OUT [--kind fp8]

FOLDER holds safetensors and a config.json; OUT is what vLLM then takes as `--model`. Embeddings, norms and head stay.

- `fp8`: float8_e4m3fn, one scale a weight
- `fp8-channel`, `int8`: as compressed-tensors writes them, one scale a row
- `gptq`: four bits, packed, one scale for 128 numbers of a row

O outputs   I inputs   G groups of inputs   P packed: eight numbers in one
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LARGEST_FP8, LARGEST_INT8, LARGEST_INT4 = torch.finfo(torch.float8_e4m3fn).max, 127, 7
GROUP, PACKED = 128, 8


def in_fp8(weight_OI: Tensor) -> dict[str, Tensor]:
    """One scale."""
    scale = weight_OI.abs().amax() / LARGEST_FP8
    return {"weight": (weight_OI / scale).to(torch.float8_e4m3fn), "weight_scale": scale.reshape(1)}


def in_fp8_rows(weight_OI: Tensor) -> dict[str, Tensor]:
    """One scale a row."""
    scale_O1 = weight_OI.abs().amax(dim=1, keepdim=True) / LARGEST_FP8
    return {"weight": (weight_OI / scale_O1).to(torch.float8_e4m3fn), "weight_scale": scale_O1}


def in_int8(weight_OI: Tensor) -> dict[str, Tensor]:
    """One scale a row."""
    scale_O1 = weight_OI.abs().amax(dim=1, keepdim=True) / LARGEST_INT8
    return {"weight": (weight_OI / scale_O1).round().to(torch.int8), "weight_scale": scale_O1}


def in_gptq(weight_OI: Tensor) -> dict[str, Tensor]:
    """Four bits around a zero of 8, inputs packed eight to a number."""
    weight_OGX = weight_OI.reshape(len(weight_OI), -1, GROUP)
    scale_OG1 = weight_OGX.abs().amax(dim=2, keepdim=True) / LARGEST_INT4
    digits_IO = ((weight_OGX / scale_OG1).round() + 8).flatten(1).to(torch.int32).t()
    zeros_GO = torch.full((scale_OG1.shape[1], len(weight_OI)), 7, dtype=torch.int32)  # one less, as is the custom
    return {
        "qweight": packed(digits_IO.reshape(-1, PACKED, len(weight_OI)).movedim(1, -1)),
        "qzeros": packed(zeros_GO.reshape(len(zeros_GO), -1, PACKED)),
        "scales": scale_OG1[..., 0].t().to(torch.bfloat16),
        "g_idx": torch.arange(weight_OI.shape[1], dtype=torch.int32) // GROUP,
    }


def packed(digits_P: Tensor) -> Tensor:
    """Eight numbers of four bits as one of 32."""
    shifts = torch.arange(PACKED, dtype=torch.int32) * 4
    return (digits_P << shifts).sum(-1, dtype=torch.int32)


def scheme(kind: str, *, form: str) -> dict[str, Any]:
    """What compressed-tensors says of weights with a scale a row, and of inputs with one a token."""
    numbers = {"num_bits": 8, "type": kind, "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**numbers, "strategy": "channel", "dynamic": False},
        "input_activations": {**numbers, "strategy": "token", "dynamic": True},
    }
    return {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
            "ignore": ["lm_head"], "config_groups": {"group_0": group}}  # fmt: skip


KINDS: dict[str, tuple[Callable[[Tensor], dict[str, Tensor]], dict[str, Any]]] = {
    "fp8": (in_fp8, {"quant_method": "fp8", "activation_scheme": "dynamic"}),
    "fp8-channel": (in_fp8_rows, scheme("float", form="float-quantized")),
    "int8": (in_int8, scheme("int", form="int-quantized")),
    "gptq": (in_gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}),
}


def write(source: Path, target: Path, kind: str) -> int:
    """Fill `target` with a copy of `source` in which they are quantised. Returns how many weights these are."""
    quantise, told = KINDS[kind]
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json"))
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": told}, indent=1))
    kept: dict[str, Tensor] = {}
    done = 0
    for file in sorted(source.glob("*.safetensors")):
        for name, weight in load_file(file).items():
            if ".layers." not in name or weight.dim() != 2:
                kept[name] = weight
                continue
            for part, numbers in quantise(weight.float()).items():
                kept[f"{name.removesuffix('weight')}{part}"] = numbers.contiguous()
            done += 1
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    return done


def main() -> None:
    """Read, round, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="fp8")
    options = parser.parse_args()
    print(f"{write(options.folder, options.out, options.kind)} weights rounded")


if __name__ == "__main__":
    main()
