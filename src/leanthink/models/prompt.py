"""From a prompt as it is given to its token ids: the chat template, its switches, and control tokens that stay text."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from jinja2 import TemplateError

from leanthink.data.think_tags import template_text, think_tags
from leanthink.utils.errors import UsageError

Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | Sequence[int]
OPERATORS = ("assistant", "system", "developer")  # their messages may name the tags of thoughts and tools
PRIVATE = range(0xF0000, 0xFFFFE)  # characters that no text has a meaning for


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How text and chats become prompts.

    Attributes:
        system_prompt: put before a chat that has no system message of its own; None: none.
        chat_template_kwargs: switches of the model's chat template, such as {"enable_thinking": False}.
        split_special_tokens: whether a control token that stands in a message, such as <|im_end|>, stays text; False:
            it is that token, and a message can end its turn and begin another.

    Raises:
        UsageError: a value is of another type.
    """

    system_prompt: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    split_special_tokens: bool = True

    def __post_init__(self) -> None:
        kinds: dict[str, tuple[type | tuple[type, ...], str]] = {
            "system_prompt": ((str, type(None)), "text or None"),
            "chat_template_kwargs": (Mapping, 'a mapping such as {"enable_thinking": False}'),
            "split_special_tokens": (bool, "True or False"),
        }
        for name, (kind, allowed) in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise UsageError(f"{name}={getattr(self, name)!r}: must be {allowed}")

    @property
    def given(self) -> dict[str, Any]:
        """The options that are not left at their defaults, for records of runs."""
        told = {"system_prompt": self.system_prompt, "chat_template_kwargs": dict(self.chat_template_kwargs)}
        return {name: value for name, value in told.items() if value} | (
            {} if self.split_special_tokens else {"split_special_tokens": False}
        )

    def messages(self, chat: Sequence[Message]) -> list[Message]:
        """The chat, with the system prompt before it unless it has one."""
        if not self.system_prompt or (chat and chat[0].get("role") in ("system", "developer")):
            return list(chat)
        return [{"role": "system", "content": self.system_prompt}, *chat]


PLAIN = ChatOptions()


def encode_prompt(tokenizer: Any, index: int, prompt: Prompt, options: ChatOptions = PLAIN) -> list[int]:
    """Token ids of a prompt: text goes through the chat template where there is one; token ids stand for themselves.

    Where there is no template, text is encoded as it is, and control tokens in it mean what they say.

    Raises:
        UsageError: the prompt is empty or of another kind, the template refuses it, or has none of these switches.
    """
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if isinstance(prompt, str):
        if prompt == "":
            raise UsageError(f"prompt {index} is empty: give some text")
        if not has_template:
            _refuse_options(options)
            text_ids: list[int] = tokenizer(prompt).input_ids
            return text_ids
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence):
        raise _no_prompt(index, prompt)
    if prompt and all(isinstance(token, int) and not isinstance(token, bool) for token in prompt):
        return [int(cast(int, token)) for token in prompt]
    if not prompt or not all(isinstance(message, Mapping) for message in prompt):
        raise _no_prompt(index, prompt)
    if not has_template:
        raise UsageError(f"prompt {index} is a chat, and this tokenizer has no chat template: give text instead")
    check_template_kwargs(tokenizer, options.chat_template_kwargs)
    chat = options.messages(cast(Sequence[Message], prompt))
    try:
        return encode_chat(
            tokenizer, chat, options.chat_template_kwargs, split_special_tokens=options.split_special_tokens
        )
    except UsageError:
        raise
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise UsageError(f"prompt {index} is refused by the model's chat template: {error}") from error


def _no_prompt(index: int, given: object) -> UsageError:
    return UsageError(f"prompt {index} is {given!r}: give text, a list of chat messages, or a list of token ids")


def _refuse_options(options: ChatOptions) -> None:
    given = [name for name in options.given if name != "split_special_tokens"]
    if given:
        raise UsageError(f"{given[0]} belongs to a chat template, and this tokenizer has none: leave it out")


def check_template_kwargs(tokenizer: Any, kwargs: Mapping[str, Any]) -> None:
    """Raise UsageError for a switch that this tokenizer's chat template does not know, or that is no switch."""
    known = known_template_kwargs(tokenizer, kwargs)
    for name in kwargs:
        if name not in known:
            raise UsageError(
                f"chat_template_kwargs: the model's chat template has no {name!r}, so it would change nothing: "
                "check its spelling, or leave it out"
            )


def known_template_kwargs(tokenizer: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of these switches that the chat template reads. Raises UsageError for one that is an argument of ours."""
    arguments = inspect.signature(tokenizer.apply_chat_template).parameters
    taken = {"messages", *(name for name, it in arguments.items() if it.kind != inspect.Parameter.VAR_KEYWORD)}
    for name in kwargs:
        if name in taken:
            raise UsageError(f"chat_template_kwargs: {name!r} is no switch of a chat template: leave it out")
    template = template_text(tokenizer)
    return {name: value for name, value in kwargs.items() if re.search(rf"\b{re.escape(name)}\b", template)}


def encode_chat(
    tokenizer: Any, chat: Sequence[Message], kwargs: Mapping[str, Any], *, split_special_tokens: bool = True
) -> list[int]:
    """Token ids of a chat, ready to be answered; `kwargs` go to `apply_chat_template`.

    With `split_special_tokens` control tokens are those of the template alone. Where a message has one, a character
    that means nothing stands for it while the template works; then it is encoded in two parts, which are text.
    """
    if not split_special_tokens:
        return _encode(tokenizer, _render(tokenizer, chat, kwargs))
    controls = _Controls(tokenizer)
    texts = [*(text for message in chat for text in _texts(message)), *_texts(dict(kwargs))]
    found = sorted({match for text in texts for match in controls.every.findall(text)})
    if not found:
        return _encode(tokenizer, _render(tokenizer, chat, kwargs))
    used = set("".join(texts))
    marks = dict(zip(found, (chr(code) for code in PRIVATE if chr(code) not in used), strict=False))
    if len(marks) < len(found):
        raise UsageError("the chat uses up the characters for private use: leave some out")
    rendered = _render(
        tokenizer,
        [_mapped(message, controls.marking(message.get("role"), marks)) for message in chat],
        _mapped(dict(kwargs), controls.marking("system", marks)),
    )
    meaning = {mark: control for control, mark in marks.items()}
    first, *rest = re.split(f"([{''.join(meaning)}])", rendered)
    ids = _encode(tokenizer, first) if first else []
    spelt = {mark: controls.as_text(control) for mark, control in meaning.items()}
    between = controls.encode_all(rest[1::2])
    for mark, text in zip(rest[::2], rest[1::2], strict=True):
        ids += spelt[mark] + between[text]
    return ids


class _Controls:
    """The control tokens of a tokenizer: its special tokens, its think tags, and added tokens that its template names.

    Attributes:
        special: matches a special token.
        every: matches any of them; only operators may mean those that are not special.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = {token.content: token for token in getattr(tokenizer, "added_tokens_decoder", {}).values()}
        template, tags = template_text(tokenizer), think_tags(tokenizer)
        special = [text for text, token in added.items() if token.special]
        self._before = next((text for text in special if not added[text].rstrip), None)
        named = [text for text in added if (text in template and not text.isspace()) or text in (tags.open, tags.close)]
        self.special, self.every = _any_of(special), _any_of({*special, *named})

    def marking(self, role: Any, marks: Mapping[str, str]) -> Callable[[str], str]:
        """Puts marks in place of the control tokens in a text of this role."""
        pattern = self.special if role in OPERATORS else self.every
        return lambda text: pattern.sub(lambda match: marks[match[0]], text)

    def as_text(self, text: str) -> list[int]:
        """The ids of a text with no control token in them: one that stands there is encoded in two parts."""
        match = self.every.search(text)
        if match is None or len(match[0]) == 1:
            return self.encode(text)
        cut = match.start() + 1
        return self.as_text(text[:cut]) + self.as_text(text[cut:])

    def encode(self, text: str) -> list[int]:
        """The ids of a text in the middle of a prompt, where tokenizers put no blank before it as they do at the start.

        Behind a control token a text is encoded so; but not behind one that takes the blanks which follow it.
        """
        return self.encode_all([text])[text]

    def encode_all(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """The ids of each of these texts, each encoded once and all together: a call costs more than a short text."""
        different, before = [text for text in dict.fromkeys(texts) if text], self._before or ""
        many: list[list[int]] = []
        if different:
            many = self._tokenizer([before + text for text in different], add_special_tokens=False).input_ids
        first = 0 if self._before is None else 1
        return {"": [], **{text: ids[first:] for text, ids in zip(different, many, strict=True)}}


def _any_of(texts: Sequence[str] | set[str]) -> re.Pattern[str]:
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _render(tokenizer: Any, chat: Sequence[Message], kwargs: Mapping[str, Any]) -> str:
    options = {"add_generation_prompt": True, **kwargs}
    text: str = tokenizer.apply_chat_template([dict(message) for message in chat], tokenize=False, **options)
    return text


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The same structure with every text changed, but for roles and types, which templates compare."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {k: part if k in ("role", "type") else _mapped(part, change) for k, part in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(part, change) for part in value]
    return value


def _texts(value: Any) -> Iterator[str]:
    """Every text in a structure."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts; a single text, chat or list of token ids becomes a list of one."""
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Mapping | int)):
        return [cast(Prompt, prompts)]
    return list(cast(Sequence[Prompt], prompts))
