"""The embedded reasoners: two small reasoning models that ship in the package, with the tasks they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanthink.tiny.checksums import check_sums

if TYPE_CHECKING:
    import torch


TINY, BRIEF = "tiny", "tiny-brief"
_FOLDERS = {TINY: ".", BRIEF: "brief"}
EMBEDDED = tuple(_FOLDERS)


def weights_path(name: str = TINY) -> Path:
    """The folder of an embedded model's weights, config and tokenizer; plain `from_pretrained` reads it."""
    return Path(__file__).parent / _FOLDERS[name] / "weights"


def predictors_path(name: str = TINY) -> Path:
    """The folder of the predictors that are shipped for an embedded model, each a file named after its policy."""
    return Path(__file__).parent / _FOLDERS[name] / "predictors"


def load_tiny(
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    folder: Path | None = None,
    name: str = TINY,
) -> tuple[Any, Any]:
    """The model, in evaluation mode, and its tokenizer.

    Args:
        device: where the model goes.
        dtype: of the weights; None means fp32 on the CPU and bf16 elsewhere.
        folder: another folder written by `leanthink.tiny.train`; None means the one of `name`.
        name: one of EMBEDDED: "tiny", or "tiny-brief", which DeepCompress taught to think in fewer tokens.

    Raises:
        DamagedFile: a file is missing or fails its SHA-256.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shipped = folder is None
    folder = folder or weights_path(name)
    check_sums(folder)
    dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    if shipped:
        model.config._name_or_path = name  # what traces and predictors say of their model: a name, not where it lies
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.to(device).eval(), tokenizer
