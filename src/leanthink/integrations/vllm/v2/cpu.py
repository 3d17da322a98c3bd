"""The CPU's attention, registered in place of CPU_ATTN when model runner V2 is asked for."""

from __future__ import annotations

from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.kv_cache_interface import AttentionSpec

from leanthink.integrations.vllm.v2.backend import customized


class BoundedCpuBackend(CPUAttentionBackend):  # type: ignore[misc]  # vLLM is not there when types are checked
    """Its metadata are built of the lengths that the model state hands over."""

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """Ours."""
        return customized(spec)
