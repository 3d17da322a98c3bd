"""Reasoning models that think inside a fixed KV budget: the public names, each imported when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leanthink.data.think_tags import ThinkTags, set_think_tags, think_tags
    from leanthink.data.traces.trace import Trace, read_traces
    from leanthink.engine.engine import Engine
    from leanthink.engine.generation import generate, stream
    from leanthink.engine.outputs import Completion, Progress, Step
    from leanthink.engine.sampling import Sampling
    from leanthink.integrations.transformers import custom_generate
    from leanthink.models.loading import load
    from leanthink.policies import POLICIES, Policy
    from leanthink.policies.budget import Budget
    from leanthink.utils.errors import (
        DamagedFile,
        DeviceLost,
        LeanThinkError,
        PredictorMismatch,
        RequestFailed,
        UnsupportedModel,
        UsageError,
    )

__all__ = [
    "POLICIES",
    "Budget",
    "Completion",
    "DamagedFile",
    "DeviceLost",
    "Engine",
    "LeanThinkError",
    "Policy",
    "PredictorMismatch",
    "Progress",
    "RequestFailed",
    "Sampling",
    "Step",
    "ThinkTags",
    "Trace",
    "UnsupportedModel",
    "UsageError",
    "custom_generate",
    "generate",
    "load",
    "read_traces",
    "set_think_tags",
    "stream",
    "think_tags",
]
__version__ = "0.1.0"

_HOMES = {
    "POLICIES": "policies",
    "Budget": "policies.budget",
    "Completion": "engine.outputs",
    "DamagedFile": "utils.errors",
    "DeviceLost": "utils.errors",
    "Engine": "engine.engine",
    "LeanThinkError": "utils.errors",
    "Policy": "policies",
    "PredictorMismatch": "utils.errors",
    "Progress": "engine.outputs",
    "RequestFailed": "utils.errors",
    "Sampling": "engine.sampling",
    "Step": "engine.outputs",
    "ThinkTags": "data.think_tags",
    "Trace": "data.traces.trace",
    "UnsupportedModel": "utils.errors",
    "UsageError": "utils.errors",
    "custom_generate": "integrations.transformers",
    "generate": "engine.generation",
    "load": "models.loading",
    "read_traces": "data.traces.trace",
    "set_think_tags": "data.think_tags",
    "stream": "engine.generation",
    "think_tags": "data.think_tags",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `leanthink.policies.budget` alone never loads transformers.
    if name not in _HOMES:
        raise AttributeError(f"module 'leanthink' has no attribute {name!r}")
    return getattr(import_module(f"leanthink.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
