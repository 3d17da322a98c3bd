"""The embedded reasoner: a small reasoning model that ships in the package, with the tasks it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanthink.models.tiny.checksums import check_sums

if TYPE_CHECKING:
    import torch


TINY = "tiny"  # its name for `load` and `--model`


def weights_path() -> Path:
    """The folder of the embedded model's weights, config and tokenizer; plain `from_pretrained` reads it."""
    return Path(__file__).parent / "weights"


def predictors_path() -> Path:
    """The folder of the predictors that are shipped for it, each a file named after its policy."""
    return Path(__file__).parent / "predictors"


def load_tiny(
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    folder: Path | None = None,
    tokenizer: Any = None,
) -> tuple[Any, Any]:
    """The model, in evaluation mode, and its tokenizer.

    Args:
        device: where the model goes.
        dtype: of the weights; None means fp32 on the CPU and bf16 elsewhere.
        folder: another folder written by `leanthink.models.tiny.train`; None means the shipped one.
        tokenizer: one that was loaded before; None: it is loaded.

    Raises:
        DamagedFile: a file is missing or fails its SHA-256.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shipped = folder is None
    folder = folder or weights_path()
    check_sums(folder)
    dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    if shipped:
        model.config._name_or_path = TINY  # what traces and predictors say of their model: a name, not where it lies
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.to(device).eval(), tokenizer
