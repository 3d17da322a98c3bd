"""vLLM's attention backends, whose cache the scheduler gives to our manager; their kernels stay as they are."""

from __future__ import annotations

from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec

from leanthink.integrations.vllm.manager import BoundedSpec, bounded_spec
from leanthink.integrations.vllm.worker import worker_here
from leanthink.utils.errors import UnsupportedModel


def customized(spec: AttentionSpec) -> AttentionSpec:
    """The same spec under our own type, which is what makes the scheduler choose our manager."""
    if type(spec) is BoundedSpec:
        return spec
    if type(spec) is not FullAttentionSpec:
        raise UnsupportedModel(f"a layer's cache is of type {type(spec).__name__}: only full attention is served")
    return bounded_spec(spec, worker_here().tokenizer_name)
