"""The tags that set a thought apart from the answer: which ones a model has, and where they stand among its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from leanthink.utils.errors import UsageError

OPEN_TAG, CLOSE_TAG = "<think>", "</think>"
KNOWN_TAGS = (
    (OPEN_TAG, CLOSE_TAG),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<thought>", "</thought>"),
    ("◁think▷", "◁/think▷"),
)
SETTING = "think_tags"  # among the tokenizer's init_kwargs, which `save_pretrained` writes


@dataclass(frozen=True, kw_only=True)
class ThinkTags:
    """The tags of one tokenizer.

    Attributes:
        open_id, close_id: their tokens; None for a tag that is no single token.
        open, close: their texts.
        in_text: whether the closing tag is no single token, so that it is looked for in the text.
        must_open: whether nothing announces these tags, neither a template nor the user: then a text is a thought only
            if the prompt ends with the opening tag or the text begins with it.
        tokenizer: reads prompts and texts; None for tags that are given as tokens alone.
    """

    open_id: int | None
    close_id: int | None
    open: str = OPEN_TAG
    close: str = CLOSE_TAG
    in_text: bool = False
    must_open: bool = False
    tokenizer: Any = field(default=None, repr=False, compare=False)

    @property
    def closes(self) -> bool:
        """Whether anything can close a thought."""
        return self.close_id is not None or self.in_text

    @property
    def only_in_text(self) -> bool:
        """Whether no single token ends a thought: the tag is a text of several, or counts only if it was opened."""
        return self.closes and (self.in_text or self.must_open)

    @property
    def reach(self) -> int:
        """How many tokens before the one that completes it the closing tag can begin at most."""
        return len(self.close.encode()) - 1 if self.in_text else 0

    def must_close(self, text: str) -> bool:
        """Whether a generated text is a thought until it is closed."""
        return self.closes and (not self.must_open or begins_with(text, self.open) is True)

    def usual(self, text: str) -> str:
        """The text with `<think>` and `</think>` in place of these tags, as graders know them."""
        return text.replace(self.open, OPEN_TAG, 1).replace(self.close, CLOSE_TAG)


class Beginning(TypedDict):
    """Where a prompt leaves the thought; arguments of `make_request`."""

    starts_in_answer: bool
    must_open: bool
    closes: bool


def think_tags(tokenizer: Any) -> ThinkTags:
    """The thought tags of this tokenizer.

    They are those that `set_think_tags` gave it, else the known ones that its chat template names, else those that are
    single tokens of it, else `<think>` and `</think>` as text.
    """
    given = getattr(tokenizer, "init_kwargs", {}).get(SETTING)
    if given is not None:
        return _tags(tokenizer, *check_pair(given))
    known = [_tags(tokenizer, *pair) for pair in KNOWN_TAGS]
    template = template_text(tokenizer)
    named = [tags for tags in known if tags.open in template or tags.close in template]
    tokens = [tags for tags in known if tags.close_id is not None]
    if named:
        return next((tags for tags in named if tags in tokens), named[0])
    if known[0] in tokens:
        return known[0]
    return replace((tokens or known)[0], must_open=True)


def set_think_tags(tokenizer: Any, start: str, end: str) -> None:
    """Say which tags set this tokenizer's thoughts apart; `save_pretrained` keeps it. Raises UsageError for no tag."""
    tokenizer.init_kwargs[SETTING] = list(check_pair((start, end)))


def check_pair(given: Any) -> tuple[str, str]:
    """The opening and the closing tag. Raises UsageError for what is no pair of tags."""
    pair = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    if len(pair) != 2 or not all(isinstance(tag, str) and tag.strip() == tag != "" for tag in pair):
        raise UsageError(f"think tags {given!r}: give two texts without blanks around them, such as [THINK] [/THINK]")
    if pair[0] == pair[1]:
        raise UsageError(f"think tags {pair[0]} {pair[1]}: the opening tag and the closing one must differ")
    return pair[0], pair[1]


def _tags(tokenizer: Any, start: str, end: str) -> ThinkTags:
    open_id, close_id = (token_of(tokenizer, tag) for tag in (start, end))
    return ThinkTags(
        open_id=open_id,
        close_id=close_id,
        open=start,
        close=end,
        in_text=close_id is None,
        tokenizer=tokenizer,
    )


def token_of(tokenizer: Any, text: str) -> int | None:
    """The single token that is this text; None where there is none."""
    token: int | None = tokenizer.convert_tokens_to_ids(text)
    return None if token == tokenizer.unk_token_id else token


def template_text(tokenizer: Any) -> str:
    """The source of all chat templates of this tokenizer; empty where it has none."""
    template = getattr(tokenizer, "chat_template", None) or ""
    return template if isinstance(template, str) else "\n".join(template.values())


def begins_with(text: str, tag: str) -> bool | None:
    """Whether a text begins with this tag, blanks before it aside; None while it may still become that."""
    begun = text.lstrip()
    if begun.startswith(tag):
        return True
    return None if tag.startswith(begun) else False


class TagReader:
    """Finds tags among the tokens of generated texts; remembers which tokens can complete a closing tag."""

    def __init__(self, tags: ThinkTags) -> None:
        self._tags = tags
        self._may_complete: dict[int, bool] = {}

    def opens(self, ids: Sequence[int]) -> bool | None:
        """Whether these tokens begin with the opening tag; None while they may still do."""
        return begins_with(self._decode(ids).rstrip("\ufffd"), self._tags.open)

    def may_close(self, token_id: int) -> bool:
        """Whether this token alone can complete a closing tag: quick, and a first sieve for `closes`."""
        if not self._tags.in_text:
            return token_id == self._tags.close_id
        found = self._may_complete.get(token_id)
        if found is None:
            text = self._decode([token_id])  # a part of a character shows as the replacement sign
            found = self._may_complete[token_id] = self._tags.close[-1] in text or "\ufffd" in text
        return found

    def closes(self, last_ids: Sequence[int]) -> bool:
        """Whether the last of these tokens, of which `reach` + 1 are enough, completes a closing tag."""
        if not self.may_close(last_ids[-1]):
            return False
        return not self._tags.in_text or self._tags.close in self._decode(last_ids[-1 - self._tags.reach :])

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tags.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text


def close_index(tags: ThinkTags, ids: Sequence[int]) -> int | None:
    """Index of the token that completes the first closing tag of a generated text; None where none does."""
    if not tags.closes:
        return None
    reader = TagReader(tags)
    for index in range(len(ids)):
        if reader.may_close(ids[index]) and reader.closes(ids[max(0, index - tags.reach) : index + 1]):
            return index
    return None


def beginning(tokenizer: Any, prompt_ids: Sequence[int], tags: ThinkTags) -> Beginning:
    """Where this prompt leaves the thought: closed, open, or still to be opened by the text."""
    over = thought_is_over(tokenizer, prompt_ids, tags)
    must_open = tags.must_open and not over and not _end_of(tokenizer, prompt_ids, tags.open)
    return Beginning(starts_in_answer=over, must_open=must_open, closes=tags.closes)


def thought_is_over(tokenizer: Any, prompt_ids: Sequence[int], tags: ThinkTags) -> bool:
    """Whether the prompt ends in a closed thought, as templates write it for "do not think": the answer comes next."""
    if tags.in_text:
        return _end_of(tokenizer, prompt_ids, tags.close)
    if tags.close_id is None or tags.close_id not in prompt_ids:
        return False
    last = len(prompt_ids) - list(prompt_ids)[::-1].index(tags.close_id)
    rest: str = tokenizer.decode(list(prompt_ids[last:]))
    return not rest.strip()


def _end_of(tokenizer: Any, prompt_ids: Sequence[int], tag: str) -> bool:
    """Whether the prompt's text ends with this tag, and blanks behind it."""
    ids, most = list(prompt_ids), 64
    while True:  # blanks may be many tokens
        text: str = tokenizer.decode(ids[-most:], skip_special_tokens=False).rstrip()
        if len(text) >= len(tag) + 1 or most >= len(ids):
            return text.endswith(tag)
        most *= 2
