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
# What LoraConfig takes besides True and False for init_lora_weights; its others must see data or gradients first.
INITS = ("gaussian", "olora", "orthogonal", "pissa", "loftq")  # and pissa_niter_N
LISTS = ("modules_to_save", "target_parameters")  # of names: peft takes a text for its letters
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
    of_trl = [(name, value[0] if value == ["all-linear"] else value) for name, value in of_trl]  # as TRL does
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
    defaults = {one.name: _default(one) for one in fields(LoraConfig) if one.init and one.name not in ABOUT}
    for name, value in section.items():
        if long.get(name, name) not in defaults:
            raise unknown("key of lora", name, [SHORT.get(known, known) for known in defaults])
        _check_kind(name, value, defaults[long.get(name, name)])
    whole = isinstance(section.get("target_modules", DEFAULTS["target_modules"]), str)
    if whole and section.get("layers_to_transform") is not None:
        raise UsageError("lora: layers_to_transform needs target_modules as a list, such as [q_proj, v_proj]")
    chosen = {long.get(name, name): value for name, value in {**DEFAULTS, **section}.items()}
    if chosen.setdefault("task_type", "CAUSAL_LM") != "CAUSAL_LM":
        raise UsageError(f"lora: task_type={chosen['task_type']!r}: only CAUSAL_LM is trained here; leave it out")
    try:
        config = LoraConfig(**chosen)
    except Exception as error:  # peft checks some values and trips over others
        raise UsageError(f"lora: {' '.join(str(error).split())}") from error
    if rollouts == "engine":
        check_foldable("lora:", config)
    return config


def _check_kind(name: str, value: Any, default: Any) -> None:
    """Raise UsageError for a value that peft would take for another one, or find out about late."""
    if name == "init_lora_weights":
        known = isinstance(value, str) and (value in INITS or value.removeprefix("pissa_niter_").isdecimal())
        if not known and not isinstance(value, bool):
            raise UsageError(f"lora: init_lora_weights={value!r}: true, false, {', '.join(INITS)} or pissa_niter_N")
    elif isinstance(default, bool) and not isinstance(value, bool):
        raise UsageError(f"lora: {name}={value!r}: must be true or false")
    elif name == "r" and type(value) is not int:
        raise UsageError(f"lora: r={value!r}: must be a whole number")
    elif isinstance(default, dict) and not isinstance(value, dict):
        raise UsageError(f"lora: {name}={value!r}: must be a mapping")
    elif name in LISTS and isinstance(value, str):
        raise UsageError(f"lora: {name}={value!r}: must be a list of names")


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
