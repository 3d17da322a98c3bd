"""The entry point of vLLM's group `vllm.general_plugins`, called in each of its processes."""

from __future__ import annotations

import os

from leanthink.integrations.vllm.settings import VARIABLE, settings_here


def register() -> None:
    """Put our classes where vLLM looks for its own; does nothing at all unless LEANTHINK_VLLM is set.

    Raises:
        UsageError: the variable is wrong, or vLLM is of another version.
    """
    if not os.environ.get(VARIABLE):
        return
    from leanthink.integrations.vllm.version import check_version

    check_version()
    settings_here()
    from vllm import ModelRegistry, envs
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from leanthink.integrations.vllm.worker import ARCHITECTURES

    here, on_cpu = "leanthink.integrations.vllm", current_platform.is_cpu()
    v2 = bool(envs.VLLM_USE_V2_MODEL_RUNNER) if on_cpu else True
    for name in ARCHITECTURES:
        ModelRegistry.register_model(name, f"{here}.{'v2.' if v2 else ''}model:{name}")
    ours = f"{here}.v2.cpu.BoundedCpuBackend" if v2 else f"{here}.backend.BoundedBackend"
    register_backend(AttentionBackendEnum.CPU_ATTN, ours)
    register_backend(AttentionBackendEnum.FLASH_ATTN, f"{here}.v2.flash.BoundedFlashBackend")
    _register_manager()


def _register_manager() -> None:
    """Beside the built-in ones: registering ours first would keep vLLM from registering its own."""
    from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
    from vllm.v1.kv_cache_interface import FullAttentionSpec
    from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

    from leanthink.integrations.vllm.manager import BoundedManager, BoundedSpec

    register_all_kvcache_specs(None)
    KVCacheSpecRegistry.register(BoundedSpec, BoundedManager, uniform_type_base_spec=FullAttentionSpec)
