"""The bodies of requests, as OpenAI's clients send them: every field is honoured, and any other is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from leanthink.engine.sampling import MAX_LOGPROBS
from leanthink.entrypoints.openai.neutral_fields import (
    BODY,
    MESSAGE,
    STREAM_OPTIONS,
    Neutral,
    not_honoured,
    schema_of,
    without_neutral,
)

MOST_STOPS = 4
MOST_ITEMS = 4096  # messages, parts of a message, prompts
MOST_SWITCHES = 64  # of a chat template
MOST = 2**31 - 1
Most = Annotated[int, Field(ge=1, description="A maximum: larger ones than the server's mean the server's.")]
Count = Annotated[int, Field(ge=1, le=MOST)]
POLICY = "What ranks thought slots: a name that GET /v1/models lists, or NAME:key=value,... for other settings."


def _whole_characters(text: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("half of a surrogate pair is no character")
    return text


def _kind_of_prompt(given: object) -> str | None:
    """By the first item: all branches of a union at once would find an error in each item for each branch."""
    first = given[0] if isinstance(given, list) and given else None
    if isinstance(first, str):
        return "list[str]"
    if isinstance(first, list):
        return "list[list[int]]"
    return "str" if isinstance(given, str) else "list[int]" if isinstance(given, list) else None


Text = Annotated[str, AfterValidator(_whole_characters)]
Prompt = Annotated[Text, Field(min_length=1)]
StopText = Annotated[Text, Field(max_length=256)]
# The first error of a list is enough: each costs microseconds, and a body has room for half a million.
Items = Field(min_length=1, max_length=MOST_ITEMS, fail_fast=True)
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=MOST)]], Field(min_length=1, fail_fast=True)]


class Strict(BaseModel):
    """Refuses unknown fields, and takes no text for a number; null stands for a field that is left out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    neutral: ClassVar[Mapping[str, Neutral]] = {}

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, given: Any) -> Any:
        return without_neutral(given, cls.neutral, known=cls.model_fields)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The fields, and those that change nothing."""
        schema = handler(core)
        handler.resolve_ref_schema(schema)["properties"] |= {name: schema_of(it) for name, it in cls.neutral.items()}
        return schema


class StreamOptions(Strict):
    """What a stream carries beside its tokens; nothing without a stream."""

    neutral = STREAM_OPTIONS
    include_usage: bool = False


class Asked(Strict):
    """What both endpoints take."""

    neutral = BODY
    model: str
    n: Annotated[int, Field(ge=1, le=128, description="Choices; choice i of a seeded request has seed + i.")] | None = (
        None
    )
    max_tokens: Most | None = None
    max_completion_tokens: Annotated[Most, Field(description="Another name of max_tokens.")] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MOST, description="0 and -1 are off.")] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-1, lt=2**63, description="-1 draws one.")] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=MOST_STOPS, fail_fast=True)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    policy: Annotated[str, Field(description=POLICY)] | None = None
    budget: Annotated[int, Field(ge=1, le=MOST, description="Thought slots that an eviction leaves.")] | None = None
    recent_window: (
        Annotated[int, Field(ge=0, le=MOST, description="Youngest thought tokens, never evicted.")] | None
    ) = None
    eviction_interval: Annotated[Count, Field(description="Tokens that gather between two evictions.")] | None = None
    max_answer_slots: Annotated[Count, Field(description="Most slots of the answer.")] | None = None
    cache_salt: (
        Annotated[Text, Field(min_length=1, description="What prompts begin with is shared within a salt only.")] | None
    ) = None
    kv_events: Annotated[bool, Field(description="Tell positions and evictions in the stream.")] | None = None
    # Others are ignored: slots bound what a thought keeps, not how long it grows; fewer would make it wrong, not short.
    reasoning_effort: (
        Annotated[
            Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"],
            Field(description="none: as enable_thinking false, for a chat template that reads it. Others are ignored."),
        ]
        | None
    ) = None


class TextPart(Strict):
    """A piece of a message's text."""

    type: Literal["text"]
    text: Text


class Message(Strict):
    """One message; `developer` is another word for `system`."""

    neutral = MESSAGE
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Items] | None = None
    name: Annotated[Text, Field(description="Handed to the chat template.")] | None = None
    reasoning_content: Annotated[Text, Field(description="Of an assistant: handed to the chat template.")] | None = None
    reasoning: Annotated[Text, Field(description="Another name of reasoning_content.")] | None = None
    refusal: Annotated[Text, Field(description="Of an assistant: its text where it has no content.")] | None = None

    @model_validator(mode="after")
    def _belongs_to_the_role(self) -> Self:
        if self.role != "assistant":
            if self.content is None:
                raise not_honoured("content", f"a {self.role} has to say something: give it")
            for field in ("reasoning_content", "reasoning", "refusal"):
                if getattr(self, field):
                    raise not_honoured(field, f"it belongs to the assistant, not to {self.role}: leave it out")
        if self.reasoning and self.reasoning_content and self.reasoning != self.reasoning_content:
            raise not_honoured("reasoning", "it is another name of reasoning_content: give the same, or one of them")
        if self.content and self.refusal:
            raise not_honoured("refusal", "it stands where there is no content: give one of them")
        return self


class ChatBody(Asked):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Items]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    chat_template_kwargs: (
        Annotated[
            dict[str, Any],
            Field(
                max_length=MOST_SWITCHES, description="Switches of the chat template; those it lacks change nothing."
            ),
        ]
        | None
    ) = None
    stop_in_thought: (
        Annotated[bool, Field(description="Look for stop in the thought too; left out: in the answer alone.")] | None
    ) = None
    split_special_tokens: (
        Annotated[bool, Field(description="false: control tokens in messages are no text, but those tokens.")] | None
    ) = None


class TextBody(Asked):
    """The body of POST /v1/completions; the prompt is taken as it is, without the chat template."""

    prompt: Annotated[
        Annotated[Prompt, Tag("str")]
        | Annotated[TokenIds, Tag("list[int]")]
        | Annotated[list[Prompt], Items, Tag("list[str]")]
        | Annotated[list[TokenIds], Items, Tag("list[list[int]]")],
        Discriminator(
            _kind_of_prompt,
            custom_error_type="prompt_type",
            custom_error_message="must be text, a list of texts, a list of token ids, or a list of such lists",
        ),
    ]
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None


class Fault(BaseModel):
    """What went wrong, in words for whoever sent the request."""

    message: str
    type: str
    param: str | None
    code: str | None


class FaultDocument(BaseModel):
    """The body of every answer that is not a success."""

    error: Fault


class KV(BaseModel):
    """The memory of a request's keys and values, added up over its choices."""

    peak_slots: int
    kept_slots: int
    evictions: int
    peak_kv_bytes: int
    full_kv_bytes: int
    reserved_kv_bytes: int


class TokenDetails(BaseModel):
    """What the completion's tokens were."""

    reasoning_tokens: int


class PromptTokenDetails(BaseModel):
    """What the prompt's tokens were."""

    cached_tokens: int


class Usage(BaseModel):
    """What a request cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokenDetails
    completion_tokens_details: TokenDetails
    kv: KV


FinishReason = Literal["stop", "length", "timeout", "shutdown"]


class AssistantMessage(BaseModel):
    """The answer, and the thought before it."""

    role: Literal["assistant"]
    content: str
    reasoning_content: str | None
    reasoning: str | None


class ChatChoice(BaseModel):
    """One of a chat's `n` answers."""

    index: int
    message: AssistantMessage
    logprobs: dict[str, Any] | None
    finish_reason: FinishReason


class ChatDocument(BaseModel):
    """The answer to a chat that is not streamed."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(BaseModel):
    """One continuation of a prompt, thought tags included."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: FinishReason


class TextDocument(BaseModel):
    """The answer to a completion that is not streamed."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class ModelCard(BaseModel):
    """The model, and what requests may ask of it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    leanthink: dict[str, Any]


class ModelList(BaseModel):
    """All models: the one that is served."""

    object: Literal["list"]
    data: list[ModelCard]
