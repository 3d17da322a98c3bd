"""What a server may be told: where it listens, what requests get by default, and what they may ask for at most."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from leanthink.engine.quantized_kv import check_kv_cache_dtype
from leanthink.models.prompt import PLAIN, ChatOptions
from leanthink.policies import parse_spec
from leanthink.policies.budget import Budget
from leanthink.utils.errors import UsageError, unknown
from leanthink.utils.hosts import allowed_names

MEBIBYTE = 2**20
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\sA-Z]+|null|\*")
GENERATION_CONFIGS = ("auto", "vllm")
USUAL_BUDGET = Budget(slots=256)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One server.

    Attributes:
        name: of the model, as clients give it.
        host, port: where to listen; port 0 takes a free one.
        cache_salt_per_key: requests share what their prompts begin with only with those of the same key, so that
            nobody can tell from the time of an answer what others have asked.
        allowed_origins: pages of these origins may ask from a browser, `("*",)`: of all; none by default.
        allowed_hosts: names that are answered for, as `leanthink.utils.hosts` says; none: on a loopback address
            that of this machine alone, elsewhere all.
        keys: API keys, one of which every request under /v1 must bear; empty: none is asked for.
        policy: of requests that name none, with or without settings; None: the default for the model, as in
            `leanthink.generate`.
        budget: of requests that name none, and where those that give a part of it get the rest; None with "full" only.
        predictor: file for the policies that rank by one; None for the one shipped with the model.
        ignore_predictor_mismatch: let that file be one of another model, of which the served one is a relative.
        max_budget: largest budget that a request may ask for, in slots.
        max_slots: most slots that one choice may reserve (prompt + budget + eviction_interval + max_answer_slots);
            None: all. On a CPU every choice reserves as many as are given here, which is faster.
        generation_config: where the sampling of requests comes from that name none: "auto", the model's generation
            config, or "vllm", which stands for none: temperature 1, and nothing cut off.
        max_new_tokens: most tokens generated for one choice, and what a request gets that names no number.
        max_prompt_tokens: None: up to the context.
        max_choices: most choices of one request, over all its prompts.
        max_body_bytes: largest body of a request.
        rows: most choices that decode at a time.
        kv_gib: memory for keys, values and what the policy remembers of each slot; None: 80 % of what is free on a
            GPU, 2 GiB on a CPU.
        gpu_memory_utilization: instead, on a GPU: the share of its memory that weights, keys and values and all else
            that is on it may take together, as in vLLM.
        kv_cache_dtype: of keys and values, as of `leanthink.generate`.
        max_model_len: most tokens of prompt and output together; None: the model's context.
        queue: most choices that wait for a row; more are refused with 429.
        limit_concurrency: most connections at a time; one more than that costs the one that has waited longest for its
            request.
        read_timeout_seconds: within which a request must have come whole, from when its connection was free for it.
        timeout_seconds: after which a request ends with what it has.
        grace_seconds: after the signal to stop, before what still runs is cut.
        log_text: whether prompts and answers are logged.
        enable_prefix_caching: whether what prompts begin with alike is fed once.
        async_scheduling: whether a step is launched before the tokens of the one before are read; None: on a GPU.
        chat: how chats become prompts, where a request says nothing else.

    Raises:
        UsageError: a value is out of its range, or policy and budget do not go together.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = field(default=(), repr=False)
    cache_salt_per_key: bool = False
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    policy: str | None = None
    budget: Budget | None = USUAL_BUDGET
    predictor: Path | None = None
    ignore_predictor_mismatch: bool = False
    max_budget: int = 8192
    max_slots: int | None = None
    generation_config: str = "auto"
    max_new_tokens: int = 16384
    max_prompt_tokens: int | None = None
    max_choices: int = 16
    max_body_bytes: int = MEBIBYTE
    rows: int = 64
    kv_gib: float | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_dtype: str = "auto"
    max_model_len: int | None = None
    queue: int = 256
    limit_concurrency: int = 1000
    read_timeout_seconds: float = 30.0
    timeout_seconds: float = 600.0
    grace_seconds: float = 30.0
    log_text: bool = False
    enable_prefix_caching: bool = True
    async_scheduling: bool | None = None
    chat: ChatOptions = PLAIN

    def __post_init__(self) -> None:
        if self.policy is not None:
            parse_spec(self.policy)
        if self.generation_config not in GENERATION_CONFIGS:
            raise unknown("generation config", self.generation_config, GENERATION_CONFIGS)
        check_kv_cache_dtype(self.kv_cache_dtype)
        if (self.policy == "full") != (self.budget is None):
            raise UsageError(f"policy {self.policy!r} with {self.budget}: full takes no budget, every other needs one")
        if self.budget is not None and self.budget.slots > self.max_budget:
            raise UsageError(f"budget={self.budget.slots} is above max_budget={self.max_budget}: raise that")
        least = {"port": 0, "queue": 0, "timeout_seconds": 0.1, "grace_seconds": 0, "rows": 1, "max_choices": 1}
        least |= dict.fromkeys(("max_budget", "max_slots", "max_new_tokens", "max_prompt_tokens", "max_body_bytes"), 1)
        least |= {"max_model_len": 2, "limit_concurrency": 1, "read_timeout_seconds": 0.1}
        for name, number in least.items():
            given = getattr(self, name)
            if given is not None and not (number <= given < math.inf):
                raise UsageError(f"{name}={given!r}: must be {number} or more")
        if self.port > 65535:
            raise UsageError(f"port={self.port}: must be 0 (any that is free) to 65535")
        if self.kv_gib is not None and not (0 < self.kv_gib < math.inf):
            raise UsageError(f"kv_gib={self.kv_gib!r}: must be above 0")
        share = self.gpu_memory_utilization
        if share is not None and not (0 < share <= 1):
            raise UsageError(f"gpu_memory_utilization={share!r}: must be above 0 and at most 1")
        if share is not None and self.kv_gib is not None:
            raise UsageError("kv_gib and gpu_memory_utilization both say how much memory: give one of them")
        if not all(key and key.isascii() and key.strip() == key for key in self.keys):
            raise UsageError("an API key is empty, has blanks around it or is not ASCII: clients could not send it")
        if self.cache_salt_per_key and not self.keys:
            raise UsageError("cache_salt_per_key without API keys: give keys, or let clients give a cache_salt each")
        allowed_names(self.host, self.allowed_hosts)
        for origin in self.allowed_origins:
            if not ORIGIN.fullmatch(origin):
                raise UsageError(
                    f"allowed_origins={origin!r}: must be *, or as browsers tell it: scheme, host in small letters and "
                    "port, no path, like http://localhost:3000"
                )
