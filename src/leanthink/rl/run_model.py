"""The model of a training run, by the options of TRL's ModelConfig: its tokenizer, its shape alone, and itself.

What cannot be loaded, adapted or generated from is refused from the config alone, before weights are read.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from leanthink.utils.errors import UsageError, unknown
from leanthink.utils.file_reading import reading

if TYPE_CHECKING:
    from peft import LoraConfig

QUANTIZED = ("load_in_4bit", "load_in_8bit")
DETAILS = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")
OPTIONS = ("attn_implementation", *QUANTIZED, *DETAILS)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def check_options(settings: Mapping[str, Any], *, rollouts: str) -> None:
    """Raise UsageError for options of the model that are unknown, do not go together, or need what is not there."""
    if settings.get("dtype", "float32") not in DTYPES:
        raise unknown("dtype", settings["dtype"], DTYPES)
    for name in (*QUANTIZED, "use_bnb_nested_quant"):
        if not isinstance(settings.get(name, False), bool):
            raise UsageError(f"{name}={settings[name]!r}: must be true or false")
    chosen = [name for name in QUANTIZED if settings.get(name)]
    details = [name for name in DETAILS if settings.get(name)]
    if len(chosen) == 2:
        raise UsageError("load_in_4bit and load_in_8bit exclude each other: give one of them")
    if details and chosen != ["load_in_4bit"]:
        raise UsageError(f"{', '.join(details)} without load_in_4bit: give it too, or leave them out")
    if not chosen:
        return
    if settings.get("lora") is None:
        raise UsageError(f"{chosen[0]} without LoRA: quantized weights cannot be trained; give lora: {{}}")
    served = {"load_in_4bit": ("transformers", "vllm"), "load_in_8bit": ("transformers",)}[chosen[0]]
    if rollouts not in served:
        others = " or ".join(map(repr, served))
        raise UsageError(f"{chosen[0]} with rollouts={rollouts!r}, which needs plain weights: give rollouts={others}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(f"{chosen[0]} needs bitsandbytes, and it is not installed: pip install bitsandbytes")


def load_model(settings: Mapping[str, Any], device: torch.device | None = None, tokenizer: Any = None) -> Any:
    """The model: on the host, as the trainer knows which device is this process's own; quantized, on that device."""
    from leanthink.models.loading import load

    quantized = quantization(settings)
    placed = {} if quantized is None else {"quantization_config": quantized, "device_map": {"": str(device)}}
    dtype = DTYPES[settings.get("dtype", "float32")]
    model, _ = load(settings.get("model", "tiny"), device="cpu", dtype=dtype, tokenizer=tokenizer, **placed)
    if getattr(model, "quantization_method", None) == "gguf":
        # Its weights are whole once they are loaded; transformers goes on calling them quantised and refuses to train.
        model.hf_quantizer.remove_quantization_config(model)
    if settings.get("attn_implementation") is not None:
        model.set_attn_implementation(settings["attn_implementation"])
    return model


def quantization(settings: Mapping[str, Any]) -> Any:
    """What transformers is told of bitsandbytes; None for weights as they are."""
    from trl import ModelConfig, get_quantization_config

    if not any(settings.get(name) for name in QUANTIZED):
        return None
    given = {name: settings[name] for name in (*QUANTIZED, *DETAILS) if name in settings}
    return get_quantization_config(ModelConfig(dtype=settings.get("dtype", "float32"), **given))


def make_tokenizer(settings: Mapping[str, Any]) -> Any:
    """The tokenizer, with the chat template that is asked for. Raises UsageError where that is no file."""
    from leanthink.models.loading import load_tokenizer

    tokenizer = load_tokenizer(settings.get("model", "tiny"))
    template = settings.get("chat_template")
    if template is not None:
        if not Path(template).is_file():
            raise UsageError(f"there is no chat template {template!r}: give the path of a file")
        with reading(template, "chat template", "save it as text in UTF-8"):
            tokenizer.chat_template = Path(template).read_text(encoding="utf-8")
    return tokenizer


def shape_of(settings: Mapping[str, Any], adapters: LoraConfig | None, *, rollouts: str) -> Any:
    """The policy without weights, on the device "meta", with its adapters.

    Raises:
        UsageError: an attention that this model does not have or that is not installed, adapters that do not fit it,
            or, for the engine, adapters of weights that two parts of the model share.
    """
    from transformers import AutoModelForCausalLM

    from leanthink.models.loading import load_config

    config = load_config(settings.get("model", "tiny"))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[settings.get("dtype", "float32")])
    asked = settings.get("attn_implementation")
    if asked is not None:
        try:
            model.set_attn_implementation(asked)
        except (ValueError, ImportError, OSError) as error:
            why = " ".join(str(error).split())
            raise UsageError(f"attn_implementation={asked!r} cannot be had: {why}") from error
        if model.config._attn_implementation != asked or asked.startswith("paged"):
            raise UsageError(f"attn_implementation={asked!r} is none that a model is trained with: give sdpa or eager")
    return model if adapters is None else _adapted(model, adapters, rollouts=rollouts)


def _adapted(model: Any, adapters: LoraConfig, *, rollouts: str) -> Any:
    from peft import get_peft_model

    from leanthink.rl.fused_lora import fuse_lora

    plain = copy(adapters)
    plain.init_lora_weights = True  # some of the others look at weights, which are not there
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # they come again with the weights
            adapted = get_peft_model(model, plain)
    except Exception as error:  # peft checks some values and trips over others
        raise UsageError(f"lora does not fit this model: {' '.join(str(error).split())}") from error
    fuse_lora(adapted)  # as the trainer does: what a forward keeps depends on it
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if rollouts == "engine" and model.config.tie_word_embeddings and any(hasattr(end, "base_layer") for end in ends):
        raise UsageError(
            "lora has target_modules with the embedding or the head, and this model has one table for both: leave "
            "them out, or give rollouts='transformers'"
        )
    return adapted
