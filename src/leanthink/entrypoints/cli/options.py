"""Options that several commands share, spelt the same everywhere, and the objects they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from leanthink.entrypoints.cli.grouped import given
from leanthink.entrypoints.cli.help import option
from leanthink.entrypoints.cli.output import say
from leanthink.utils.errors import UsageError, unknown
from leanthink.utils.file_reading import parse_json

if TYPE_CHECKING:
    from leanthink.engine.request import Predictor
    from leanthink.engine.sampling import Sampling
    from leanthink.importance.inference_backend import InferenceBackend
    from leanthink.models.prompt import ChatOptions
    from leanthink.policies.budget import Budget

DEFAULT_SLOTS = 256
POLICY = "NAME[:key=value,...]"
DTYPES = ("float32", "bfloat16", "float16", "auto")

Model = Annotated[
    str,
    option("--model", about="tiny, a folder, a .gguf file or a hub id.", default="tiny", metavar="NAME"),
]
Device = Annotated[str | None, option("--device", about="cpu, cuda or cuda:N.", default="cuda where there is one")]
Dtype = Annotated[
    str | None, option("--dtype", about=f"{', '.join(DTYPES)}.", default="bfloat16 on cuda, float32 on cpu")
]
Policy = Annotated[
    str | None,
    option(
        "--policy",
        about="How thought slots are ranked; full keeps all.",
        default="horizon, r-kv where no predictor is fitted",
        metavar=POLICY,
    ),
]
Slots = Annotated[
    int | None, option("--budget", about="Thought slots that stay.", default=DEFAULT_SLOTS, metavar="SLOTS")
]
RecentWindow = Annotated[
    int | None, option("--recent-window", about="Youngest thought tokens, never evicted.", default=32, metavar="TOKENS")
]
EvictionInterval = Annotated[
    int | None,
    option("--eviction-interval", about="Tokens that gather between evictions.", default=64, metavar="TOKENS"),
]
MaxAnswerSlots = Annotated[
    int | None, option("--max-answer-slots", about="Most slots of the answer.", default=1024, metavar="SLOTS")
]
PredictorFile = Annotated[
    Path | None,
    option(
        "--predictor", about="Fitted importance predictor.", default="the one shipped with the model", metavar="FILE"
    ),
]
IgnorePredictorMismatch = Annotated[
    bool, option("--ignore-predictor-mismatch", about="Take one fitted to a relative of the model.")
]
Temperature = Annotated[float | None, option("--temperature", about="0 is greedy.", default=0.0)]
TopP = Annotated[float | None, option("--top-p", about="Nucleus to sample from; 1 is off.", default=1.0)]
TopK = Annotated[int | None, option("--top-k", about="Likeliest tokens to sample from; 0 is off.", default=0)]
MinP = Annotated[float | None, option("--min-p", about="Least share of the likeliest token; 0 is off.", default=0.0)]
ModelTemperature = Annotated[
    float | None, option("--temperature", about="0 is greedy.", default="the model's, else 0.0")
]
ModelTopP = Annotated[
    float | None, option("--top-p", about="Nucleus to sample from; 1 is off.", default="the model's, else 1.0")
]
ModelTopK = Annotated[
    int | None, option("--top-k", about="Likeliest tokens to sample from; 0 is off.", default="the model's, else 0")
]
ModelMinP = Annotated[
    float | None,
    option("--min-p", about="Least share of the likeliest token; 0 is off.", default="the model's, else 0.0"),
]
MaxNewTokens = Annotated[
    int | None, option("--max-new-tokens", about="Most tokens generated for a prompt.", default=16384, metavar="TOKENS")
]
Seed = Annotated[int | None, option("--seed", about="Same seed, same tokens.", default=0)]
Stop = Annotated[
    list[str] | None, option("--stop", about="Text that ends the output; may be repeated.", metavar="TEXT")
]
ThinkTags = Annotated[
    tuple[str, str] | None,
    option("--think-tags", about="Texts around a thought.", default="those of the model", metavar="START END"),
]
SystemPrompt = Annotated[
    str | None, option("--system-prompt", about="Put before chats without a system message.", metavar="TEXT")
]
AllowedHosts = Annotated[
    str | None,
    option(
        "--allowed-hosts",
        about="Names by which it may be asked: one, a JSON list of them, or * for all.",
        default="on loopback this machine's, elsewhere all",
        metavar="HOSTS",
    ),
]
ChatTemplateKwargs = Annotated[
    str | None,
    option("--chat-template-kwargs", about="Switches of the chat template, as JSON.", metavar="JSON"),
]
SplitSpecialTokens = Annotated[
    bool | None,
    option(
        "--split-special-tokens/--no-split-special-tokens",
        about="Control tokens in a prompt's text stay text.",
        default="on",
    ),
]
CACHING = "--enable-prefix-caching/--no-enable-prefix-caching"
EnablePrefixCaching = Annotated[bool, option(CACHING, about="Compute what prompts share once.", default="on")]
AsyncScheduling = Annotated[
    bool | None,
    option(
        "--async-scheduling/--no-async-scheduling",
        about="Launch a step before the last one's tokens are read.",
        default="on a GPU",
    ),
]
KVCacheDtype = Annotated[
    str | None,
    option(
        "--kv-cache-dtype",
        about="Keys and values: auto, as the model; fp8, in half the memory.",
        default="auto",
        metavar="auto|fp8",
    ),
]
Json = Annotated[bool, option("--json", about="Print one JSON document on standard output.")]
Ray = Annotated[
    str | None, option("--ray", about="Work on engines of this Ray cluster; local starts one.", metavar="ADDRESS")
]
RayWorkers = Annotated[
    int | None, option("--ray-workers", about="Engines on it.", default="one for each GPU, else for each core")
]
MaxNumSeqs = Annotated[int, option("--max-num-seqs", about="Most requests at a time.", default=64)]
Resume = Annotated[bool, option("--resume", about="Go on with the output file of an earlier run.")]
Overwrite = Annotated[bool, option("--overwrite", about="Replace what is there already.")]


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """The budget of a request; what is left out has the defaults of `Budget`."""

    budget: Slots = None
    recent_window: RecentWindow = None
    eviction_interval: EvictionInterval = None
    max_answer_slots: MaxAnswerSlots = None

    def make(self, policy: str | None) -> Budget | None:
        """The budget for this policy, None for full; raises UsageError, also for a policy that cannot be read."""
        from leanthink.policies.budget import Budget

        parts = given(self)
        if policy is not None and is_full(policy):
            if parts:
                flags = ", ".join(f"--{name.replace('_', '-')}" for name in parts)
                raise UsageError(f"policy 'full' keeps everything: leave out {flags}, or choose a policy that evicts")
            return None
        return Budget(slots=parts.pop("budget", DEFAULT_SLOTS), **parts)


@dataclass(frozen=True, kw_only=True)
class PredictorOptions:
    """The importance predictor; raises UsageError for --ignore-predictor-mismatch without a file."""

    predictor: PredictorFile = None
    ignore_predictor_mismatch: IgnorePredictorMismatch = False

    def __post_init__(self) -> None:
        check_borrowing(self.ignore_predictor_mismatch, self.predictor)


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are picked; what is left out has the defaults of `Sampling`, or of the model."""

    temperature: Temperature = None
    top_p: TopP = None
    top_k: TopK = None
    min_p: MinP = None
    max_new_tokens: MaxNewTokens = None
    seed: Seed = None

    def make(self, model: Any = None) -> Sampling:
        """Sampling as given, the rest as the model's generation config says where a model is given."""
        from leanthink.engine.sampling import Sampling

        return Sampling(**self.knobs) if model is None else Sampling.from_model(model, **self.knobs)

    @property
    def knobs(self) -> dict[str, Any]:
        """What was given, by the names of `Sampling`."""
        return given(self)


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """How prompts are made, and which tags set a thought apart."""

    system_prompt: SystemPrompt = None
    chat_template_kwargs: ChatTemplateKwargs = None
    split_special_tokens: SplitSpecialTokens = None
    think_tags: ThinkTags = None

    def make(self) -> ChatOptions:
        """As `leanthink.models.prompt` takes them. Raises UsageError for what is no JSON object."""
        from leanthink.models.prompt import ChatOptions

        text = {"system_prompt": self.system_prompt, "split_special_tokens": self.split_special_tokens}
        return ChatOptions(
            chat_template_kwargs=read_kwargs(self.chat_template_kwargs) or {},
            **{name: value for name, value in text.items() if value is not None},  # type: ignore[arg-type]
        )


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Where a model runs, and in which precision."""

    device: Device = None
    dtype: Dtype = None

    def load(self, model: str, think_tags: tuple[str, str] | None = None) -> tuple[Any, Any]:
        """Model and tokenizer for --model. Raises UsageError for a device that is not there."""
        return load_model(model, self.device, self.dtype, think_tags)


@dataclass(frozen=True, kw_only=True)
class EngineOptions(DeviceOptions):
    """The same, or engines on a Ray cluster."""

    ray: Ray = None
    ray_workers: RayWorkers = None

    def open(
        self,
        model: str,
        predictors: Mapping[str | None, Predictor],
        *,
        think_tags: tuple[str, str] | None = None,
        ignore_predictor_mismatch: bool = False,
        kv_cache_dtype: str | None = None,
    ) -> AbstractContextManager[InferenceBackend]:
        """The model with these predictors; raises UsageError and what loading raises."""
        return open_backend(
            model,
            self.device,
            self.dtype,
            predictors,
            think_tags=think_tags,
            ignore_predictor_mismatch=ignore_predictor_mismatch,
            kv_cache_dtype=kv_cache_dtype,
            ray=self.ray,
            ray_workers=self.ray_workers,
        )


def check_kv_cache_dtype(name: str | None) -> None:
    """Raise UsageError for a --kv-cache-dtype that there is not."""
    from leanthink.engine.quantized_kv import check_kv_cache_dtype as check

    check("auto" if name is None else name)


def is_full(policy: str) -> bool:
    """Whether it keeps everything. Raises UsageError for a policy that cannot be read."""
    from leanthink.policies import parse_spec

    return parse_spec(policy).name == "full"


def read_kwargs(text: str | None) -> dict[str, Any] | None:
    """The object of --chat-template-kwargs; None where it is not given. Raises UsageError for anything else."""
    if text is None:
        return None
    try:
        found = parse_json(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        example = '{"enable_thinking": false}'
        raise UsageError(f"--chat-template-kwargs {text!r}: give a JSON object, such as '{example}'")
    return found


def read_list(flag: str, given: str | None) -> tuple[str, ...]:
    """Of one text, or of a JSON list as vLLM takes it. Raises UsageError for a list that is none of text."""
    if given is None or not given.lstrip().startswith("["):
        return () if given is None else (given,)
    try:
        found = parse_json(given)
    except ValueError as error:
        raise UsageError(f"{flag} {given} is no JSON list: {error}") from error
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise UsageError(f'{flag} {given}: give a list of text, like ["one", "another"]')
    return tuple(found)


@contextmanager
def open_backend(
    model: str,
    device: str | None,
    dtype: str | None,
    predictors: Mapping[str | None, Predictor],
    *,
    think_tags: tuple[str, str] | None = None,
    ignore_predictor_mismatch: bool = False,
    kv_cache_dtype: str | None = None,
    ray: str | None,
    ray_workers: int | None,
) -> Iterator[InferenceBackend]:
    """The model of these options, in this process or on a Ray cluster; raises UsageError and what loading raises."""
    how: Any = {"ignore_predictor_mismatch": ignore_predictor_mismatch}
    if ray is not None:
        _check_dtype(dtype)
        if kv_cache_dtype not in (None, "auto"):
            raise UsageError(f"--kv-cache-dtype {kv_cache_dtype}: engines of --ray have auto; leave one of them out")
        from leanthink.integrations.ray import Engines, Source, connected
        from leanthink.models.predictor_compatibility import borrowed_note

        source = Source(model=model, device=device, dtype=dtype, predictors=predictors, think_tags=think_tags, **how)
        with connected(ray):
            engines = Engines(source, workers=ray_workers, tell=say)
            for name, base in engines.model_info.borrowed.items():  # the engines' own warnings stay where they are
                say(borrowed_note(predictors.get(name, predictors.get(None)), base))
            yield engines
        return
    if ray_workers is not None:
        raise UsageError(f"--ray-workers {ray_workers} belongs to --ray: give the address of a cluster, or local")
    from leanthink.importance.inference_backend import LoadedModel

    loaded, tokenizer = load_model(model, device, dtype, think_tags)
    yield LoadedModel(loaded, tokenizer, predictors, kv_cache_dtype=kv_cache_dtype or "auto", **how)


def load_model(
    name: str, device: str | None, dtype: str | None, think_tags: tuple[str, str] | None = None
) -> tuple[Any, Any]:
    """Model and tokenizer for --model, --device, --dtype and --think-tags.

    Raises UsageError for a device that is not there.
    """
    _check_dtype(dtype)
    from transformers.utils import logging

    from leanthink.data.think_tags import check_pair, set_think_tags
    from leanthink.models.loading import as_dtype, load

    if think_tags is not None:
        check_pair(think_tags)
    logging.disable_progress_bar()
    loaded, tokenizer = load(name, device=device, dtype=as_dtype(dtype))
    if think_tags is not None:
        set_think_tags(tokenizer, *think_tags)
    return loaded, tokenizer


def check_borrowing(ignore_predictor_mismatch: bool, predictor: object) -> None:
    """Raise UsageError for --ignore-predictor-mismatch without --predictor."""
    if ignore_predictor_mismatch and not predictor:
        raise UsageError("--ignore-predictor-mismatch is of --predictor: give its file, or leave it out")


def _check_dtype(dtype: str | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
