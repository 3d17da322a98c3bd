"""Reasoning models that think inside a fixed KV budget: the public names, each imported when it is first used."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leanthink.budget import Budget
    from leanthink.completion import Completion, Step
    from leanthink.engine import Engine, Progress
    from leanthink.errors import (
        DamagedFile,
        DeviceLost,
        LeanThinkError,
        PredictorMismatch,
        RequestFailed,
        UnsupportedModel,
        UsageError,
    )
    from leanthink.generate import generate, stream
    from leanthink.load import load
    from leanthink.policies import POLICIES, Policy
    from leanthink.sampling import Sampling
    from leanthink.tags import ThinkTags, set_think_tags, think_tags
    from leanthink.trace import Trace, read_traces
    from leanthink.transformers_generate import custom_generate

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
    "Budget": "budget",
    "Completion": "completion",
    "DamagedFile": "errors",
    "DeviceLost": "errors",
    "Engine": "engine",
    "LeanThinkError": "errors",
    "Policy": "policies",
    "PredictorMismatch": "errors",
    "Progress": "engine",
    "RequestFailed": "errors",
    "Sampling": "sampling",
    "Step": "completion",
    "ThinkTags": "tags",
    "Trace": "trace",
    "UnsupportedModel": "errors",
    "UsageError": "errors",
    "custom_generate": "transformers_generate",
    "generate": "generate",
    "load": "load",
    "read_traces": "trace",
    "set_think_tags": "tags",
    "stream": "generate",
    "think_tags": "tags",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `leanthink.budget` or `leanthink.trace` alone never load transformers.
    if name not in _HOMES:
        raise AttributeError(f"module 'leanthink' has no attribute {name!r}")
    return getattr(import_module(f"leanthink.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """The package itself, in which the functions `generate` and `load` win over the modules that define them."""

    def __setattr__(self, name: str, value: object) -> None:
        # Importing the module leanthink.generate would otherwise put it where users expect the function.
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
