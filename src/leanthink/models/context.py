"""How many tokens a model can read and write together: its context."""

from __future__ import annotations

from typing import Any


def context_of(config: Any) -> int:
    """The context of a model with this config, in tokens.

    It is `max_position_embeddings`, or what YaRN gives where that is more: the factor times the context before it. Qwen
    tells its users to add the scaling to a config whose `max_position_embeddings` then still says what it was.

    LongRoPE rotates by other angles once the longest sequence is longer than the context before it, and dynamic NTK
    beyond `max_position_embeddings`: keys of one request would depend on another. So the context ends there.
    """
    stated: int = config.max_position_embeddings
    rotations = getattr(config, "rope_parameters", None) or {}
    nested = [entry for entry in rotations.values() if isinstance(entry, dict)]
    before = [_before_scaling(config, each) for each in nested or [rotations] if each.get("rope_type") == "longrope"]
    rotation = rotations.get("full_attention", rotations)  # Gemma's configs have one for each type of layer
    if rotation.get("rope_type") != "yarn":
        return min([stated, *before])
    return max(stated, int(_before_scaling(config, rotation) * (rotation.get("factor") or 1.0)))


def _before_scaling(config: Any, rotation: dict[str, Any]) -> int:
    found: int | None = rotation.get("original_max_position_embeddings")
    return found or getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
