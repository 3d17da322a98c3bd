"""How many tokens a model can read and write together: its context."""

from __future__ import annotations

from typing import Any


def context_of(config: Any) -> int:
    """The context of a model with this config, in tokens.

    It is `max_position_embeddings`, or what YaRN gives where that is more: the factor times the context before it. Qwen
    tells its users to add the scaling to a config whose `max_position_embeddings` then still says what it was.
    """
    stated: int = config.max_position_embeddings
    rotation = getattr(config, "rope_parameters", None) or {}
    rotation = rotation.get("full_attention", rotation)  # Gemma's configs have one for each type of layer
    if rotation.get("rope_type") != "yarn":
        return stated
    before, factor = rotation.get("original_max_position_embeddings") or stated, rotation.get("factor") or 1.0
    return max(stated, int(before * factor))
