"""FlashAttention, registered in place of FLASH_ATTN."""

from __future__ import annotations

from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend
from vllm.v1.kv_cache_interface import AttentionSpec

from leanthink.integrations.vllm.v2.backend import customized


class BoundedFlashBackend(FlashAttentionBackend):  # type: ignore[misc]  # vLLM is not there when types are checked
    """Its metadata are built of the lengths that the model state hands over."""

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """Ours."""
        return customized(spec)
