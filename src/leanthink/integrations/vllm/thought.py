"""Where a request's thought ends and its answer begins."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from leanthink.data.think_tags import TagReader, beginning, think_tags
from leanthink.integrations.vllm.lengths import NEVER


class Watch:
    """Looks for the tag that closes the thought among the tokens of one request, each of which is looked at once.

    Args:
        prompt_ids: of the request.
        tokenizer: the model's.
        late: tokens after the one that completes the tag which still count as thought, because nobody knows of the tag
            before they are fed.
    """

    def __init__(self, prompt_ids: Sequence[int], tokenizer: Any, *, late: int = 0) -> None:
        self._tags, self._prompt, self._seen = think_tags(tokenizer), len(prompt_ids), 0
        self.late = late
        begins = beginning(tokenizer, prompt_ids, self._tags)
        self._answer_at = self._prompt if begins["starts_in_answer"] else NEVER
        self._reader = TagReader(self._tags)
        self._opens: bool | None = None if begins["must_open"] else True

    def answer_at(self, output_ids: Sequence[int]) -> int:
        """Position of the token that completes the closing tag, plus `late`; NEVER until there is one.

        It is the prompt's length where the prompt has closed the thought.
        """
        if self._answer_at == NEVER and self._tags.closes:
            for index in range(self._seen, len(output_ids)):
                if self._opens is None:
                    self._opens = self._reader.opens(output_ids[: index + 1])
                elif self._opens and self._completes(output_ids, index):
                    self._answer_at = self._prompt + index + self.late
                    break
            self._seen = len(output_ids)
        return self._answer_at

    def _completes(self, output_ids: Sequence[int], index: int) -> bool:
        first = max(0, index - self._tags.reach)
        return self._reader.may_close(output_ids[index]) and self._reader.closes(output_ids[first : index + 1])


@cache
def tokenizer_of(name: str) -> Any:
    """The model's own, by the name or folder that vLLM was given."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
