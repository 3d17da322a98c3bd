"""What of a server's configuration the plugin cannot bear on model runner V2."""

from __future__ import annotations

from typing import Any

from leanthink.integrations.vllm.version import check_layers, shared_facts
from leanthink.utils.errors import UsageError

CHECKS = "leanthink.integrations.vllm.v2.checks:Checks"
FP8 = ("fp8", "fp8_e4m3")  # with one scale for all slots of a layer, so that a slot is moved as it is
SCHEDULERS = {
    True: "leanthink.integrations.vllm.v2.scheduler.BoundedAsyncScheduler",
    False: "leanthink.integrations.vllm.v2.scheduler.BoundedScheduler",
}


def check_config(config: Any) -> None:
    """Raise UsageError or UnsupportedModel unless every hook would run, and none of what they do would be undone.

    Args:
        config: vLLM's own, of the whole server.
    """
    for name, given, allowed, why in [*_facts(config), *shared_facts(config, *FP8)]:
        if given not in allowed:
            raise UsageError(f"vLLM's {name} is {given!r}, and LeanThink needs {allowed[0]!r}: {why}")
    if CHECKS not in list(config.model_config.logits_processors or ()):
        raise UsageError(f"start vLLM with --logits-processors {CHECKS}: it refuses wrong requests; see docs/vllm.md")
    check_layers(config.model_config.hf_config)


def _facts(config: Any) -> list[tuple[str, Any, tuple[Any, ...], str]]:
    """What is looked at: its name in vLLM, what it is, what it may be, and why."""
    scheduler = config.scheduler_config
    wanted = SCHEDULERS[bool(scheduler.async_scheduling)]
    given = scheduler.scheduler_cls
    named = f"{given.__module__}.{given.__qualname__}" if isinstance(given, type) else given
    return [
        ("device", config.device_config.device_type, ("cuda", "cpu"), "the plugin was never run on another"),
        ("model runner V2", config.use_v2_model_runner, (True,), "V1 has other hooks; leave VLLM_USE_V2_MODEL_RUNNER"),
        ("scheduler_cls", named, (wanted,), f"it reserves what a request can hold; --scheduler-cls {wanted}"),
    ]
