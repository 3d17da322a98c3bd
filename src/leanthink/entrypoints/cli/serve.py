"""`leanthink serve`: an OpenAI-compatible server on the bounded cache."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from leanthink.entrypoints.cli import options
from leanthink.entrypoints.cli.grouped import add_command, given
from leanthink.entrypoints.cli.help import option
from leanthink.entrypoints.cli.output import print_json, say
from leanthink.utils.errors import UsageError
from leanthink.utils.file_reading import reading

EXAMPLES = (
    "leanthink serve",
    "leanthink serve --model Qwen/Qwen3-4B --predictor predictor.safetensors --budget 2048 --recent-window 128",
    "leanthink serve --host 0.0.0.0 --keys keys.txt --queue 64",
)
KEY_VARIABLE = "LEANTHINK_API_KEY"
T = TypeVar("T")
Name = Annotated[
    str | None, option("--name", about="Of the model, for clients.", default="as --model, a file's without folders")
]
Host = Annotated[str, option("--host", about="Address to listen on.", default="127.0.0.1", metavar="ADDRESS")]
Port = Annotated[int, option("--port", about="0 takes a free one.", default=8000)]
Keys = Annotated[
    Path | None, option("--keys", about=f"API keys, one a line; else {KEY_VARIABLE} holds one.", metavar="FILE")
]
CacheSaltPerKey = Annotated[
    bool, option("--cache-salt-per-key", about="Share what prompts begin with within an API key only.")
]
Origins = Annotated[
    str | None,
    option(
        "--allowed-origins",
        about="Web pages that may ask: one, a JSON list of them, or * for all.",
        default="none",
        metavar="ORIGINS",
    ),
]
LimitConcurrency = Annotated[
    int | None, option("--limit-concurrency", about="Most connections at a time.", default=1000)
]
ReadTimeout = Annotated[
    float | None,
    option(
        "--read-timeout",
        about="Seconds within which a request must have come whole.",
        default=30,
        metavar="SECONDS",
    ),
]
MaxNumSeqs = Annotated[int | None, option("--max-num-seqs", about="Most choices that decode at a time.", default=64)]
KVGib = Annotated[
    float | None,
    option(
        "--kv-gib",
        about="Memory for keys, values and what the policy remembers beside them.",
        default="80 % of a GPU's free memory, 2 on a CPU",
    ),
]
MaxSlots = Annotated[
    int | None, option("--max-slots", about="Most slots that a choice may reserve; faster on a CPU.", default="all")
]
MaxBudget = Annotated[int | None, option("--max-budget", about="Largest budget a request may ask.", default=8192)]
MaxPrompt = Annotated[
    int | None, option("--max-prompt", about="Longest prompt.", default="the context", metavar="TOKENS")
]
GenerationConfig = Annotated[
    str | None,
    option(
        "--generation-config",
        about="Sampling that clients leave out: auto, as the model says; vllm, temperature 1.",
        default="auto",
        metavar="auto|vllm",
    ),
]
MaxChoices = Annotated[int | None, option("--max-choices", about="Most choices of a request.", default=16)]
MaxBody = Annotated[int | None, option("--max-body", about="Largest body.", default=1048576, metavar="BYTES")]
Queue = Annotated[int | None, option("--queue", about="Most choices that wait; more get 429.", default=256)]
Timeout = Annotated[
    float | None, option("--timeout", about="Seconds after which a request is cut.", default=600, metavar="SECONDS")
]
Grace = Annotated[
    float | None,
    option("--grace", about="Seconds that running requests get to finish at the end.", default=30, metavar="SECONDS"),
]
LogText = Annotated[bool, option("--log-text", about="Log prompts and answers too.")]
# As vLLM's users know them.
ServedModelName = Annotated[str | None, option("--served-model-name", about="As --name.", metavar="NAME")]
GPUMemoryUtilization = Annotated[
    float | None,
    option(
        "--gpu-memory-utilization",
        about="Instead of --kv-gib: share of the GPU's memory for weights and all else.",
        metavar="SHARE",
    ),
]
MaxModelLen = Annotated[
    int | None,
    option("--max-model-len", about="Most tokens of prompt and output.", default="the context", metavar="TOKENS"),
]


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the server listens, and who may ask it."""

    name: Name = None
    served_model_name: ServedModelName = None
    host: Host = "127.0.0.1"
    port: Port = 8000
    keys: Keys = None
    cache_salt_per_key: CacheSaltPerKey = False
    allowed_origins: Origins = None
    allowed_hosts: options.AllowedHosts = None

    def settings(self, model: str) -> dict[str, Any]:
        """These fields of `Settings`. Raises UsageError."""
        return {
            "name": one_of("--name", self.name, "--served-model-name", self.served_model_name) or _served_name(model),
            "host": self.host,
            "port": self.port,
            "keys": _read_keys(self.keys),
            "cache_salt_per_key": self.cache_salt_per_key,
            "allowed_origins": options.read_list("--allowed-origins", self.allowed_origins),
            "allowed_hosts": options.read_list("--allowed-hosts", self.allowed_hosts),
        }


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Memory, numbers and times, by the names of `Settings`; what is left out has its defaults."""

    rows: MaxNumSeqs = None
    kv_gib: KVGib = None
    max_slots: MaxSlots = None
    kv_cache_dtype: options.KVCacheDtype = None
    max_budget: MaxBudget = None
    generation_config: GenerationConfig = None
    max_new_tokens: options.MaxNewTokens = None
    max_prompt_tokens: MaxPrompt = None
    max_choices: MaxChoices = None
    max_body_bytes: MaxBody = None
    queue: Queue = None
    limit_concurrency: LimitConcurrency = None
    read_timeout_seconds: ReadTimeout = None
    timeout_seconds: Timeout = None
    grace_seconds: Grace = None
    log_text: LogText = False
    enable_prefix_caching: options.EnablePrefixCaching = True
    async_scheduling: options.AsyncScheduling = None
    gpu_memory_utilization: GPUMemoryUtilization = None
    max_model_len: MaxModelLen = None


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "serve", "Serve a model to OpenAI's clients, with a bounded KV cache.", EXAMPLES, command)


def command(
    model: options.Model = "tiny",
    *,
    address: Address,
    policy: options.Policy = None,
    slots: options.BudgetOptions,
    learned: options.PredictorOptions,
    prompt: options.PromptOptions,
    limits: Limits,
    where: options.DeviceOptions,
    as_json: options.Json = False,
) -> None:
    """Check everything that can be checked without the model, then load it and serve until a signal comes."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(f"serving needs {error.name}: pip install 'leanthink[serve]'") from error
    from leanthink.entrypoints.openai.settings import Settings

    settings = Settings(
        policy=policy,
        budget=slots.make(policy),
        predictor=learned.predictor,
        ignore_predictor_mismatch=learned.ignore_predictor_mismatch,
        chat=prompt.make(),
        **address.settings(model),
        **given(limits),
    )
    loaded, tokenizer = where.load(model, prompt.think_tags)
    from leanthink.entrypoints.openai.run import serve

    serve(loaded, tokenizer, settings, tell=say, ready=print_json if as_json else _say_ready)


def _say_ready(facts: dict[str, Any]) -> None:
    states = f" and {facts['state_bytes'] / 2**20:.1f} MiB of windows and states" if facts["state_bytes"] else ""
    say(f"serving {facts['model']} at {facts['url']}/v1 on {facts['slots']} slots{states}; Ctrl-C ends it")


def one_of(flag: str, value: T | None, other_flag: str, other: T | None) -> T | None:
    """What was given by either of two spellings; raises UsageError for both."""
    if value is not None and other is not None:
        raise UsageError(f"{flag} and {other_flag} are one thing: give one of them")
    return other if value is None else value


def _served_name(model: str) -> str:
    """A folder or file is named by its last part: where it lies is nobody's business."""
    return Path(model).name if Path(model).exists() else model


def _read_keys(path: Path | None) -> tuple[str, ...]:
    """The keys of a file, or that of the environment. Raises UsageError for a file that is not there or holds none."""
    if path is None:
        key = os.environ.get(KEY_VARIABLE)
        return () if key is None else (key,)
    if not path.is_file():
        raise UsageError(f"there is no file of API keys at {path}: check the path")
    with reading(path, "text in UTF-8", "write API keys as plain text, one a line"):
        text = path.read_text(encoding="utf-8")
    keys = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not keys:
        raise UsageError(f"{path} holds no API key: write one a line")
    return keys
