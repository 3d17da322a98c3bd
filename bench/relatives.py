"""Makes a relative of a model: the linear weights of its layers rounded to eight bits, with a scale for each row.

    python bench/relatives.py MODEL OUT

MODEL is what `--model` takes, such as a GGUF file; OUT is a folder, which `--model` takes too. With a predictor that
was fitted to MODEL, and problems that it was not fitted to:

    leanthink collect --model OUT --problems problems.jsonl --out traces.jsonl
    leanthink label --model OUT --traces traces.jsonl --out labels.safetensors
    leanthink fit --model OUT --traces traces.jsonl --labels labels.safetensors --compare FITTED_TO_MODEL --out OWN
    leanthink eval --model OUT --predictor FITTED_TO_MODEL --ignore-predictor-mismatch --problems others.jsonl --out RUN
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leanthink.models.loading import as_dtype, load
from leanthink.utils.errors import LeanThinkError

LARGEST = 127  # of eight bits with a sign, the same to either side


def main(arguments: Sequence[str] | None = None) -> None:
    """Load, round, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--dtype", default="bfloat16", help="of the saved weights")
    options = parser.parse_args(arguments)
    try:
        model, tokenizer = load(options.model, device="cpu", dtype=as_dtype(options.dtype))
    except LeanThinkError as error:
        parser.error(str(error))
    if getattr(model, "quantization_method", None) == "gguf":
        model.hf_quantizer.remove_quantization_config(model)  # its weights are whole, and it would refuse to be saved
    print(f"{round_weights(model)} weights rounded")
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)


@torch.no_grad()
def round_weights(model: Any) -> int:
    """Round each linear weight of the layers in place; embeddings and head stay. Returns how many these are."""
    linears = [module for module in model.base_model.layers.modules() if isinstance(module, nn.Linear)]
    for linear in linears:
        linear.weight.copy_(in_eight_bits(linear.weight.float()))
    return len(linears)


def in_eight_bits(weight_OI: Tensor) -> Tensor:
    """The nearest of 255 values between minus and plus each row's largest, [O, I] float32."""
    scale_O1 = weight_OI.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / LARGEST
    return (weight_OI / scale_O1).round() * scale_O1


if __name__ == "__main__":
    main()
