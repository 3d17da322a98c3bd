"""LoRA as settings ask for it: under peft's own names or TRL's, in one form, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from leanthink.utils.errors import UsageError, unknown

if TYPE_CHECKING:
    from peft import LoraConfig

DEFAULTS: dict[str, Any] = {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"}
# Keys of the section lora that have another name in peft, and fields of TRL's ModelConfig that are keys of the section.
SHORT = {"lora_alpha": "alpha", "lora_dropout": "dropout"}
OF_TRL = {
    "lora_r": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "lora_modules_to_save": "modules_to_save",
    "lora_task_type": "task_type",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
USE = "use_peft"
# Fields of LoraConfig that say whose adapters they are, not what: they are no settings of a run.
ABOUT = (
    "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "runtime_config",
)  # fmt: skip
# Those that leave adapters whose share of a weight is one matrix: the engine's copy of the policy has it folded in.
FOLDED = (
    "task_type", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "use_rslora",
    "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "ensure_weight_tying",
)  # fmt: skip


def with_lora_section(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with what they say of LoRA in the section `lora` alone, under its names; none: no adapters.

    Raises:
        UsageError: the section is no mapping, a key is there by two names, or use_peft=false with keys of LoRA.
    """
    found = {name: value for name, value in settings.items() if name not in OF_TRL and name != USE}
    given = {name: value for name, value in settings.items() if name in OF_TRL}
    section, use = settings.get("lora"), settings.get(USE)
    if not isinstance(use, bool | None):
        raise UsageError(f"{USE}={use!r}: must be true or false")
    if not isinstance(section, Mapping | None):
        raise UsageError(f"lora={section!r}: a mapping of its keys was expected, such as {{r: 16}}, or {{}}")
    if use is False and (section is not None or given):
        others = [*given, *(["lora"] if section is not None else [])]
        raise UsageError(f"{USE}=false with {', '.join(others)}: leave one of them out")
    if section is None and not given and not use:
        found.pop("lora", None)
        return found
    merged: dict[str, Any] = {}
    of_trl = [(OF_TRL[name], value) for name, value in given.items()]
    for name, value in [*(section or {}).items(), *of_trl]:
        key = SHORT.get(str(name), str(name))
        if key in merged:
            raise UsageError(f"lora: {key} is given by two names: give it once")
        merged[key] = value
    return found | {"lora": merged}


def lora_config(section: Mapping[str, Any], *, rollouts: str) -> LoraConfig:
    """Peft's config of a section `lora`.

    Args:
        section: as of `with_lora_section`; left out keys are DEFAULTS, then peft's own.
        rollouts: "engine" generates with weights that have the adapters folded in, which not all kinds allow.

    Raises:
        UsageError: an unknown key, a value that peft refuses, or adapters that the engine cannot fold.
    """
    from peft import LoraConfig

    long = {short: name for name, short in SHORT.items()}
    names = [field.name for field in fields(LoraConfig) if field.init and field.name not in ABOUT]
    for name in section:
        if long.get(name, name) not in names:
            raise unknown("key of lora", name, [SHORT.get(known, known) for known in names])
    chosen = {long.get(name, name): value for name, value in {**DEFAULTS, **section}.items()}
    if chosen.setdefault("task_type", "CAUSAL_LM") != "CAUSAL_LM":
        raise UsageError(f"lora: task_type={chosen['task_type']!r}: only CAUSAL_LM is trained here; leave it out")
    try:
        config = LoraConfig(**chosen)
    except (TypeError, ValueError, ImportError) as error:
        raise UsageError(f"lora: {' '.join(str(error).split())}") from error
    if rollouts == "engine":
        check_foldable("lora:", config)
    return config


def check_foldable(what: str, config: Any) -> None:
    """Raise UsageError for adapters that are more than a matrix added to a weight, naming the fields that say so."""
    from peft import LoraConfig

    if not isinstance(config, LoraConfig):
        raise UsageError(
            f"{what} {type(config).__name__} is no LoRA, and our engine folds nothing else into weights: use LoRA, or "
            "rollouts='transformers'"
        )
    more = [
        field.name
        for field in fields(config)
        if field.name not in (*ABOUT, *FOLDED) and getattr(config, field.name) != _default(field)
    ]
    if more:
        raise UsageError(
            f"{what} {', '.join(more)} cannot be folded into weights for our engine: use plain LoRA, or "
            "rollouts='transformers'"
        )


def _default(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
